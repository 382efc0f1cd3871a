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


def summarise(table: pa.Table, index_rows: int, rules: Rules) -> dict[str, Any]:
    """Counts of a selection (columns: tables.SELECTION).

    {"schema", "digest": sha256 over the rules and the kept rows, "rows", "decisions": {name: n}, "datasets":
    {dataset: {"in", "decoded", "kept", "rejected", "failed", "unscored", "reasons": {reason: n},
    "categories": {category: {"in", "kept"}}}}}. A row with two reasons counts under both.
    AssertionError when kept + rejected + failed + unscored is not the index: the ledger must add up.
    """
    decision = codes_of(table["decision"], tables.DECISIONS)
    dataset, names = words(table["dataset"])
    category, categories = words(table["category"])
    lists = table["reasons"].combine_chunks()
    owner = np.repeat(np.arange(table.num_rows), np.diff(lists.offsets.to_numpy()))  # row of each reason
    reason, reasons = words(pa.chunked_array([lists.flatten()], pa.string()))
    decoded = np.ones(table.num_rows, bool)
    blind = [i for i, r in enumerate(reasons) if r == "no_signals" or str(r).endswith("_failed")]
    decoded[owner[np.isin(reason, blind)]] = False
    datasets: dict[str, Any] = {}
    for code, name in sorted(enumerate(names), key=lambda pair: str(pair[1])):
        mine = dataset == code
        found = np.bincount(reason[mine[owner]], minlength=len(reasons))
        datasets[str(name)] = {
            "in": int(mine.sum()),
            "decoded": int((mine & decoded).sum()),
            **{d: int((mine & (decision == i)).sum()) for i, d in enumerate(tables.DECISIONS)},
            "reasons": {str(reasons[i]): int(found[i]) for i in np.argsort(-found, kind="stable") if found[i]},
            "categories": {
                str(c): {"in": int(here.sum()), "kept": int((here & (decision == 0)).sum())}
                for i, c in enumerate(categories)
                if (here := mine & (category == i)).any()
            },
        }
    summary = {
        "schema": "sama.selection_summary/1",
        "digest": _digest(table, decision, rules),
        "rows": table.num_rows,
        "decisions": {d: sum(s[d] for s in datasets.values()) for d in tables.DECISIONS},
        "datasets": datasets,
    }
    check_ledger(summary, index_rows)
    return summary


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


def _digest(table: pa.Table, decision: np.ndarray, rules: Rules) -> str:
    digest = hashlib.sha256(json.dumps(rules.model_dump(mode="json"), sort_keys=True).encode())
    for chunk in table["sample_digest"].filter(pa.array(decision == 0)).chunks:
        data = chunk.buffers()[1]
        if data is not None:
            digest.update(memoryview(data)[chunk.offset * 32 : (chunk.offset + len(chunk)) * 32])
    return digest.hexdigest()
