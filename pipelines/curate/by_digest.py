"""Verdict columns of one dataset as plain arrays sorted by sample digest: what selecting from millions of rows needs.

The tables are read part by part and only a few numbers a sample stay in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.curate import reasons as why
from pipelines.curate.rules import SCORES, Rules
from pipelines.curate.signals import SIGNALS_VERSION
from pipelines.samples import storage, tables
from sama.errors import InputError

Part = tuple[np.ndarray, why.Columns]  # keys (n, 2) uint64, columns (n,)
OK, FAILED = 1, 2  # signals status; 0 and -1: no row
STAGES = ("", "read", "decode", "measure")
_JUDGED = ["sample_digest", "judge_id", "prompt_id", "turn", "status", "created_at", *SCORES]


@dataclass(frozen=True)
class ByDigest:
    """Columns over distinct digests. keys: the first 16 bytes of each, (n, 2) uint64, in ascending order.

    rows: (n,) where each key's values stand in the columns, which keep the order of the parts; None: as the keys.
    """

    keys: np.ndarray
    columns: why.Columns
    rows: np.ndarray | None = None

    def places(self, keys: np.ndarray) -> np.ndarray:
        """The position of each of (m, 2) keys here, -1 where there is none."""
        if not len(self.keys):
            return np.full(len(keys), -1)
        order = np.argsort(keys[:, 0])  # neighbouring searches then touch neighbouring memory
        found = np.empty(len(keys), np.int64)
        found[order] = np.searchsorted(self.keys[:, 0], keys[order, 0])
        found[found == len(self.keys)] = 0
        # two digests with the same first 8 bytes lie side by side; 2^-64 a pair, so one step is enough
        after = np.minimum(found + 1, len(self.keys) - 1)
        found = np.where((self.keys[found] != keys).any(axis=1), after, found)
        return np.where((self.keys[found] == keys).all(axis=1), found, -1)

    def at(self, places: np.ndarray) -> why.Columns:
        """Each column at these positions as float64, nan at -1."""
        if not len(self.keys):
            return {name: np.full(len(places), np.nan) for name in self.columns}
        absent = places < 0
        rows = places if self.rows is None else self.rows[places]
        found = {name: values[rows].astype(np.float64) for name, values in self.columns.items()}
        if absent.any():
            for values in found.values():
                values[absent] = np.nan
        return found


def keys_of(digests: pa.ChunkedArray) -> np.ndarray:
    """The first 16 bytes of sha256 digests as (n, 2) uint64."""
    parts = [
        np.frombuffer(c.buffers()[1], np.uint64)[c.offset * 4 : (c.offset + len(c)) * 4].reshape(-1, 4)[:, :2]
        for c in digests.chunks
        if len(c)
    ]
    return np.concatenate(parts) if parts else np.zeros((0, 2), np.uint64)


def newest(parts: Sequence[Part], names: Sequence[str]) -> ByDigest:
    """One row per digest, that of the latest `created_at` (microseconds, a column of every part)."""
    if not parts:
        return ByDigest(np.zeros((0, 2), np.uint64), {n: np.zeros(0, np.float32) for n in names})
    keys = np.concatenate([k for k, _ in parts])
    order = np.argsort(keys[:, 0])
    if len(order) > 1 and (keys[order[1:], 0] == keys[order[:-1], 0]).any():  # some were measured again
        time = np.concatenate([c["created_at"] for _, c in parts])
        order = np.lexsort((-time, keys[:, 1], keys[:, 0]))
        first = np.ones(len(order), bool)
        first[1:] = (keys[order[1:]] != keys[order[:-1]]).any(axis=1)
        order = order[first]
    return ByDigest(keys[order], {n: np.concatenate([c[n] for _, c in parts]) for n in names}, order)


def signals(root: str, dataset: str, wanted: np.ndarray, names: Sequence[str]) -> ByDigest:
    """The newest signals of a dataset. wanted: the keys of its index, for what lies under another dataset's name.

    columns: status (OK, FAILED), stage (position in STAGES), shot_cuts, bars_{source,target}_{0,1} (widest bar in
    pixels, of height and of width), text and numbers as in tables.SIGNALS.
    """
    numeric = [n for n in dict.fromkeys([*why.NUMBERS, *names]) if n in tables.SIGNALS.names]
    columns = ["sample_digest", "signals_version", "created_at", *why.LISTS, "status", "error_stage", *numeric]

    def narrow(table: pa.Table) -> Part:
        table = table.filter(pc.equal(table["signals_version"], pa.scalar(SIGNALS_VERSION, pa.int16())))
        out = {n: why.numbers(table[n]).astype(np.float32) for n in numeric}
        out |= {n: v.astype(np.float32) for n, v in why.worst_of_lists(table).items()}
        out["status"] = _codes(table["status"], ("", "ok", "failed"))
        out["stage"] = _codes(table["error_stage"], STAGES)
        return keys_of(table["sample_digest"]), out | _time(table)

    parts = list(_parts(root, "signals", dataset, tables.SIGNALS, columns, narrow, wanted))
    return newest(parts, [*numeric, *why.WORST, "status", "stage"])


def scores(root: str, dataset: str, wanted: np.ndarray, judge_id: str) -> ByDigest:
    """<score>_mean of one judge over its answers that could be read; the newest answer of a prompt's turn counts."""

    def narrow(table: pa.Table) -> Part:
        mine = pc.and_(pc.equal(table["judge_id"].cast(pa.string()), judge_id),
                       pc.equal(table["status"].cast(pa.string()), "ok"))  # fmt: skip
        table = table.filter(mine)
        out = {s: why.numbers(table[s]).astype(np.float32) for s in SCORES}
        out["turn"] = why.numbers(table["turn"]).astype(np.float32)
        out["prompt"] = _codes(table["prompt_id"], ("", "quality", "motion", "preservation"))
        return keys_of(table["sample_digest"]), out | _time(table)

    parts = [p for p in _parts(root, "judgements", dataset, tables.JUDGEMENTS, _JUDGED, narrow, wanted) if len(p[0])]
    if not parts:
        return newest([], [f"{s}_mean" for s in SCORES])
    keys = np.concatenate([k for k, _ in parts])
    rows = {n: np.concatenate([c[n] for _, c in parts]) for n in parts[0][1]}
    order = np.lexsort((-rows["created_at"], rows["turn"], rows["prompt"], keys[:, 1], keys[:, 0]))
    keys, rows = keys[order], {n: v[order] for n, v in rows.items()}
    new = np.ones(len(keys), bool)
    new[1:] = (keys[1:] != keys[:-1]).any(axis=1)
    again = ~new
    again[1:] &= (rows["turn"][1:] == rows["turn"][:-1]) & (rows["prompt"][1:] == rows["prompt"][:-1])
    starts = np.flatnonzero(new)
    out = {}
    for score in SCORES:
        counts = np.isfinite(rows[score]) & ~again
        total = np.add.reduceat(np.where(counts, rows[score], 0), starts)
        with np.errstate(invalid="ignore"):
            out[f"{score}_mean"] = total / np.add.reduceat(counts.astype(np.float64), starts)
    return ByDigest(keys[starts], out)


def joined(root: str, rules: Rules) -> dict[str, ByDigest]:
    """The foreign scores that rules name (see `joined.join`): column -> its values by digest. InputError if unknown."""
    wanted = sorted({n for k in tables.KINDS for d in ("", *rules.datasets) for n in rules.of(k, d).joined})
    known: dict[str, ByDigest] = {}
    for name in storage.list_folders(storage.join(root, "scores")) if wanted else []:
        known |= foreign(root, name)
    for name in wanted:
        if name not in known:
            raise InputError(f"{root} has no joined column {name}; there are {', '.join(sorted(known)) or 'none'}")
    return {name: known[name] for name in wanted}


def foreign(root: str, name: str) -> dict[str, ByDigest]:
    """All columns `<name>_…` that were joined under a name, each by digest; a null does not hide an older value."""
    parts: dict[str, list[Part]] = {}
    for uri in storage.list_files(storage.join(root, "scores", name), ".parquet"):
        table = storage.read_table(uri)
        for column in [c for c in table.column_names if c.startswith(f"{name}_")]:
            there = table.filter(pc.is_valid(table[column]))
            values = {column: why.numbers(there[column]).astype(np.float32)} | _time(there)
            parts.setdefault(column, []).append((keys_of(there["sample_digest"]), values))
    return {c: newest(p, [c]) for c, p in parts.items()}


def _parts(
    root: str, table: str, dataset: str, schema: pa.Schema, columns: list[str],
    narrow: Callable[[pa.Table], Part], wanted: np.ndarray,
) -> Iterator[Part]:  # fmt: skip
    """The parts under the dataset's name, then of other names what this dataset lacks: samples may be shared."""
    folder = storage.join(root, table)
    missing = np.sort(wanted[:, 0])
    here = storage.join(folder, dataset) + "/"
    seen: list[np.ndarray] = []
    for _, rows in storage.each_part(folder, schema, columns, lambda uri: uri.startswith(here)):
        part = narrow(rows)
        seen.append(part[0][:, 0])
        yield part
    if len(missing) and sum(map(len, seen)):
        known = np.sort(np.concatenate(seen))
        at = np.minimum(np.searchsorted(known, missing), len(known) - 1)
        missing = missing[known[at] != missing]
    if not len(missing):
        return
    for _, rows in storage.each_part(folder, schema, columns, lambda uri: not uri.startswith(here)):
        keys, columns_of = narrow(rows)
        mine = np.isin(keys[:, 0], missing)
        if mine.any():
            yield keys[mine], {n: v[mine] for n, v in columns_of.items()}


def _codes(column: pa.ChunkedArray, values: Sequence[str]) -> np.ndarray:
    codes, names = why.words(column)
    place = np.array([values.index(str(n)) if n in values else -1 for n in names] + [0], np.float32)
    return place[codes]  # code -1, null, is the last: 0


def _time(table: pa.Table) -> why.Columns:
    return {"created_at": np.asarray(table["created_at"].cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False))}
