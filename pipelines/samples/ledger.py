"""The ledger: every row of a manifest is in the index or among the rejects, exactly once."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pyarrow.parquet as pq

from pipelines.samples import provenance, storage, tables
from pipelines.samples.index import datasets_of


class LedgerError(Exception):
    """A dataset's rows do not add up."""


def ledger(root: str, check: bool = True) -> dict[str, dict[str, Any]]:
    """Per dataset: manifest_rows, index, rejects, by_reason (reason -> rows), unaccounted, complete.

    manifest_rows is what ingest counted while reading the manifests. LedgerError when a finished ingest
    does not add up, or an unfinished one has more rows than its manifests; `check=False` only reports.
    """
    book = {}
    for dataset in datasets_of(root):
        folder = storage.join(root, "index", dataset)
        facts = provenance.read(folder) or {}
        manifests = facts.get("counts", {}).get("manifests", {})
        rows = sum(manifests.values())
        index = sum(_rows(uri) for uri in storage.list_files(folder, ".parquet"))
        rejects = storage.read_parts(storage.join(root, "rejects", dataset), tables.REJECTS, ["reason"])
        reasons = Counter(rejects.column("reason").to_pylist())
        left = rows - index - rejects.num_rows
        complete = facts.get("end") is not None
        book[dataset] = {
            "manifest_rows": rows,
            "index": index,
            "rejects": rejects.num_rows,
            "by_reason": dict(sorted(reasons.items())),
            "unaccounted": left,
            "complete": complete,
        }
        if check and (left < 0 or (complete and left)):
            raise LedgerError(
                f"{dataset}: {rows} manifest rows, but {index} in the index and {rejects.num_rows} rejects"
            )
    return book


def _rows(uri: str) -> int:
    fs, path = storage.locate(uri)
    with fs.open_input_file(path) as file:
        return pq.ParquetFile(file).metadata.num_rows
