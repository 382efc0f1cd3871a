"""Signals for every sample of a data root that has none yet, then a judge for those that survive them, on Ray Data."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.curate import ask_plan, asking, near
from pipelines.curate.ask_plan import AskPlan
from pipelines.curate.signals import SIGNALS_VERSION
from pipelines.curate.stage import ASK_COLUMNS, COLUMNS, score_chunk
from pipelines.curate.verdicts import first_of_each, signals_of
from pipelines.progress import say, track
from pipelines.samples import provenance, storage
from pipelines.samples.compact import compact
from pipelines.samples.index import datasets_of, read_index

CHUNK_ROWS = 8  # samples to a task and a part: seconds of work, so little is lost when a job is killed
LARGEST_CHUNK, FEW_CHUNKS = 64, 4000  # ... and more of them for large roots: a minute of work, and fewer parts
WAVE = 2000  # chunks handed to Ray at a time: bounds the driver's memory for any size of root


def curate(
    root: str, datasets: Sequence[str] | None = None, chunk_rows: int | None = None, plan: AskPlan | None = None,
    sample: int | None = None, key: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Give every index row of a root its signals row, and the survivors their answers; finished ones are left alone.

    Needs a Ray session. plan: whom to ask, if anybody; sample: only so many rows, always the same; key: for the
    judge's server. The result, per dataset: {"rows": index rows, "looked": samples looked at now, "ok", "failed": of
    those}, and with a plan "asked": samples asked about now, "unseen": those whose pictures could not be had,
    "answers": {status: n}. InputError when the root or a dataset is unknown. It may be killed at any moment and run
    again.
    """
    began, run = provenance.now(), format(time.time_ns(), "x")
    names = list(datasets or datasets_of(root))
    index = ask_plan.chosen(read_index(root, names, ASK_COLUMNS if plan else COLUMNS), sample)
    counts: dict[str, Any] = {n: {"rows": 0, "looked": 0, "ok": 0, "failed": 0} for n in names}
    for pair in pc.value_counts(index["dataset"].cast(pa.string())).to_pylist():
        counts[pair["values"]]["rows"] = pair["counts"]
    for mine in counts.values() if plan else ():
        mine |= {"asked": 0, "unseen": 0, "answers": {}}
    for step in asking.passes(plan):
        todo = _todo(root, index, step)
        rows = chunk_rows or max(CHUNK_ROWS, min(LARGEST_CHUNK, todo.num_rows // FEW_CHUNKS))
        chunks = list(_chunks(todo, rows))
        if not chunks:
            continue
        done = _run(chunks, storage.absolute(root), run, step, key, rows)
        for count in track(done, total=len(chunks), label="curate", unit="chunks"):
            _add(counts[count["dataset"]], count)
    _tidy(root, names)
    say(near.told(near.refresh(root)))
    looked = sum(c["looked"] for c in counts.values())
    if not looked and not sum(c.get("asked", 0) for c in counts.values()):
        say(f"curate: all {index.num_rows} samples have their signals" + (" and their answers" if plan else ""))
        return counts
    left = missing(root, index, retry=False).num_rows
    if left:
        raise RuntimeError(f"{left} of {index.num_rows} samples have no signals row after all chunks were done")
    settings = {"datasets": names, "chunk_rows": chunk_rows, "signals_version": SIGNALS_VERSION, "sample": sample}
    for table in (["signals"] if looked else []) + ([] if plan is None else [plan.table]):
        mine = settings | (ask_plan.settings_of(plan) if plan and table != "signals" else {})
        inputs = {"index_rows": index.num_rows}
        folder = storage.join(root, table)
        provenance.record(folder, "sama curate", mine, counts, inputs, began, provenance.now())
    return counts


def _tidy(root: str, datasets: Sequence[str]) -> None:
    """A task writes a small part; a table of a million of them would be slow to read."""
    for table in ("signals", "judgements", "captions"):
        for dataset in datasets:
            compact(storage.join(root, table, dataset))


def _todo(root: str, index: pa.Table, plan: AskPlan | None) -> pa.Table:
    """The rows to look at or to ask about, with the columns that `score_chunk` wants."""
    if plan is None:
        return missing(root, index)
    known = readable(signals_of(root))
    index = ask_plan.todo(root, index, known, plan)
    seen = pc.is_in(index["sample_digest"], value_set=known["sample_digest"].combine_chunks())
    unseen = ~np.asarray(seen)
    first = np.zeros(index.num_rows, bool)
    rows = np.flatnonzero(unseen)
    first[rows[np.asarray(first_of_each(index["sample_digest"].take(pa.array(rows))))]] = True
    ask = np.asarray(index["ask"])
    index = index.append_column("look", pa.array(first | (ask & unseen)))
    return index.filter(pa.array(first | ask))


def _add(mine: dict[str, Any], done: dict[str, Any]) -> None:
    mine["ok"], mine["failed"] = mine["ok"] + done["ok"], mine["failed"] + done["failed"]
    mine["looked"] += done["ok"] + done["failed"]
    if "asked" in mine:
        mine["asked"] += done.get("asked") or 0
        mine["unseen"] += done["unseen"]
        for status, count in asking.states_of(done).items():
            mine["answers"][status] = mine["answers"].get(status, 0) + count


def readable(signals: pa.Table) -> pa.Table:
    """Signals without those rows whose bytes could not be read: storage may be back."""
    return signals.filter(pc.not_equal(pc.fill_null(signals["error_stage"].cast(pa.string()), ""), "read"))


def missing(root: str, index: pa.Table, retry: bool = True) -> pa.Table:
    """The index rows, one per sample digest, that have no signals row of this version.

    retry: those whose bytes could not be read last time count as missing.
    """
    known = signals_of(root, ["error_stage"])
    known = readable(known) if retry else known
    seen = pc.is_in(index["sample_digest"], value_set=known["sample_digest"].combine_chunks())
    todo = index.filter(pc.invert(seen))
    return todo.take(first_of_each(todo["sample_digest"]))


def _chunks(todo: pa.Table, rows: int) -> Iterator[pa.Table]:
    """Runs of rows of one dataset, in the index's order, which is the order of the bytes in the shards."""
    datasets = todo["dataset"].cast(pa.string()).to_pylist()
    start = 0
    for i in range(1, len(datasets) + 1):
        if i == len(datasets) or datasets[i] != datasets[start] or i - start == rows:
            yield todo.slice(start, i - start)
            start = i


def _run(
    chunks: list[pa.Table], root: str, run: str, plan: AskPlan | None, key: str | None, rows: int
) -> Iterator[dict[str, Any]]:
    import ray.data

    for first in range(0, len(chunks), WAVE):
        wave = [c.combine_chunks() for c in chunks[first : first + WAVE]]
        ds = ray.data.from_arrow(wave)
        # one CPU each: decoding runs on one thread. batch_size=None: a block is a chunk and stays whole
        ds = ds.map_batches(
            score_chunk, fn_kwargs={"root": root, "run": run, "plan": plan}, batch_format="pyarrow", batch_size=None,
            num_cpus=1,
        )  # fmt: skip
        if plan is not None:
            ds = asking.ask(ds, root, run, plan, key, rows)
        yield from ds.iter_rows()
        _tidy(root, sorted({c["dataset"][0].as_py() for c in chunks[first : first + WAVE]}))
