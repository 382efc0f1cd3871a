"""Captions that `sama curate --caption` wrote, for clips that came without one."""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.samples import storage, tables

COLUMNS = ["target_sha256", "status", "caption", "created_at"]


def read_captions(root: str) -> pa.Table:
    """target_sha256 and caption: the newest one of each clip."""
    table = storage.read_parts(storage.join(root, "captions"), tables.CAPTIONS, COLUMNS)
    table = table.filter(pc.equal(table["status"].cast(pa.string()), "ok"))
    table = table.take(pc.sort_indices(table, [("created_at", "descending"), ("caption", "ascending")]))
    codes = table["target_sha256"].combine_chunks().dictionary_encode().indices.to_numpy()
    first = np.sort(np.unique(codes, return_index=True)[1])
    return table.take(pa.array(first)).select(["target_sha256", "caption"])


def fill(rows: pa.Table, captions: pa.Table) -> tuple[pa.Table, np.ndarray]:
    """Index rows with a caption wherever a captioned clip had none, and which rows those are.

    A caption that came with the data stays: somebody wrote it.
    """
    none = np.zeros(rows.num_rows, bool)
    if not captions.num_rows:
        return rows, none
    own = rows["caption"].combine_chunks()
    empty = pc.equal(pc.utf8_trim_whitespace(pc.fill_null(own, "")), "")
    clips = pc.fill_null(pc.equal(rows["kind"].cast(pa.string()).combine_chunks(), "text_to_video"), False)
    place = pc.index_in(rows["target_sha256"].combine_chunks(), value_set=captions["target_sha256"].combine_chunks())
    filled = pc.and_(pc.and_(empty, clips), pc.is_valid(place))
    found = captions["caption"].combine_chunks().take(place).cast(own.type)
    at = rows.schema.get_field_index("caption")
    rows = rows.set_column(at, rows.schema.field(at), pc.if_else(filled, found, own))
    return rows, np.asarray(filled.to_numpy(zero_copy_only=False))


def digest(rows: pa.Table) -> int:
    """A number below 2**256 for captions in use; those of two tables add up, in any order (mod 2**256)."""
    total = 0
    for clip, caption in zip(rows["target_sha256"].to_pylist(), rows["caption"].to_pylist(), strict=True):
        total += int.from_bytes(hashlib.sha256(clip + (caption or "").encode()).digest(), "big")
    return total % 2**256
