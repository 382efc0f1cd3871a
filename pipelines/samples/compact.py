"""Merging the many small parts of a table: with a minute of work to a part, large roots have too many to open."""

from __future__ import annotations

import hashlib
import json

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.samples import storage

SMALL = 4 << 20  # bytes below which a part is small
FEW = 64  # small parts that may lie beside each other
ROWS = 250_000  # rows of a merged part
MERGED = b"sama.merged"  # the names of the parts in it, in a merged part's metadata
PREFIX = "part-merged-"


def compact(folder: str, few: int = FEW) -> int:
    """Merge the small parts of one folder once there are `few` of them; how many were merged away.

    A merged part is there, whole, before the parts in it go, and names them: a job killed in between leaves rows
    twice, which readers stand, until the next call removes the rest. Two jobs may do it at once. Readers go through
    `storage.each_part`, which finds merged rows in their new place.
    """
    sizes = storage.list_sizes(folder, ".parquet")
    small = [uri for uri, size in sizes.items() if size < SMALL]
    if len(small) < few:
        return 0
    left = {name for uri in sizes if storage.name_of(uri).startswith(PREFIX) for name in _names_in(uri)}
    for uri in [u for u in small if storage.name_of(u) in left]:
        storage.remove(uri)
    merged, batch, rows = 0, [], 0
    small = [u for u in small if storage.name_of(u) not in left]
    for place, uri in enumerate(small):
        try:
            table = storage.read_table(uri)
        except FileNotFoundError:  # another job merges them
            return merged
        batch.append((uri, table))
        rows += table.num_rows
        if rows >= ROWS or place == len(small) - 1:
            merged += _merge(folder, batch) if len(batch) > 1 else 0
            batch, rows = [], 0
    return merged


def _merge(folder: str, batch: list[tuple[str, pa.Table]]) -> int:
    names = [storage.name_of(uri) for uri, _ in batch]
    whole = pa.concat_tables([t.replace_schema_metadata(None) for _, t in batch], promote_options="default")
    whole = whole.unify_dictionaries().replace_schema_metadata({MERGED: json.dumps(names).encode()})
    digest = hashlib.sha256("\n".join(names).encode()).hexdigest()[:24]
    storage.write_part(folder, whole, f"{PREFIX.removeprefix('part-')}{digest}")
    for uri, _ in batch:
        storage.remove(uri)
    return len(batch)


def _names_in(uri: str) -> list[str]:
    fs, path = storage.locate(uri)
    try:
        return json.loads((pq.read_schema(path, filesystem=fs).metadata or {}).get(MERGED, b"[]"))
    except FileNotFoundError:
        return []
