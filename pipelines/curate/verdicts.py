"""The verdict view: everything known of each sample, the newest signals joined with a judge's mean scores.

It is rebuilt from the append-only tables whenever it is asked for; nothing here is stored.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.curate.rules import SCORES
from pipelines.curate.signals import SIGNALS_VERSION
from pipelines.samples import storage, tables

KEYS = ("sample_digest", "signals_version", "status", "created_at")
JUDGEMENTS = pa.schema(
    [("sample_digest", tables.DIGEST), ("judge_id", pa.string()), ("turn", pa.int8()), ("status", pa.string())]
    + [(s, pa.int8()) for s in SCORES]
)  # the columns read here of ROOT/judgements


def signals_of(root: str, columns: list[str] | None = None) -> pa.Table:
    """The newest row of every sample digest under the current signals version (columns of tables.SIGNALS)."""
    names = [n for n in tables.SIGNALS.names if columns is None or n in columns or n in KEYS]
    table = storage.read_parts(storage.join(root, "signals"), tables.SIGNALS, names)
    table = table.filter(pc.equal(table["signals_version"], pa.scalar(SIGNALS_VERSION, pa.int16())))
    order = pc.sort_indices(table, [("created_at", "descending")])
    table = table.take(order)
    return table.take(first_of_each(table["sample_digest"]))


def scores_of(root: str, judge_id: str) -> pa.Table:
    """sample_digest, and per score `_mean _std _turns`, over the answers of one judge that could be read."""
    table = storage.read_parts(storage.join(root, "judgements"), JUDGEMENTS)
    table = table.filter(pc.and_(pc.equal(table["judge_id"], judge_id), pc.equal(table["status"], "ok")))
    # one prompt does not answer for every score, so each score counts its own answers
    wanted = [(s, how) for s in SCORES for how in ("mean", "stddev", "count")]
    grouped = table.group_by("sample_digest").aggregate(wanted)
    names = {f"{s}_stddev": f"{s}_std" for s in SCORES} | {f"{s}_count": f"{s}_turns" for s in SCORES}
    return grouped.rename_columns([names.get(n, n) for n in grouped.column_names])


def verdicts(
    root: str, digests: pa.ChunkedArray, judge_id: str | None = None, columns: list[str] | None = None
) -> pa.Table:
    """One row for each sample digest, in that order: the signals, and the judge's scores when one is named.

    A sample without a signals row has null in `status` and in every signal.
    """
    table = join(digests, signals_of(root, columns))
    if judge_id is not None:
        scores = join(digests, scores_of(root, judge_id))
        for name in scores.column_names:
            if name != "sample_digest":
                table = table.append_column(name, scores[name])
    return table


def join(digests: pa.ChunkedArray, table: pa.Table) -> pa.Table:
    """The row of `table` for each digest, null where there is none (pyarrow's own join takes no list columns)."""
    where = pc.index_in(digests.combine_chunks(), value_set=table["sample_digest"].combine_chunks())
    if not len(table):  # take needs at least the schema's types
        return pa.table({f.name: pa.nulls(len(where), f.type) for f in table.schema}, schema=table.schema)
    return table.take(where)


def first_of_each(values: pa.ChunkedArray) -> pa.Array:
    """Positions of the first occurrence of each value, in order."""
    codes = values.combine_chunks().dictionary_encode().indices.to_numpy()
    return pa.array(np.sort(np.unique(codes, return_index=True)[1]))
