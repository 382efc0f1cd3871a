"""Scores that others gave (a person, another judge), made usable in rules, and how far two judges agree."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.curate import by_digest, lists
from pipelines.curate.rules import PAPER_VIDEO, SCORES
from pipelines.samples import storage, tables
from pipelines.samples.index import datasets_of, read_index, scan_index
from sama.errors import InputError


def join(root: str, uri: str, on: str, name: str) -> dict[str, int]:
    """Append the numeric columns of a file to ROOT/scores/<name>, as `<name>_<column>` by sample digest.

    on: the file's column that names the sample (key, upstream id, path: see `lists.matches`). Rules use the columns
    under `joined`. The newest value of a sample counts. The result: {"rows", "matched", "unmatched"}.
    InputError when no row means a sample or there is no number.
    """
    if not name.replace("_", "a").replace("-", "a").isalnum():
        raise InputError(f"{name!r} is no name for scores: use letters, digits, '-' and '_'")
    rows = lists.read_rows(uri)
    index = read_index(root, None, [*lists.IDENTITY, "sample_digest"])
    found = lists.matches(index, rows, on)
    there = np.flatnonzero(found >= 0)
    if not len(there):
        raise InputError(f"no row of {uri} names a sample of {root} in its column {on}")
    columns: dict[str, Any] = {"sample_digest": index["sample_digest"].take(pa.array(found[there]))}
    for field in rows.schema:
        number = pa.types.is_integer(field.type) or pa.types.is_floating(field.type) or pa.types.is_boolean(field.type)
        if number and field.name != on:
            values = rows[field.name].take(pa.array(there)).cast(pa.float64())
            columns[f"{name}_{field.name}"] = values.cast(pa.float32())
    if len(columns) == 1:
        raise InputError(f"{uri} has no column of numbers; there are {', '.join(rows.column_names)}")
    columns["created_at"] = pa.array([datetime.now(UTC)] * len(there), tables.TIME)
    storage.write_part(storage.join(root, "scores", name), pa.table(columns))
    return {"rows": rows.num_rows, "matched": len(there), "unmatched": rows.num_rows - len(there)}


def compare(root: str, one: str, two: str) -> list[dict[str, Any]]:
    """How far two judges agree, per score: judge ids, or names of joined scores (`human` for human_visual_quality …).

    {"score", "samples" scored by both, "mean_one", "mean_two", "mean_difference" (absolute), "within_one" (share),
    "correlation" (Pearson), "same_decision" (share on the same side of the paper's threshold for videos)}.
    InputError when one of them has no scores.
    """
    columns: list[dict[str, list[np.ndarray]]] = [{}, {}]
    for dataset in datasets_of(root):
        found = [by_digest.keys_of(t["sample_digest"]) for t in scan_index(root, dataset, ["sample_digest"])]
        if not found:
            continue
        keys = np.concatenate(found)
        for who, into in zip((one, two), columns, strict=True):
            for score, values in _scores(root, dataset, keys, who).items():
                into.setdefault(score, []).append(values)
    whole = [{s: np.concatenate(v) for s, v in c.items()} for c in columns]
    for who, mine in zip((one, two), whole, strict=True):
        if not any(np.isfinite(v).any() for v in mine.values()):
            raise InputError(f"{root} has no scores of {who}")
    return [_agreement(s, whole[0][s], whole[1][s]) for s in SCORES if s in whole[0] and s in whole[1]]


def _scores(root: str, dataset: str, keys: np.ndarray, who: str) -> dict[str, np.ndarray]:
    if who in storage.list_folders(storage.join(root, "scores")):
        found = by_digest.foreign(root, who)
        return {s: c.at(c.places(keys))[f"{who}_{s}"] for s in SCORES if (c := found.get(f"{who}_{s}")) is not None}
    table = by_digest.scores(root, dataset, keys, who)
    rows = table.at(table.places(keys))
    return {s: rows[f"{s}_mean"] for s in SCORES}


def _agreement(score: str, one: np.ndarray, two: np.ndarray) -> dict[str, Any]:
    both = np.isfinite(one) & np.isfinite(two)
    a, b, least = one[both], two[both], PAPER_VIDEO[score]
    if not len(a):
        return {"score": score, "samples": 0}
    varied = len(a) > 1 and a.std() > 0 and b.std() > 0
    return {
        "score": score, "samples": len(a), "mean_one": float(a.mean()), "mean_two": float(b.mean()),
        "mean_difference": float(np.abs(a - b).mean()), "within_one": float((np.abs(a - b) <= 1).mean()),
        "correlation": float(np.corrcoef(a, b)[0, 1]) if varied else None,
        "same_decision": float(((a >= least) == (b >= least)).mean()),
    }  # fmt: skip


def told(rows: list[dict[str, Any]], one: str, two: str) -> str:
    """The agreement as a plain text table."""
    lines = [f"{'score':24} samples  {one[:12]:>12}  {two[:12]:>12}  difference  within 1  correlation  same decision"]
    for r in rows:
        if not r["samples"]:
            lines.append(f"{r['score']:24} {0:7}")
            continue
        correlation = "-" if r["correlation"] is None else f"{r['correlation']:.2f}"
        lines.append(
            f"{r['score']:24} {r['samples']:7}  {r['mean_one']:12.2f}  {r['mean_two']:12.2f}"
            f"  {r['mean_difference']:10.2f}  {r['within_one']:8.0%}  {correlation:>11}  {r['same_decision']:13.0%}"
        )
    return "\n".join(lines)
