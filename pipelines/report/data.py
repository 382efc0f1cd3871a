"""What the tables of a data root say: the ledger, where samples left, which of them to show.

Reads index, rejects and one selection; only few columns are held for all rows, everything else for shown rows.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.report.curation import Curation, unsafe
from pipelines.report.curation import read as read_curation
from pipelines.samples import provenance, storage, tables
from pipelines.samples.index import datasets_of, read_index, rows_of
from sama.errors import InputError

UNSAFE = 0.5  # nsfw_score from which on pictures are blurred
SHOWN_KEPT, SHOWN_REJECTED, SHOWN_INGEST_REJECTS = 24, 36, 60


@dataclass
class Dataset:
    """The account of one dataset. `manifest` is None where no ingest wrote down how many rows it was given."""

    name: str
    manifest: int | None = None
    finished: bool = True  # False while an ingest is under way, or was killed
    index: int = 0
    rejects: int = 0
    decisions: Counter[str] = field(default_factory=Counter)
    ingest_reasons: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)  # a sample may have several
    train: int = 0  # kept and not held out
    heldout: int = 0  # kept and held out
    unlisted: int = 0  # in the index, not in the selection
    foreign: int = 0  # in the selection, not in the index
    doubled: int = 0  # keys or manifest rows that occur more than once

    def problems(self, selected: bool) -> list[str]:
        """Every way in which this dataset does not add up, as sentences."""
        found = []
        if self.manifest is not None and self.manifest != self.index + self.rejects:
            why = "" if self.finished else "; its ingest has not finished, run it again"
            found.append(
                f"{self.name}: {self.manifest} rows in the manifest, but {self.index} in the index and "
                f"{self.rejects} rejects make {self.index + self.rejects}{why}"
            )
        if selected and self.unlisted:
            found.append(f"{self.name}: {self.unlisted} rows of the index have no decision in the selection")
        if selected and self.foreign:
            found.append(f"{self.name}: {self.foreign} rows of the selection are not in the index")
        if selected and self.index != sum(self.decisions.values()) and not (self.unlisted or self.foreign):
            found.append(f"{self.name}: {self.index} rows in the index, {sum(self.decisions.values())} decisions")
        if self.doubled:
            found.append(f"{self.name}: {self.doubled} rows occur twice")
        return found


@dataclass
class Root:
    """All that a page says about the data."""

    uri: str
    selection: str | None
    datasets: list[Dataset]
    kept: list[dict[str, Any]]  # index rows to show
    rejected: list[dict[str, Any]]  # index rows with `decision` and `reasons`
    ingest_rejects: list[dict[str, Any]]
    curation: Curation = field(default_factory=Curation)
    categories: dict[str, Counter[str]] = field(default_factory=dict)  # category -> decision -> samples
    hidden: set[str] = field(default_factory=set)  # keys whose pictures are shown blurred

    def problems(self) -> list[str]:
        return [p for d in self.datasets for p in d.problems(self.selection is not None)]

    def total(self, name: str) -> int:
        return sum(getattr(d, name) or 0 for d in self.datasets)

    def decided(self, decision: str) -> int:
        return sum(d.decisions[decision] for d in self.datasets)


def read_root(root: str, selection: str | None = None) -> Root:
    """Account for every sample of a data root. Without a name, the selection is the only one there is, or none.

    InputError when there is no such root or no such selection, or when several could be meant.
    """
    names = datasets_of(root)
    if not names:
        raise InputError(f"{root} holds no dataset yet: `sama ingest` puts one in")
    selection = _selection_name(root, selection)
    chosen = _read_selection(root, selection)
    accounts = {n: Dataset(n) for n in names}
    index = read_index(root, columns=["key", "dataset", "split"])
    rejects = storage.read_parts(
        storage.join(root, "rejects"), tables.REJECTS, ["dataset", "manifest", "row", "reason"]
    ).unify_dictionaries()
    _count_index(accounts, index)
    _count_rejects(accounts, rejects)
    _count_manifests(accounts, root)
    if chosen is not None:
        _count_selection(accounts, index, chosen)
    kept = rejected = []
    if chosen is not None:
        kept = _details(root, _pick(chosen, "kept", SHOWN_KEPT))
        rejected = _details(root, _pick(chosen, "rejected", SHOWN_REJECTED))
    shown = _some_rejects(storage.join(root, "rejects"), rejects)
    curation = read_curation(root, selection, chosen)
    keys = [r["key"] for r in (*kept, *rejected, *curation.borderline)]
    keys += [m["key"] for g in curation.near.groups for m in g.members]
    hidden = unsafe(root, keys, UNSAFE)
    categories: dict[str, Counter[str]] = {}
    for (category, decision), count in _tally(chosen, "category", "decision").items() if chosen is not None else ():
        categories.setdefault(category or "none", Counter())[decision] += count
    return Root(
        storage.absolute(root), selection, list(accounts.values()), kept, rejected, shown, curation, categories, hidden
    )  # fmt: skip


def selections_of(root: str) -> list[str]:
    """Names of the frozen selections of a data root."""
    folder = storage.join(root, "selections")
    return [n for n in storage.list_folders(folder) if storage.exists(storage.join(folder, n, "selection.parquet"))]


def _selection_name(root: str, name: str | None) -> str | None:
    known = selections_of(root)
    if name is None:
        if len(known) > 1:
            raise InputError(f"{root} has the selections {', '.join(known)}: name one with --selection")
        return known[0] if known else None
    if name not in known:
        raise InputError(f"{root} has no selection {name}; there is {', '.join(known) or 'none'}")
    return name


def _read_selection(root: str, name: str | None) -> pa.Table | None:
    if name is None:
        return None
    fs, path = storage.locate(storage.join(root, "selections", name, "selection.parquet"))
    columns = ["key", "decision", "reasons", "dataset", "category"]
    table = pq.read_table(path, filesystem=fs, columns=columns)
    return table.cast(pa.schema([tables.SELECTION.field(c) for c in columns])).unify_dictionaries()


def _tally(table: pa.Table, *columns: str) -> dict[tuple, int]:
    """Distinct values of the columns -> number of rows."""
    plain = pa.table({c: _plain(table[c]) for c in columns})
    counted = plain.group_by(list(columns)).aggregate([([], "count_all")])
    return {tuple(r[c] for c in columns): r["count_all"] for r in counted.to_pylist()}


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def _count_index(accounts: dict[str, Dataset], index: pa.Table) -> None:
    for (name,), count in _tally(index, "dataset").items():
        accounts.setdefault(name, Dataset(name)).index = count
    if len(pc.unique(index["key"])) != index.num_rows:
        for (_, name), count in _tally(index, "key", "dataset").items():
            accounts[name].doubled += count - 1


def _count_rejects(accounts: dict[str, Dataset], rejects: pa.Table) -> None:
    for (name, reason), count in _tally(rejects, "dataset", "reason").items():
        account = accounts.setdefault(name, Dataset(name))
        account.rejects += count
        account.ingest_reasons[reason] += count
    for (name, _, row), count in _tally(rejects, "dataset", "manifest", "row").items():
        if row is not None:
            accounts[name].doubled += count - 1


def _count_selection(accounts: dict[str, Dataset], index: pa.Table, chosen: pa.Table) -> None:
    for (name, decision), count in _tally(chosen, "dataset", "decision").items():
        accounts.setdefault(name, Dataset(name)).decisions[decision] = count
    flat = chosen.filter(pc.greater(pc.list_value_length(chosen["reasons"]), 0))
    repeated = pa.table(
        {
            "dataset": pc.take(_plain(flat["dataset"]), pc.list_parent_indices(flat["reasons"])),
            "reason": pc.list_flatten(flat["reasons"]),
        }
    )
    for (name, reason), count in _tally(repeated, "dataset", "reason").items():
        accounts[name].reasons[reason] = count
    for table, other, name in ((index, chosen, "unlisted"), (chosen, index, "foreign")):
        alone = table.filter(pc.invert(pc.is_in(table["key"], value_set=pc.unique(other["key"]))))
        for (dataset,), count in _tally(alone, "dataset").items():
            setattr(accounts[dataset], name, count)
    kept = pc.unique(chosen.filter(pc.equal(_plain(chosen["decision"]), "kept"))["key"])
    used = index.filter(pc.is_in(index["key"], value_set=kept))
    for (name, split), count in _tally(used, "dataset", "split").items():
        setattr(accounts[name], "heldout" if split == "heldout" else "train", count)


def _count_manifests(accounts: dict[str, Dataset], root: str) -> None:
    """What ingest itself counted while it read the manifests; an index made from anybody's tars has no such count."""
    for account in accounts.values():
        facts = provenance.read(storage.join(root, "index", account.name)) or {}
        manifests = facts.get("counts", {}).get("manifests")
        if isinstance(manifests, dict):
            account.manifest = sum(int(n) for n in manifests.values())
            account.finished = facts.get("end") is not None


def _pick(chosen: pa.Table, decision: str, limit: int) -> dict[str, dict[str, Any]]:
    """At most `limit` rows with a decision, taken in turn from every (dataset, first reason), evenly spaced in each."""
    rows = chosen.filter(pc.equal(_plain(chosen["decision"]), decision))
    if not rows.num_rows:
        return {}
    first = pc.list_element(pc.if_else(pc.greater(pc.list_value_length(rows["reasons"]), 0), rows["reasons"],
                                       pa.scalar([""], rows["reasons"].type)), 0)  # fmt: skip
    label = pc.binary_join_element_wise(_plain(rows["dataset"]), first, "\t")
    codes = pc.dictionary_encode(label).combine_chunks()
    groups = []
    for code in range(len(codes.dictionary)):
        places = pc.indices_nonzero(pc.equal(codes.indices, code)).to_numpy()
        step = max(1, len(places) / limit)
        groups.append([int(places[int(i * step)]) for i in range(min(limit, len(places)))])
    turns = [g[i] for i in range(max(map(len, groups))) for g in groups if i < len(g)]
    return {r["key"]: r for r in rows.take(pa.array(sorted(turns[:limit]))).to_pylist()}


def _details(root: str, wanted: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The full index rows of some keys, joined with their decision and reasons."""
    found = rows_of(root, list(wanted))
    return [{**found[k], "decision": w["decision"], "reasons": w["reasons"]} for k, w in wanted.items() if k in found]


def _some_rejects(folder: str, rejects: pa.Table) -> list[dict[str, Any]]:
    """At most SHOWN_INGEST_REJECTS rejects with their details, a few from every dataset and reason."""
    share: Counter[tuple] = Counter()
    groups = max(1, len(_tally(rejects, "dataset", "reason")))
    most = max(3, SHOWN_INGEST_REJECTS // groups)
    shown: list[dict[str, Any]] = []
    for uri in storage.list_files(folder, ".parquet", recursive=True):
        fs, path = storage.locate(uri)
        for batch in pq.ParquetFile(fs.open_input_file(path)).iter_batches(batch_size=4096):
            for row in batch.to_pylist():
                share[row["dataset"], row["reason"]] += 1
                if share[row["dataset"], row["reason"]] <= most:
                    shown.append(row)
            if len(shown) >= SHOWN_INGEST_REJECTS:
                return shown[:SHOWN_INGEST_REJECTS]
    return shown
