"""Turn verdicts into a frozen list of kept and rejected rows, each rejection with its reasons."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

from pipelines import config
from pipelines.curate import by_digest
from pipelines.curate import reasons as why
from pipelines.curate.rules import Rules
from pipelines.curate.signals import SIGNALS_VERSION
from pipelines.curate.summary import Tally
from pipelines.samples import near, provenance, storage, tables
from pipelines.samples.blocklist import with_relatives
from pipelines.samples.index import datasets_of, scan_index
from sama.errors import InputError

KEPT, REJECTED, FAILED, UNSCORED = range(4)
assert tables.DECISIONS == ("kept", "rejected", "failed", "unscored")


def select(root: str, name: str, rules: Rules | None = None) -> dict[str, Any]:
    """Judge every index row and write ROOT/selections/<name>; the summary (see `summary.summarise`).

    A selection is frozen: the same name with the same rules is left as it is, with other rules it is an
    InputError, however many samples or verdicts have come since. Null scores never pass a threshold.
    """
    rules = rules or Rules()
    folder = selection_folder(root, name)
    document: dict[str, Any] = {
        "schema": "sama.selection/1",
        "name": name,
        "rules": rules.model_dump(mode="json", by_alias=True),
    }
    if storage.exists(storage.join(folder, "summary.json")):
        return _frozen(folder, name, document)
    began, names = provenance.now(), datasets_of(root)
    for dataset in rules.only or ():
        if dataset not in names:
            raise InputError(f"{root} has no dataset {dataset}; there are {', '.join(names) or 'none'}")
    chosen = sorted(set(rules.only)) if rules.only is not None else names
    blocklist, foreign, tally = with_relatives(root), by_digest.joined(root, rules), Tally(rules)
    footage = Footage(root, chosen, rules.max_per_footage) if rules.max_per_footage else None
    with storage.open_table(storage.join(folder, "selection.parquet"), tables.SELECTION, ["sample_digest"]) as writer:
        for dataset in chosen:
            for table in decisions(root, dataset, rules, blocklist, foreign):
                table = footage.limit(table) if footage else table
                writer.write_table(table)
                tally.add(table)
    summary = tally.result()
    document |= {"signals_version": SIGNALS_VERSION, "judge_id": rules.judge.judge_id if rules.judge else None}
    document |= {"blocklist_digest": _digest_of(blocklist), "digest": summary["digest"]}
    storage.write_bytes(storage.join(folder, "selection.yaml"), yaml.safe_dump(document, sort_keys=False))
    inputs = {"index_rows": summary["rows"], "blocklist": document["blocklist_digest"]}
    provenance.record(folder, "sama select", document["rules"], summary["decisions"], inputs, began, provenance.now())
    # written last: a selection without it is unfinished and is made again
    storage.write_bytes(storage.join(folder, "summary.json"), json.dumps(summary, indent=1))
    return summary


def decisions(
    root: str, dataset: str, rules: Rules, blocklist: pa.Table, foreign: dict[str, by_digest.ByDigest] | None = None
) -> Iterator[pa.Table]:
    """The decisions on a dataset's rows in the index's order, table by table, as tables.SELECTION.

    foreign: joined columns as from `by_digest.joined`.
    """
    wanted = [by_digest.keys_of(t["sample_digest"]) for t in scan_index(root, dataset, ["sample_digest"])]
    keys = np.concatenate(wanted) if wanted else np.zeros((0, 2), np.uint64)
    sources = [by_digest.signals(root, dataset, keys, why.named_columns(rules)), *(foreign or {}).values()]
    if rules.judge:
        sources.append(by_digest.scores(root, dataset, keys, rules.judge.judge_id))
    start = 0
    for index in scan_index(root, dataset, why.INDEX_COLUMNS):
        mine = keys[start : start + index.num_rows]
        start += index.num_rows
        columns: why.Columns = {}
        for source in sources:
            columns |= source.at(source.places(mine))
        yield _decide(index, why.with_borders(columns, index), rules, blocklist)


def decide_on(index: pa.Table, seen: pa.Table, rules: Rules, blocklist: pa.Table) -> pa.Table:
    """The decision on each row of `index` (columns: reasons.INDEX_COLUMNS), as tables.SELECTION, same order.

    seen: verdicts in memory, a row for each of `index` in that order: `status` and `error_stage` of the signals,
    the other reasons.SIGNAL_COLUMNS and whatever the rules name.
    """
    columns = why.signal_columns(seen, index, rules)
    for name, source, values in (
        ("status", "signals_status" if "signals_status" in seen.column_names else "status", ("", "ok", "failed")),
        ("stage", "error_stage", by_digest.STAGES),
    ):
        codes, names = why.words(seen[source])
        columns[name] = np.array([values.index(str(n)) if n in values else -1 for n in names] + [0])[codes]
    return _decide(index, columns, rules, blocklist)


def _decide(index: pa.Table, signals: why.Columns, rules: Rules, blocklist: pa.Table) -> pa.Table:
    """failed: it could not be looked at. rejected: at least one reason. unscored: no reason, but no signals
    yet, or a judge that the rules name has not answered. kept: the rest."""
    ok, failed = signals["status"] == by_digest.OK, signals["status"] == by_digest.FAILED
    ledger = _Reasons(index.num_rows)
    ledger.put(np.ones(index.num_rows, bool), "blocklisted", blocked(index, blocklist))
    for code, stage in enumerate(by_digest.STAGES):
        ledger.put(failed, f"{stage or 'unknown'}_failed", (signals["stage"] == code)[failed])
    facts = why.facts(index)
    lacking = np.zeros(index.num_rows, bool)
    for kind, dataset, rows in _groups(index):
        thresholds = rules.of(kind, dataset)
        why.index_reasons(thresholds, _pick(facts, rows), partial(ledger.put, rows))
        looked = rows & ok
        mine = _pick(signals | why.roles(index, thresholds) | {"erases": facts["erases"]}, looked)
        why.signal_reasons(thresholds, mine, partial(ledger.put, looked))
        why.safety_reasons(rules.safety, mine, partial(ledger.put, looked))
        if rules.judge and kind != "text_to_video":
            lacking[looked] = why.judge_reasons(rules.judge, kind, mine, partial(ledger.put, looked))
    decision = np.select([failed, ledger.any(), ~ok | lacking], [FAILED, REJECTED, UNSCORED], KEPT)
    unscored = decision == UNSCORED
    ledger.put(unscored, "no_signals", ~ok[unscored])
    ledger.put(unscored, "not_judged", (ok & lacking)[unscored])
    chosen = pa.DictionaryArray.from_arrays(pa.array(decision, pa.int32()), pa.array(tables.DECISIONS))
    columns = {"key": index["key"], "sample_digest": index["sample_digest"], "decision": chosen}
    columns |= {"reasons": ledger.lists(), "dataset": index["dataset"], "category": index["category"]}
    return pa.table(columns).cast(tables.SELECTION)


def blocked(index: pa.Table, blocklist: pa.Table) -> np.ndarray:
    """Rows whose media, footage or address is on the blocklist."""
    hit = np.zeros(index.num_rows, bool)
    pairs = [("source_sha256", "sha256"), ("target_sha256", "sha256"), ("source_group",) * 2, ("source_url",) * 2]
    for mine, theirs in pairs:
        values = blocklist[theirs].drop_null().combine_chunks()
        if len(values):
            hit |= np.asarray(pc.is_in(index[mine], value_set=values).to_numpy(zero_copy_only=False))
    return hit


def read_selection(root: str, name: str) -> pa.Table:
    """A frozen selection, columns: tables.SELECTION. InputError names the selections there are."""
    folder = selection_folder(root, name)
    if not storage.exists(storage.join(folder, "summary.json")):
        there = storage.list_folders(storage.join(root, "selections"))
        known = f"there are {', '.join(there)}" if there else "there is none yet, run `sama select`"
        raise InputError(f"{storage.absolute(root)} has no selection {name}; {known}")
    data = storage.read_bytes(storage.join(folder, "selection.parquet"))
    return pq.read_table(pa.BufferReader(data)).cast(tables.SELECTION)


def read_summary(root: str, name: str) -> dict[str, Any]:
    """The counts of a frozen selection."""
    return json.loads(storage.read_bytes(storage.join(selection_folder(root, name), "summary.json")))


def selection_folder(root: str, name: str) -> str:
    if not name or not all(c.isalnum() or c in "-_." for c in name) or name.startswith("."):
        raise InputError(f"{name!r} is no name for a selection: use letters, digits, '-', '_' and '.'")
    return storage.join(root, "selections", name)


def _frozen(folder: str, name: str, document: dict[str, Any]) -> dict[str, Any]:
    before = yaml.safe_load(storage.read_bytes(storage.join(folder, "selection.yaml")))
    old, new = (config.flatten(d.get("rules") or {}) for d in (before, document))
    differing = sorted(k for k in {*old, *new} if old.get(k) != new.get(k))
    if differing:
        key = differing[0]
        raise InputError(
            f"selection {name} is frozen with {key} = {old.get(key)!r}, now it is {new.get(key)!r}; "
            "choose another name for other rules"
        )
    return json.loads(storage.read_bytes(storage.join(folder, "summary.json")))


def _groups(index: pa.Table) -> Iterator[tuple[str, str, np.ndarray]]:
    """(kind, dataset, mask of rows) for each pair that occurs."""
    kinds, kind_names = why.words(index["kind"])
    datasets, dataset_names = why.words(index["dataset"])
    both = kinds.astype(np.int64) * max(1, len(dataset_names)) + datasets
    for code in np.flatnonzero(np.bincount(both)) if len(both) else ():
        kind, dataset = divmod(int(code), max(1, len(dataset_names)))
        yield str(kind_names[kind]), str(dataset_names[dataset]), both == code


def _pick(columns: why.Columns, rows: np.ndarray) -> why.Columns:
    return {name: values[rows] for name, values in columns.items()}


def _digest_of(blocklist: pa.Table) -> str | None:
    if not blocklist.num_rows:
        return None
    rows = [b.hex() if b else None for b in blocklist["sha256"].to_pylist()]
    rest = [blocklist[n].to_pylist() for n in ("source_group", "source_url")]
    return hashlib.sha256(json.dumps([rows, *rest]).encode()).hexdigest()


class Footage:
    """Keeps at most `most` samples of the same footage, near-duplicates counted with it: the first of the index."""

    def __init__(self, root: str, datasets: Sequence[str], most: int) -> None:
        columns = [t["source_group"] for d in datasets for t in scan_index(root, d, ["source_group"])]
        groups = np.concatenate([*(c.fill_null(-1).to_numpy() for c in columns), np.zeros(0, np.int64)])
        table = near.read(root).sort_by("source_group")
        known, of = table["source_group"].to_numpy(), table["near_group"].to_numpy()
        if len(known):
            at = np.minimum(np.searchsorted(known, groups), len(known) - 1)
            groups = np.where(known[at] == groups, of[at], groups)
        distinct, self.footage = np.unique(groups, return_inverse=True)
        self.kept, self.most, self.start = np.zeros(len(distinct), np.int64), most, 0

    def limit(self, table: pa.Table) -> pa.Table:
        """The next rows (tables.SELECTION, the index's order) with those beyond the limit rejected."""
        codes, names = why.words(table["decision"])
        mine = np.flatnonzero(codes == (names.index("kept") if "kept" in names else -2))
        footage = self.footage[self.start : self.start + table.num_rows][mine]
        self.start += table.num_rows
        order = np.argsort(footage, kind="stable")
        ranked = footage[order]
        rank = np.arange(len(ranked)) - np.searchsorted(ranked, ranked)  # among the same footage of this table
        beyond = mine[order][self.kept[ranked] + rank >= self.most]
        np.add.at(self.kept, ranked, 1)
        over = np.zeros(table.num_rows, bool)
        over[beyond] = True
        mask = pa.array(over)
        reasons = pc.if_else(mask, pa.scalar(["near_duplicate"], pa.list_(pa.string())), table["reasons"])
        decision = pc.if_else(mask, "rejected", table["decision"].cast(pa.string()))
        for name, column in (("reasons", reasons), ("decision", decision)):
            place = table.schema.get_field_index(name)
            table = table.set_column(place, table.schema.field(place), column.cast(table.schema.field(place).type))
        return table


class _Reasons:
    """A growing table of (row, reason), kept as one boolean column a reason."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.columns: dict[str, np.ndarray] = {}

    def put(self, rows: np.ndarray, reason: str, mask: np.ndarray) -> None:
        """`mask` says which of the rows that `rows` (a mask itself) picks have the reason."""
        if mask.any():
            column = self.columns.setdefault(reason, np.zeros(self.rows, bool))
            column[rows] |= mask

    def any(self) -> np.ndarray:
        return np.logical_or.reduce([np.zeros(self.rows, bool), *self.columns.values()])

    def lists(self) -> pa.ListArray:
        """list<string> a row, reasons in the order in which they were first met."""
        names = pa.array(list(self.columns), pa.string())
        counts = np.zeros(self.rows + 1, np.int64)
        for column in self.columns.values():
            counts[1:] += column
        offsets = np.cumsum(counts)
        codes, place = np.zeros(offsets[-1], np.int32), offsets[:-1].copy()
        for code, column in enumerate(self.columns.values()):
            where = np.flatnonzero(column)
            codes[place[where]] = code
            place[where] += 1
        return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), names.take(pa.array(codes)))
