"""The index of a data root: which samples there are, and where their bytes lie."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.samples import storage, tables
from sama.errors import InputError

ROOT_SCHEMA = "sama.root/1"
_ROOT_KEY = b"sama.root"


def open_root(root: str, heldout_share: float | None = None) -> float:
    """The held-out share of a data root.

    With `heldout_share` given a new root is made with it, and an old one must agree (InputError), because
    a share that changed would move held-out footage into training.
    """
    uri = storage.join(root, "root.json")
    if storage.exists(uri):
        try:
            known = json.loads(storage.read_bytes(uri))
            share, schema = float(known["heldout_share"]), known["schema"]
        except (ValueError, KeyError, TypeError):
            raise InputError(f"{uri} is not a readable description of a data root") from None
        if schema != ROOT_SCHEMA:
            raise InputError(f"{uri} is of schema {schema}, this version reads {ROOT_SCHEMA}")
        if heldout_share is not None and heldout_share != share:
            raise InputError(
                f"{root} was made with a held-out share of {share:g} and keeps it for good, {heldout_share:g} was asked"
            )
        return share
    if heldout_share is None:
        raise InputError(f"{root} is not a data root: there is no root.json; `sama ingest` makes one")
    if not 0 <= heldout_share < 1:
        raise InputError(f"the held-out share must be at least 0 and below 1, not {heldout_share:g}")
    storage.write_bytes(uri, json.dumps({"schema": ROOT_SCHEMA, "heldout_share": heldout_share}) + "\n")
    return heldout_share


def datasets_of(root: str) -> list[str]:
    """Names of the datasets that have an index or rejects, in order. InputError when `root` is no data root."""
    open_root(root)
    names = set(storage.list_folders(storage.join(root, "index")))
    return sorted(names | set(storage.list_folders(storage.join(root, "rejects"))))


def write_index(root: str, dataset: str, rows: list[dict[str, Any]], name: str) -> str:
    """Append a part to a dataset's index (an empty one too: it marks a finished chunk); the URI written."""
    table = pa.Table.from_pylist(rows, schema=tables.INDEX)
    table = table.replace_schema_metadata({_ROOT_KEY: storage.absolute(root).encode()})
    return storage.write_part(storage.join(root, "index", dataset), table, name)


def write_rejects(root: str, dataset: str, rows: list[dict[str, Any]], name: str) -> str:
    """Append a part to a dataset's rejects; the URI written."""
    unknown = {r["reason"] for r in rows} - set(tables.REJECT_REASONS)
    if unknown:
        raise ValueError(f"{sorted(unknown)} is not in the closed list of reject reasons")
    table = pa.Table.from_pylist(rows, schema=tables.REJECTS)
    return storage.write_part(storage.join(root, "rejects", dataset), table, name)


def read_index(root: str, datasets: Sequence[str] | None = None, columns: Sequence[str] | None = None) -> pa.Table:
    """The index rows of a root in a fixed order (dataset, part, row); `columns` of `tables.INDEX` or all.

    URIs of shards below a root that was moved since are given at its present place.
    InputError for an unknown dataset or a folder that is no data root.
    """
    known = datasets_of(root)
    for name in datasets or ():
        if name not in known:
            raise InputError(f"{root} has no dataset {name}; there are {', '.join(known) or 'none'}")
    wanted = pa.schema([tables.INDEX.field(n) for n in columns or tables.INDEX.names])
    parts = []
    for name in sorted(set(datasets)) if datasets is not None else known:
        for uri in storage.list_files(storage.join(root, "index", name), ".parquet"):
            parts.append(_read_part(uri, wanted, storage.absolute(root)))
    return pa.concat_tables(parts).unify_dictionaries() if parts else wanted.empty_table()


def scan_index(root: str, dataset: str, columns: Sequence[str], rows: int = 1 << 17) -> Iterator[pa.Table]:
    """The rows of a dataset in the order of `read_index`, at most `rows` at a time, so that any index fits in memory.

    InputError for an unknown dataset or a folder that is no data root.
    """
    known = datasets_of(root)
    if dataset not in known:
        raise InputError(f"{root} has no dataset {dataset}; there are {', '.join(known) or 'none'}")
    wanted = pa.schema([tables.INDEX.field(n) for n in columns])
    here = storage.absolute(root)
    for uri in storage.list_files(storage.join(root, "index", dataset), ".parquet"):
        for table, metadata in storage.scan_part(uri, wanted, rows):
            made_at = metadata.get(_ROOT_KEY, here.encode()).decode()
            yield table if made_at == here else _moved(table, made_at, here)


def count_rows(root: str, dataset: str) -> list[int]:
    """Rows of each part of a dataset's index, from the files' footers."""
    places = [storage.locate(uri) for uri in storage.list_files(storage.join(root, "index", dataset), ".parquet")]
    return [pq.read_metadata(path, filesystem=fs).num_rows for fs, path in places]


def _read_part(uri: str, wanted: pa.Schema, root: str) -> pa.Table:
    fs, path = storage.locate(uri)
    made_at = (pq.read_schema(path, filesystem=fs).metadata or {}).get(_ROOT_KEY, root.encode()).decode()
    table = storage.read_part(uri, wanted).replace_schema_metadata(None)
    return table if made_at == root else _moved(table, made_at, root)


def _moved(table: pa.Table, old: str, new: str) -> pa.Table:
    for i, field in enumerate(table.schema):
        if not field.name.endswith("_uri"):
            continue
        column = table.column(i).combine_chunks()
        words = column.dictionary
        inside = pc.starts_with(words, pattern=f"{old}/")
        moved = pc.binary_replace_slice(words, start=0, stop=len(old.encode()), replacement=new)
        there = pa.DictionaryArray.from_arrays(column.indices, pc.if_else(inside, moved, words))
        table = table.set_column(i, field, there.cast(field.type))
    return table


def media_of(row: dict[str, Any], side: str) -> bytes:
    """The bytes of a row's "source" or "target", read by range. InputError when the row has no such side."""
    uri = row[f"{side}_uri"]
    if uri is None:
        raise InputError(f"sample {row.get('key')} has no {side}")
    return storage.read_range(uri, row[f"{side}_offset"], row[f"{side}_size"])


def facts_of(row: dict[str, Any]) -> dict[str, Any]:
    """The sample's JSON as it lies in its shard, read by range."""
    return json.loads(storage.read_range(row["json_uri"], row["json_offset"], row["json_size"]))


def read_rejects(root: str, datasets: Sequence[str] | None = None) -> pa.Table:
    """All rejects of a root, `tables.REJECTS`."""
    names = datasets_of(root) if datasets is None else datasets
    parts = [storage.read_parts(storage.join(root, "rejects", n), tables.REJECTS) for n in names]
    return pa.concat_tables(parts).unify_dictionaries() if parts else tables.REJECTS.empty_table()


def rows_of(root: str, keys: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Whole index rows by key; unknown keys are left out. One part at a time is in memory."""
    found: dict[str, dict[str, Any]] = {}
    wanted = pa.array(sorted(set(keys)), pa.string())
    for name in datasets_of(root) if len(wanted) else []:
        for uri in storage.list_files(storage.join(root, "index", name), ".parquet"):
            fs, path = storage.locate(uri)
            with fs.open_input_file(path) as file:
                mask = pc.is_in(pq.read_table(file, columns=["key"])["key"], value_set=wanted)
            if pc.any(mask).as_py():
                part = _read_part(uri, tables.INDEX, storage.absolute(root))
                found |= {row["key"]: row for row in part.filter(mask).to_pylist()}
    return found
