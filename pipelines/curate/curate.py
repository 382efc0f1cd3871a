"""Signals for every sample of a data root that has none yet, on Ray Data."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.curate import look
from pipelines.curate.signals import SIGNALS_VERSION, measure
from pipelines.curate.verdicts import first_of_each, signals_of
from pipelines.progress import say, track
from pipelines.samples import provenance, storage, tables
from pipelines.samples.index import datasets_of, media_of, read_index

CHUNK_ROWS = 8  # samples to a task and a signals part: seconds of work, so little is lost when a job is killed
WAVE = 2000  # chunks handed to Ray at a time: bounds the driver's memory for any size of root
REMEMBERED = 2  # sources kept from one row of a chunk to the next: several edits share one source
_FACTS = ("uri", "offset", "size", "sha256", "width", "height", "fps", "frames")
COLUMNS = ["key", "sample_digest", "dataset", "kind", "instruction", "skip_head", "skip_tail", "pairing", "policy_fps"]
COLUMNS += [f"{side}_{fact}" for side in ("source", "target") for fact in _FACTS]


class StageError(Exception):
    """A sample that could not be looked at: in which stage (read, decode, measure), and why."""

    def __init__(self, stage: str, cause: Exception, prefix: str = "") -> None:
        super().__init__(f"{prefix}{cause}")
        self.stage, self.cause = stage, cause


def score(row: dict[str, Any], remembered: dict[tuple, look.Seen] | None = None) -> dict[str, Any]:
    """Look at one sample.

    in:  an index row with COLUMNS; remembered: sources decoded before, filled as rows pass
    out: a row of tables.SIGNALS: status ok with the columns of `signals`, or failed with error_stage (read:
         the bytes could not be had, tried again by the next run; decode, measure), error_type and error
    """
    began = time.monotonic()
    out: dict[str, Any] = {"sample_digest": row["sample_digest"], "signals_version": SIGNALS_VERSION}
    try:
        out |= _measure(row, remembered if remembered is not None else {}) | {"status": "ok"}
    except StageError as error:
        text = " ".join(str(error).split())[:500]
        out |= {"status": "failed", "error_stage": error.stage, "error_type": type(error.cause).__name__, "error": text}
    return out | {"seconds": time.monotonic() - began, "created_at": datetime.now(UTC)}


def _measure(row: dict[str, Any], remembered: dict[tuple, look.Seen]) -> dict[str, Any]:
    source = None
    if row["source_uri"] is not None:
        name = (row["source_sha256"], row["skip_head"], row["skip_tail"])
        if name not in remembered:
            while len(remembered) >= REMEMBERED:
                del remembered[next(iter(remembered))]
            remembered[name] = _look(row, "source", None)
        source = remembered[name]
    grid = look.small_size(row["source_height"], row["source_width"]) if source else None
    target = _look(row, "target", grid)
    try:
        return measure(
            source, target, pairing=row["pairing"], policy_fps=row["policy_fps"], instruction=row["instruction"]
        )
    except Exception as error:
        raise StageError("measure", error) from error


def _look(row: dict[str, Any], side: str, grid: tuple[int, int] | None) -> look.Seen:
    try:
        data = media_of(row, side)
        if hashlib.sha256(data).digest() != row[f"{side}_sha256"]:
            raise OSError(f"the {side}'s bytes in {row[f'{side}_uri']} are not those that were ingested")
    except (OSError, EOFError) as error:
        raise StageError("read", error) from error
    facts = {n: row[f"{side}_{n}"] for n in ("height", "width", "fps", "frames")}
    still = row["kind"] == "image_edit"
    try:
        return look.look(
            data, **facts, grid_size=grid,
            skip_head=0 if still else row["skip_head"] or 0, skip_tail=0 if still else row["skip_tail"] or 0,
        )  # fmt: skip
    except Exception as error:  # decoders fail in ways of their own; one bad file must not stop the job
        raise StageError("decode", error, f"{side}: ") from error


def score_chunk(chunk: pa.Table, root: str, run: str) -> pa.Table:
    """A Ray Data stage: look at a chunk of one dataset and append its part to ROOT/signals/<dataset>.

    in:  index rows (COLUMNS) of one chunk. out: dataset, ok, failed: one row of counts
    The part's name follows from the run and the chunk: a task that Ray repeats writes the same part again.
    """
    rows = chunk.to_pylist()
    dataset = rows[0]["dataset"]
    remembered: dict[tuple, look.Seen] = {}
    scored = [score(row, remembered) for row in rows]
    digests = hashlib.sha256(b"".join(row["sample_digest"] for row in rows)).hexdigest()[:16]
    table = pa.Table.from_pylist(scored, schema=tables.SIGNALS)
    storage.write_part(storage.join(root, "signals", dataset), table, f"v{SIGNALS_VERSION}-{digests}-{run}")
    ok = sum(s["status"] == "ok" for s in scored)
    return pa.table({"dataset": [dataset], "ok": [ok], "failed": [len(scored) - ok]})


def curate(root: str, datasets: Sequence[str] | None = None, chunk_rows: int = CHUNK_ROWS) -> dict[str, Any]:
    """Give every index row of a root its signals row; finished ones are left alone. Needs a Ray session.

    The result, per dataset: {"rows": index rows, "looked": samples looked at now, "ok", "failed": of those}.
    InputError when the root or a dataset is unknown. It may be killed at any moment and run again.
    """
    began, run = provenance.now(), format(time.time_ns(), "x")
    names = list(datasets or datasets_of(root))
    index = read_index(root, names, COLUMNS)
    todo = missing(root, index)
    chunks = list(_chunks(todo, chunk_rows))
    counts: dict[str, Any] = {n: {"rows": 0, "looked": 0, "ok": 0, "failed": 0} for n in names}
    for pair in pc.value_counts(index["dataset"].cast(pa.string())).to_pylist():
        counts[pair["values"]]["rows"] = pair["counts"]
    if not chunks:
        say(f"curate: all {index.num_rows} samples have their signals")
        return counts
    for done in track(_run(chunks, storage.absolute(root), run), total=len(chunks), label="curate", unit="chunks"):
        mine = counts[done["dataset"]]
        mine["ok"], mine["failed"] = mine["ok"] + done["ok"], mine["failed"] + done["failed"]
        mine["looked"] += done["ok"] + done["failed"]
    left = missing(root, index, retry=False).num_rows
    if left:
        raise RuntimeError(f"{left} of {index.num_rows} samples have no signals row after all chunks were done")
    settings = {"datasets": names, "chunk_rows": chunk_rows, "signals_version": SIGNALS_VERSION}
    folder = storage.join(root, "signals")
    provenance.record(folder, "sama curate", settings, counts, {"index_rows": index.num_rows}, began, provenance.now())
    return counts


def missing(root: str, index: pa.Table, retry: bool = True) -> pa.Table:
    """The index rows, one per sample digest, that have no signals row of this version.

    retry: those whose bytes could not be read last time count as missing: storage may be back.
    """
    known = signals_of(root, ["error_stage"])
    if retry:
        known = known.filter(pc.not_equal(pc.fill_null(known["error_stage"].cast(pa.string()), ""), "read"))
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


def _run(chunks: list[pa.Table], root: str, run: str) -> Iterator[dict[str, Any]]:
    import ray.data

    for first in range(0, len(chunks), WAVE):
        wave = [c.combine_chunks() for c in chunks[first : first + WAVE]]
        ds = ray.data.from_arrow(wave)
        # one CPU each: decoding runs on one thread. batch_size=None: a block is a chunk and stays whole
        ds = ds.map_batches(
            score_chunk, fn_kwargs={"root": root, "run": run}, batch_format="pyarrow", batch_size=None, num_cpus=1
        )
        yield from ds.iter_rows()
