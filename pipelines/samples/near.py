"""Near-duplicates: footage that is the same although its bytes differ. `sama curate` writes the table."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.samples import storage, tables

NAME = "near_duplicates.parquet"
MADE_FROM = b"sama.near.made_from"  # digest of what the table was made from, in the file's metadata


def read(root: str) -> pa.Table:
    """ROOT/near_duplicates.parquet, columns tables.NEAR: a row for each source_group with a near-duplicate.

    near_group: the smallest source_group of its group; bits: how far the nearest other member is, of 64 bits a frame;
    samples: index rows of it; heldout: whether they are held out. An absent table is empty.
    """
    uri = storage.join(root, NAME)
    if not storage.exists(uri):
        return tables.NEAR.empty_table()
    return storage.read_part(uri, tables.NEAR)


def write(root: str, table: pa.Table, made_from: str) -> None:
    """Replace the table whole."""
    sink = pa.BufferOutputStream()
    pq.write_table(table.cast(tables.NEAR).replace_schema_metadata({MADE_FROM: made_from.encode()}), sink)
    storage.write_bytes(storage.join(root, NAME), sink.getvalue().to_pybytes())


def made_from(root: str) -> str | None:
    """What was given to `write`; None without a table."""
    uri = storage.join(root, NAME)
    if not storage.exists(uri):
        return None
    fs, path = storage.locate(uri)
    return (pq.read_schema(path, filesystem=fs).metadata or {}).get(MADE_FROM, b"").decode()


def beside_heldout(table: pa.Table) -> pa.Array:
    """The source_groups (int64, ascending) that are not held out although a near-duplicate of theirs is."""
    held = pc.unique(table.filter(table["heldout"])["near_group"])
    leaks = pc.and_(pc.invert(table["heldout"]), pc.is_in(table["near_group"], value_set=held))
    return pa.array(np.sort(table.filter(leaks)["source_group"].to_numpy()))


def with_relatives(blocklist: pa.Table, table: pa.Table) -> pa.Table:
    """A blocklist (tables.BLOCKLIST) with a row for every near-duplicate of its source_groups."""
    groups = blocklist["source_group"].drop_null().combine_chunks()
    mine = pc.unique(table.filter(pc.is_in(table["source_group"], value_set=groups))["near_group"])
    more = table.filter(pc.is_in(table["near_group"], value_set=mine))["source_group"]
    more = more.filter(pc.invert(pc.is_in(more, value_set=groups)))
    if not len(more):
        return blocklist
    rows = pa.table({"source_group": more, "reason": pa.array(["near_duplicate"] * len(more))})
    return pa.concat_tables([blocklist, rows], promote_options="default").cast(tables.BLOCKLIST)
