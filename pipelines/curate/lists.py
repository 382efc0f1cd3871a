"""Somebody else's file of rows (CSV, JSON, JSON lines, Parquet or plain text), and which samples its rows mean."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from pipelines.samples import storage
from sama.errors import InputError

IDENTITY = ["key", "upstream_id", "origin_json"]  # index columns by which a row is found
MEMBER = r'"member": ?"(?P<member>[^"]*)"'


def read_rows(uri: str) -> pa.Table:
    """The rows of a list. Plain text is one column `key`. JSON may be a list, or an object with one list in it.

    InputError when it is not there or not readable as what its name says.
    """
    if not storage.exists(uri):
        raise InputError(f"{uri} does not exist")
    data = storage.read_bytes(uri)
    kind = str(uri).rsplit(".", 1)[-1].lower()
    try:
        if kind == "parquet":
            return pq.read_table(pa.BufferReader(data))
        if kind == "csv":
            return pyarrow.csv.read_csv(pa.BufferReader(data))
        text = data.decode("utf-8-sig")
        if kind == "jsonl":
            return _table([json.loads(line) for line in text.splitlines() if line.strip()])
        if kind == "json":
            tree = json.loads(text)
            if isinstance(tree, dict):
                lists = [v for v in tree.values() if isinstance(v, list)]
                tree = lists[0] if len(lists) == 1 else [{"key": k} for k in tree]
            return _table(tree)
    except (pa.ArrowInvalid, ValueError, UnicodeDecodeError, AttributeError) as error:
        raise InputError(f"{uri} is not readable as {kind}: {error}") from None
    return pa.table({"key": pa.array([s.strip() for s in text.splitlines() if s.strip()], pa.string())})


def _table(rows: list) -> pa.Table:
    """Values that are no plain text, number or bool are left out: they name no sample."""
    if rows and not isinstance(rows[0], dict):
        return pa.table({"key": pa.array([str(r) for r in rows], pa.string())})
    names = dict.fromkeys(n for r in rows for n in r)
    columns = {}
    for name in names:
        values = [r.get(name) for r in rows]
        if all(v is None or (isinstance(v, int | float) and not isinstance(v, bool)) for v in values):
            columns[name] = pa.array([None if v is None else float(v) for v in values], pa.float64())
        else:
            columns[name] = pa.array([v if isinstance(v, str) else None if v is None else str(v) for v in values])
    return pa.table(columns) if columns else pa.table({"key": pa.array([], pa.string())})


def matches(index: pa.Table, rows: pa.Table, on: str | None = None) -> np.ndarray:
    """For each of `rows` the row of `index` (columns IDENTITY) that it means, -1 where none or several could be meant.

    on: the column of `rows` that names the sample; without it every text column is tried, in order. A value may be a
    key, an upstream id, a path of a media file, or the file name of either; the whole value goes before the name.
    """
    text = [n for n in rows.column_names if pa.types.is_string(rows.schema.field(n).type) or n == on]
    if on is not None and on not in rows.column_names:
        raise InputError(f"the list has no column {on}; there are {', '.join(rows.column_names)}")
    if not text:
        raise InputError(f"the list has no column of text; there are {', '.join(rows.column_names) or 'none'}")
    member = pc.struct_field(pc.extract_regex(index["origin_json"].cast(pa.string()), MEMBER), "member")
    whole = [index["key"], index["upstream_id"], member]
    found = np.full(rows.num_rows, -1)
    for names in (whole, [_stems(c) for c in whole]):
        for column in [on] if on is not None else text:
            values = rows[column].cast(pa.string())
            values = values if names is whole else _stems(values)
            for name in names:
                hit = _unique(name, values)
                found = np.where(found < 0, hit, found)
    return found


def _stems(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.replace_substring_regex(pc.replace_substring_regex(column, r"^.*[/\\]", ""), r"\.[A-Za-z0-9]{1,5}$", "")


def _unique(names: pa.ChunkedArray, values: pa.ChunkedArray) -> np.ndarray:
    """Where each value stands in `names`, -1 where it does not or stands more than once."""
    encoded = names.combine_chunks().dictionary_encode()
    codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    counts = np.bincount(codes[codes >= 0], minlength=len(encoded.dictionary))
    place = np.full(len(encoded.dictionary) + 1, -1)  # the last is for what is not in the dictionary
    rows = np.flatnonzero(codes >= 0)
    place[codes[rows]] = rows
    place[:-1][counts > 1] = -1
    at = pc.index_in(values.combine_chunks(), value_set=encoded.dictionary, skip_nulls=True).fill_null(-1)
    return place[at.to_numpy(zero_copy_only=False)]
