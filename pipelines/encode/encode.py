"""`sama encode`: say what it will cost, then fill the cache with what is missing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from pipelines.encode import latent_job, latents, prompts, store, text_job
from pipelines.encode.parts import open_encoders
from pipelines.progress import duration, say, track
from pipelines.samples import provenance, storage
from sama.errors import InputError
from sama.video import MediaError

if TYPE_CHECKING:
    from pipelines.mixture import BatchPlan

GB = 10**9
DECODERS = 2  # threads that decode ahead of one actor's encoder, at least


@dataclass(frozen=True)
class Pool:
    """Ray actors, each with its own encoders."""

    actors: int
    cpus: float
    gpus: float

    def check(self) -> None:
        """InputError when the cluster cannot hold them: Ray would wait for ever without a word."""
        import ray

        total = ray.cluster_resources()
        for name, each in (("CPU", self.cpus), ("GPU", self.gpus)):
            if each * self.actors > total.get(name, 0.0):
                raise InputError(
                    f"{self.actors} actors need {each * self.actors:g} {name}s, this cluster has "
                    f"{total.get(name, 0.0):g}: lower --actors or --{name.lower()}s-per-actor"
                )


@dataclass(frozen=True)
class Encoding:
    """Which encoders fill which cache. dtype: float32 or bfloat16, what they compute in."""

    cache: str
    preset: str
    weights: str | None
    dtype: str


@dataclass(frozen=True)
class Work:
    """What is to be done for one kind of entry. seconds: of one actor for all of it, as measured."""

    name: str
    folder: str
    facts: dict[str, Any]
    chunks: list[pa.Table]
    entries: int
    nbytes: int
    seconds: float
    stage: type
    stage_args: dict[str, Any]


def pool(actors: int | None, cpus: float, gpus: float | None) -> Pool:
    """With nothing said: an actor for every GPU of the cluster, without GPUs one on the CPU."""
    import ray

    found = int(ray.cluster_resources().get("GPU", 0))
    each = gpus if gpus is not None else float(found > 0)
    return Pool(actors or (max(1, int(found / each)) if each else 1), cpus, each)


def default_dtype(gpus: float) -> str:
    """What training computes in on the same kind of device."""
    return "bfloat16" if gpus else "float32"


def encode(
    plan: BatchPlan, how: Encoding, workers: Pool, kinds: list[str], limit_gb: float, yes: bool
) -> dict[str, Any]:
    """Fill a cache with the `text` and `latents` (kinds) that a plan asks for; the counts per kind.

    Prints bytes, entries and time before anything is written. InputError when that is more than limit_gb and not
    `yes`, or when the cache holds the work of other encoders. Killed and called again it does what is missing.
    """
    began = provenance.now()
    how = Encoding(storage.absolute(how.cache), how.preset, how.weights, how.dtype)
    works = [{"text": _text, "latents": _latents}[kind](plan, how, workers) for kind in kinds]
    total = sum(w.nbytes for w in works)
    if total > limit_gb * GB and not yes:
        raise InputError(f"{size(total)} would be written, more than {limit_gb:g} GB: say --yes if that is meant")
    counts: dict[str, Any] = {}
    saved = plan.save(storage.join(how.cache, "plans", plan.digest[:16])) if any(w.chunks for w in works) else ""
    for work in works:
        store.fix(work.folder, work.facts)
        done = {"entries": 0, "bytes": 0, "failed": 0}
        if work.chunks:
            for row in track(_run(work, saved, how, workers), len(work.chunks), work.name, "parts"):
                done = {n: done[n] + row[n] for n in done}
            say(f"{work.name}: {done['entries']} entries, {size(done['bytes'])} written, {done['failed']} failed")
        if done["entries"] + done["failed"] != work.entries:
            raise RuntimeError(f"{work.name}: {done} do not add up to {work.entries}")
        counts[work.name] = done
    settings = {**asdict(how), **asdict(workers), "kinds": kinds}
    inputs = {"plan": plan.digest, **{w.name: w.facts for w in works}}
    provenance.record(how.cache, "sama encode", settings, counts, inputs, began, provenance.now())
    return counts


def _run(work: Work, plan: str, how: Encoding, workers: Pool) -> Iterator[dict[str, Any]]:
    import ray.data

    ds = ray.data.from_arrow(work.chunks)
    ds = ds.map_batches(
        work.stage,
        fn_constructor_kwargs={
            "plan": plan, "cache": work.folder, "preset": how.preset, "weights": how.weights, "dtype": how.dtype,
            **work.stage_args,
        },
        batch_format="pyarrow",
        batch_size=1,  # one row is one chunk, which becomes one part
        compute=ray.data.ActorPoolStrategy(size=workers.actors),
        num_cpus=workers.cpus,
        num_gpus=workers.gpus or None,  # each actor holds whole encoders: a device of its own
    )  # fmt: skip
    yield from ds.iter_rows()


def _text(plan: BatchPlan, how: Encoding, workers: Pool) -> Work:
    encoders = open_encoders(how.preset, how.weights, how.dtype, "cpu")  # the tokenizer alone is loaded here
    folder, facts = storage.join(how.cache, text_job.FOLDER), text_job.facts(encoders)
    there = store.check(folder, facts)
    wanted = prompts.collect(plan, encoders.digest_of("text"))
    missing = ~store.Store(folder).has(wanted.keys) if there else np.ones(len(wanted), bool)
    weight = text_job.measure(plan, wanted, missing, encoders)
    say(
        f"text: {wanted.asked} prompts asked for, {len(wanted)} different, "
        f"{len(wanted) - weight.prompts} in the cache, {weight.prompts} to do"
    )
    chunks = text_job.chunks(wanted, missing, encoders.preset.text_dim, weight.tokens)
    seconds = 0.0
    if chunks:
        places = np.flatnonzero(missing)
        places = places[np.linspace(0, len(places) - 1, min(text_job.PROBE, len(places))).astype(np.int64)]
        texts = prompts.at(plan, wanted.rows[places], wanted.tasks[places])
        took = _remote(text_job.seconds_of, workers, how.preset, how.weights, how.dtype, texts)
        seconds = took * weight.tokens * weight.prompts / sum(encoders.text_lengths(texts))
        by = "all of them" if weight.counted == weight.prompts else f"an even sample of {weight.counted}"
        say(
            f"text: {weight.tokens:.1f} tokens each (counted over {by}) x {encoders.preset.text_dim} x 2 bytes = "
            f"{size(weight.nbytes)}; {_time(seconds, workers)} on {len(texts)} prompts)"
        )
    return Work("text", folder, facts, chunks, weight.prompts, weight.nbytes, seconds, text_job.TextChunk, {})


def _latents(plan: BatchPlan, how: Encoding, workers: Pool) -> Work:
    latents.check(plan.mixture)
    encoders, anchors = open_encoders(how.preset, how.weights, how.dtype, "cpu"), plan.mixture.anchors.n
    folder, facts = storage.join(how.cache, latents.FOLDER), latents.facts(encoders, anchors)
    there = store.check(folder, facts)
    keys, sizes = (
        latents.row_keys(plan, latents.identity(encoders, anchors)),
        latents.row_bytes(plan, encoders.preset, anchors),
    )
    missing = ~store.Store(folder).has(keys) if there else np.ones(len(keys), bool)
    first = np.zeros(len(keys), bool)
    first[np.unique(keys, return_index=True)[1]] = True  # a sample in two streams at one shape has one entry
    rows = np.flatnonzero(missing & first)
    nbytes, seconds = int(sizes[rows].sum()), 0.0
    say(f"latents: {len(keys)} samples, {int(first.sum())} different windows, {len(rows)} to do")
    threads = max(DECODERS, int(workers.cpus))
    if len(rows):
        batches, decoding = _some_decoded(plan, rows)
        if batches:
            took = _remote(latent_job.seconds_of, workers, how.preset, how.weights, how.dtype, anchors, batches)
            made = sum(
                2 * latents.entry_values(encoders.preset, b.bucket, anchors, b.tasks[0] != "none") for b in batches
            )
            seconds = max(took, decoding / threads) * nbytes / made
            say(f"latents: {size(nbytes)}; {_time(seconds, workers)} on {len(batches)} samples)")
    return Work(
        "latents", folder, facts, latent_job.chunks(rows, sizes[rows]), len(rows), nbytes, seconds,
        latent_job.LatentChunk, {"anchors": anchors, "threads": threads},
    )  # fmt: skip


def _some_decoded(plan: BatchPlan, rows: np.ndarray) -> tuple[list[Any], float]:
    """A few samples to measure with, and the seconds that fetching and decoding them took."""
    began, found = time.monotonic(), []
    for row in rows[np.linspace(0, len(rows) - 1, min(latent_job.PROBE, len(rows))).astype(np.int64)].tolist():
        try:
            found.append(latent_job.read_clean(plan, row))
        except MediaError:
            continue
    return found, time.monotonic() - began


def _remote(function: Callable[..., float], workers: Pool, *args: Any) -> float:
    """Run a function where an actor of the pool will run."""
    import ray

    say("measuring the speed of an encoder")
    options = {"num_cpus": workers.cpus, "num_gpus": workers.gpus, "max_retries": 0}
    try:
        return float(ray.get(ray.remote(function).options(**options).remote(*args)))
    except ray.exceptions.RayTaskError as error:
        raise error.cause if isinstance(error.cause, InputError) else error from None


def _time(seconds: float, workers: Pool) -> str:
    return f"about {duration(seconds / workers.actors)} with {workers.actors} actors (measured"


def size(nbytes: float) -> str:
    """Bytes as people say them: 1.2 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if nbytes < 1000:
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1000
    return f"{nbytes:.1f} TB"
