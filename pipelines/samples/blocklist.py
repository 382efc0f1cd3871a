"""ROOT/blocklist.parquet: footage that may not be used, obeyed by select, by the judge and by the plan."""

from __future__ import annotations

import functools
import hashlib

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.samples import near, storage, tables
from sama.errors import InputError

NAMING = ("sha256", "source_group", "source_url")  # the columns that name what is blocked


def read(root: str) -> pa.Table:
    """Columns: tables.BLOCKLIST; an absent file is an empty list, an absent column names nothing.

    InputError for a file that names nothing at all: a takedown must not be lost to a misspelt column.
    """
    uri = storage.join(root, "blocklist.parquet")
    if not storage.exists(uri):
        return tables.BLOCKLIST.empty_table()
    try:
        table = storage.read_part(uri, tables.BLOCKLIST)
    except pa.ArrowInvalid as error:
        raise InputError(f"{uri} is not a blocklist: {str(error).splitlines()[0]}") from None
    named = functools.reduce(pc.or_, (table[name].is_valid() for name in NAMING))
    silent = table.num_rows - (pc.sum(named).as_py() or 0)
    if silent:
        raise InputError(
            f"{uri} is not a blocklist: {silent} of its rows name no {', '.join(NAMING[:2])} or {NAMING[2]}"
        )
    return table


def with_relatives(root: str) -> pa.Table:
    """As `read`, with the near-duplicates of the footage that is named."""
    return near.with_relatives(read(root), near.read(root))


def digest(listed: pa.Table) -> str:
    """sha256 (hex) of all that a list names, empty for an empty one."""
    names = sorted(str(v) for c in NAMING for v in listed[c].to_pylist() if v is not None)
    return hashlib.sha256("\n".join(names).encode()).hexdigest() if names else ""
