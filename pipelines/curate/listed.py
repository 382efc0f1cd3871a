"""A selection that somebody else made: a list of samples, for example the authors' filtered metadata."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
import pyarrow as pa
import yaml

from pipelines.curate import lists, select
from pipelines.curate.rules import Rules
from pipelines.curate.summary import Tally
from pipelines.samples import blocklist, provenance, storage, tables
from pipelines.samples.index import read_index
from sama.errors import InputError

COLUMNS = [
    "key",
    "sample_digest",
    "dataset",
    "category",
    "source_group",
    "source_sha256",
    "target_sha256",
    "source_url",
]


def select_list(root: str, name: str, uri: str, on: str | None = None) -> dict[str, Any]:
    """Freeze ROOT/selections/<name>: kept is what the list means and the blocklist allows, the rest is not_listed.

    on: the list's column that names the sample; without it every text column is tried (see `lists.matches`).
    The summary is that of `summary.Tally`, with `list`: {"uri", "sha256", "rows", "matched", "unmatched",
    "examples" of unmatched rows}. InputError when the list is not readable, means no sample at all, or the name is
    taken by another selection.
    """
    folder = select.selection_folder(root, name)
    rows = lists.read_rows(uri)
    document: dict[str, Any] = {
        "schema": "sama.selection/1", "name": name,
        "list": {"uri": str(uri), "sha256": hashlib.sha256(storage.read_bytes(uri)).hexdigest(), "on": on},
    }  # fmt: skip
    if storage.exists(storage.join(folder, "summary.json")):
        before = yaml.safe_load(storage.read_bytes(storage.join(folder, "selection.yaml")))
        if (before.get("list") or {}).get("sha256") != document["list"]["sha256"]:
            raise InputError(f"selection {name} is frozen and was made from something else; choose another name")
        return select.read_summary(root, name)
    began = provenance.now()
    index = read_index(root, None, list(dict.fromkeys([*COLUMNS, *lists.IDENTITY])))
    found = lists.matches(index, rows, on)
    unmatched = np.flatnonzero(found < 0)
    if len(unmatched) == rows.num_rows:
        raise InputError(f"none of the {rows.num_rows} rows of {uri} names a sample of {root}")
    table = _decided(index, found[found >= 0], select.blocked(index, blocklist.with_relatives(root)))
    with storage.open_table(storage.join(folder, "selection.parquet"), tables.SELECTION, ["sample_digest"]) as writer:
        writer.write_table(table)
    tally = Tally(Rules())
    tally.add(table)
    summary = tally.result()
    summary["list"] = document["list"] | {
        "rows": rows.num_rows, "matched": rows.num_rows - len(unmatched), "unmatched": len(unmatched),
        "examples": [str(next(iter(r.values()), "")) for r in rows.take(pa.array(unmatched[:10])).to_pylist()],
    }  # fmt: skip
    document["digest"] = summary["digest"]
    storage.write_bytes(storage.join(folder, "selection.yaml"), yaml.safe_dump(document, sort_keys=False))
    inputs = {"index_rows": index.num_rows, "list": document["list"]["sha256"]}
    provenance.record(folder, "sama select", document["list"], summary["decisions"], inputs, began, provenance.now())
    storage.write_bytes(storage.join(folder, "summary.json"), json.dumps(summary, indent=1))
    return summary


def _decided(index: pa.Table, listed: np.ndarray, blocked: np.ndarray) -> pa.Table:
    kept = np.zeros(index.num_rows, bool)
    kept[listed] = True
    codes = np.where(blocked, 2, np.where(kept, 0, 1))
    reasons = pa.array([[], ["not_listed"], ["blocklisted"]], pa.list_(pa.string())).take(pa.array(codes))
    decision = pa.array(["kept", "rejected", "rejected"]).take(pa.array(codes))
    columns = {"key": index["key"], "sample_digest": index["sample_digest"], "decision": decision}
    columns |= {"reasons": reasons, "dataset": index["dataset"], "category": index["category"]}
    return pa.table(columns).cast(tables.SELECTION)
