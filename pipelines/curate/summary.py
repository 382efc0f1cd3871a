"""Counting a selection: the ledger, and the funnel that people read."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.curate.reasons import words
from pipelines.curate.rules import Rules
from pipelines.samples import tables


class Tally:
    """Counts a selection (columns: tables.SELECTION) table by table."""

    def __init__(self, rules: Rules) -> None:
        self.rows = 0
        self.datasets: dict[str, dict[str, Any]] = {}
        self.digest = hashlib.sha256(json.dumps(rules.model_dump(mode="json"), sort_keys=True).encode())

    def add(self, table: pa.Table) -> None:
        """Count the rows of a table; the order of tables and rows is part of the digest."""
        decision = codes_of(table["decision"], tables.DECISIONS)
        dataset, names = words(table["dataset"])
        category, categories = words(table["category"])
        lists = table["reasons"].combine_chunks()
        owner = np.repeat(np.arange(table.num_rows), np.diff(lists.offsets.to_numpy()))  # row of each reason
        reason, reasons = words(pa.chunked_array([lists.flatten()], pa.string()))
        decoded = np.ones(table.num_rows, bool)
        blind = [i for i, r in enumerate(reasons) if r == "no_signals" or str(r).endswith("_failed")]
        decoded[owner[np.isin(reason, blind)]] = False
        self.rows += table.num_rows
        for code, name in enumerate(names):
            mine = dataset == code
            if not mine.any():
                continue
            counts = self.datasets.setdefault(str(name), _nothing())
            counts["in"] += int(mine.sum())
            counts["decoded"] += int((mine & decoded).sum())
            for i, d in enumerate(tables.DECISIONS):
                counts[d] += int((mine & (decision == i)).sum())
            found = np.bincount(reason[mine[owner]], minlength=len(reasons))
            for at in np.flatnonzero(found):
                why = str(reasons[at])
                counts["reasons"][why] = counts["reasons"].get(why, 0) + int(found[at])
            for i, c in enumerate(categories):
                if (here := mine & (category == i)).any():
                    one = counts["categories"].setdefault(str(c), {"in": 0, "kept": 0})
                    one["in"] += int(here.sum())
                    one["kept"] += int((here & (decision == 0)).sum())
        _digest(self.digest, table, decision)

    def result(self) -> dict[str, Any]:
        """{"schema", "digest": sha256 over the rules and the kept rows, "rows", "decisions": {name: n}, "datasets":
        {dataset: {"in", "decoded", "kept", "rejected", "failed", "unscored", "reasons": {reason: n},
        "categories": {category: {"in", "kept"}}}}}. A row with two reasons counts under both."""
        datasets = dict(sorted(self.datasets.items()))
        for counts in datasets.values():
            counts["reasons"] = dict(sorted(counts["reasons"].items(), key=lambda pair: (-pair[1], pair[0])))
        summary = {
            "schema": "sama.selection_summary/1",
            "digest": self.digest.hexdigest(),
            "rows": self.rows,
            "decisions": {d: sum(s[d] for s in datasets.values()) for d in tables.DECISIONS},
            "datasets": datasets,
        }
        check_ledger(summary, self.rows)
        return summary


def summarise(table: pa.Table, index_rows: int, rules: Rules) -> dict[str, Any]:
    """The counts of one table, see `Tally.result`.

    AssertionError when kept + rejected + failed + unscored is not the index: the ledger must add up.
    """
    tally = Tally(rules)
    tally.add(table)
    summary = tally.result()
    check_ledger(summary, index_rows)
    return summary


def _nothing() -> dict[str, Any]:
    return {"in": 0, "decoded": 0, **dict.fromkeys(tables.DECISIONS, 0), "reasons": {}, "categories": {}}


def check_ledger(summary: dict[str, Any], index_rows: int) -> None:
    """AssertionError unless every index row was decided on exactly once, in total and per dataset."""
    for name, counts in summary["datasets"].items():
        if sum(counts[d] for d in tables.DECISIONS) != counts["in"]:
            raise AssertionError(f"the decisions on {name} do not add up: {counts}")
    total = sum(summary["decisions"].values())
    if not total == summary["rows"] == index_rows == sum(s["in"] for s in summary["datasets"].values()):
        raise AssertionError(f"{summary['decisions']} do not add up to {index_rows} index rows")


def funnel(summary: dict[str, Any]) -> str:
    """The counts as a plain text table: datasets across; in, decoded, each reason, and what is left."""
    datasets = summary["datasets"]
    totals: dict[str, int] = {}
    for counts in datasets.values():
        for reason, n in counts["reasons"].items():
            totals[reason] = totals.get(reason, 0) + n
    lines = [["", *datasets, "all"]]
    for name in ("in", "decoded"):
        row = [counts[name] for counts in datasets.values()]
        lines.append([name, *map(str, row), str(sum(row))])
    for reason in sorted(totals, key=lambda r: (-totals[r], r)):
        row = [counts["reasons"].get(reason, 0) for counts in datasets.values()]
        lines.append([f"- {reason}", *(str(n) if n else "." for n in row), str(sum(row))])
    for name in tables.DECISIONS:
        row = [counts[name] for counts in datasets.values()]
        lines.append([name, *map(str, row), str(sum(row))])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    text = [
        "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))])
        for line in lines
    ]
    note = "a row with several reasons counts under each; kept + rejected + failed + unscored = in"
    return "\n".join([*text, f"({note})"])


def codes_of(column: pa.ChunkedArray, values: tuple[str, ...]) -> np.ndarray:
    """A dictionary column as positions in `values`."""
    codes, names = words(column)
    place = np.array([values.index(str(n)) for n in names] or [0])
    return place[codes]


def _digest(digest: Any, table: pa.Table, decision: np.ndarray) -> None:
    for chunk in table["sample_digest"].filter(pa.array(decision == 0)).chunks:
        data = chunk.buffers()[1]
        if data is not None:
            digest.update(memoryview(data)[chunk.offset * 32 : (chunk.offset + len(chunk)) * 32])
