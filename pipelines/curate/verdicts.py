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
    [("sample_digest", tables.DIGEST), ("judge_id", pa.string()), ("prompt_id", pa.string()), ("turn", pa.int8())]
    + [("status", pa.string()), ("created_at", tables.TIME)]
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
    """One judge's verdict on each sample that it was asked about.

    sample_digest; status: scored (every answer could be read), partial, failed (none could); and per score `_mean
    _std _turns` over the answers that could be read. Of several answers to one prompt's turn the newest counts.
    """
    table = storage.read_parts(storage.join(root, "judgements"), JUDGEMENTS)
    table = table.filter(pc.equal(table["judge_id"], judge_id)).sort_by([("created_at", "descending")])
    turn = ["sample_digest", "prompt_id", "turn"]
    table = table.append_column("read", pc.equal(table["status"], "ok").cast(pa.int32()))
    asked = table.group_by(turn).aggregate([("read", "max")])
    asked = asked.group_by("sample_digest").aggregate([("read_max", "sum"), ("read_max", "count")])
    every = pc.equal(asked["read_max_sum"], asked["read_max_count"])
    none = pc.equal(asked["read_max_sum"], 0)
    status = pc.if_else(every, "scored", pc.if_else(none, "failed", "partial"))
    read = table.filter(pc.equal(table["read"], 1))
    newest = read.group_by(turn, use_threads=False).aggregate([(s, "first") for s in SCORES])
    # one prompt does not answer for every score, so each score counts its own answers
    wanted = [(f"{s}_first", how) for s in SCORES for how in ("mean", "stddev", "count")]
    grouped = newest.group_by("sample_digest").aggregate(wanted)
    endings = {"mean": "mean", "stddev": "std", "count": "turns"}
    names = {f"{s}_first_{how}": f"{s}_{end}" for s in SCORES for how, end in endings.items()}
    grouped = grouped.rename_columns([names.get(n, n) for n in grouped.column_names])
    verdict = pa.table({"sample_digest": asked["sample_digest"], "status": status})
    scores = join(verdict["sample_digest"], grouped)
    for name in names.values():
        verdict = verdict.append_column(name, scores[name])
    return verdict


def verdicts(
    root: str, digests: pa.ChunkedArray, judge_id: str | None = None, columns: list[str] | None = None
) -> pa.Table:
    """One row for each sample digest, in that order: the signals and, when a judge is named, its scores.

    A sample without a signals row has null in `status` and in every signal. With a judge, `status` is the judge's (see
    `scores_of`; null: not asked) and that of the signals is `signals_status`.
    """
    table = join(digests, signals_of(root, columns))
    if judge_id is not None:
        table = table.rename_columns(["signals_status" if n == "status" else n for n in table.column_names])
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
