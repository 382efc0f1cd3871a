"""One row of the loader: the micro-batch of (step, micro-step, rank). A pure function of the plan, without Ray."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from pipelines import config
from pipelines.loading.micro_batch import MicroBatch
from pipelines.mixture import order
from pipelines.mixture.batch import HeldOut, Slot
from pipelines.mixture.mixture import EDIT, Mixture, VideoStream
from pipelines.mixture.plan import BatchPlan
from pipelines.mixture.windows import file_frames, window_id
from pipelines.samples import storage
from sama import pretext, video
from sama.video import Bucket, MediaError

RETRIES, FIRST_PAUSE_S = 4, 0.5  # of a read that failed: storage under load answers later
NEAR = 1 << 16  # members that lie this near in one shard are read at once
MAX_SUBSTITUTES = 8
FATAL_SHARE, FATAL_FLOOR = 0.001, 10  # more substitutes than this share (and this number) stop a run


class StorageError(Exception):
    """Bytes that cannot be had, or are not those that were indexed: the run stops, nothing is replaced."""


@dataclass
class _Sums:
    """Seconds of each part, bytes fetched, frames decoded, and what was substituted."""

    seconds: dict[str, float] = field(default_factory=lambda: {"fetch": 0.0, "decode": 0.0, "perturb": 0.0})
    fetched_bytes: int = 0
    frames: int = 0
    substituted: list[str] = field(default_factory=list)


def micro_size(micro_batch: config.MicroBatch, stream: str) -> int:
    """Samples of one micro-batch of a stream."""
    return int(getattr(micro_batch, stream))


def micro_steps(plan: BatchPlan, stream: str, ranks: int, micro_batch: config.MicroBatch) -> int:
    """Rows of each rank in a step of this stream: the global batch over ranks * micro-batch, rounded up."""
    return -(-plan.mixture.stream(stream).global_batch // (ranks * micro_size(micro_batch, stream)))


def places(
    plan: BatchPlan, ranks: int, micro_batch: config.MicroBatch, start: int, stop: int
) -> Iterator[tuple[int, int, int]]:
    """(step, micro-step, rank) of every row of the steps start..stop-1, in the loader's order."""
    for step in range(start, stop):
        for micro in range(micro_steps(plan, plan.place(step)[0], ranks, micro_batch)):
            for rank in range(ranks):
                yield step, micro, rank


def build_row(
    plan: BatchPlan, step: int, micro: int, rank: int, ranks: int, micro_batch: config.MicroBatch
) -> MicroBatch:
    """Fetch, decode and perturb the samples of one row.

    Slot of sample j: micro * ranks * B + rank * B + j. Beyond the global batch it is a filler: the facts of a real slot
    again, black pixels that nobody fetched or decoded, and weight 0. Media that does not decode (though its digest is
    right) is replaced by another sample of the same source, shape and kind. StorageError when bytes cannot be read or
    are not those that were indexed.
    """
    batch = plan[step]
    size, real = micro_size(micro_batch, batch.stream), len(batch.slots)
    first = (micro * ranks + rank) * size
    numbers = [(first + j) % real for j in range(size)]
    weights = np.asarray([1.0 if first + j < real else 0.0 for j in range(size)], np.float32)
    slots = [batch.slots[n] for n in numbers]
    pixels, sums = _Pixels(size, batch.bucket), _Sums()
    found: list[_Used] = []
    for j, slot in enumerate(slots):
        if weights[j]:
            found.append(_load_slot(plan, slot, batch.stream, pixels, j, sums))
        else:
            pixels.blacken(j)
            found.append((plan.sample(slot.sample), slot))
    steps = micro_steps(plan, batch.stream, ranks, micro_batch)
    place = (step, micro, rank)
    return _assemble(plan.mixture, place, batch.stream, pixels, slots, numbers, found, weights, real, steps, sums)


def read_item(plan: BatchPlan, item: HeldOut) -> MicroBatch:
    """A held-out sample as a micro-batch of one (step, micro and rank are -1). MediaError when it does not decode."""
    pixels, sums = _Pixels(1, item.bucket), _Sums()
    _load(plan.mixture, item.sample, item.slot, item.stream, pixels, 0, sums)
    found, weights = [(item.sample, item.slot)], np.ones(1, np.float32)
    return _assemble(plan.mixture, (-1, -1, -1), item.stream, pixels, [item.slot], [0], found, weights, 1, 1, sums)


def prompt_of(mixture: Mixture, sample: Mapping[str, Any], slot: Slot) -> str:
    """The text a sample is trained with.

    Edits: prefix + instruction; clips: task token + caption, either alone where the other is missing;
    under instruction dropout the negative prompt.
    """
    if slot.drop_instruction:
        return mixture.negative_prompt
    if slot.task == EDIT:
        return mixture.prompt_prefix + (sample["instruction"] or "")
    return " ".join(p for p in (pretext.PERTURBATIONS[slot.task].token, sample["caption"] or "") if p)


def check_substitutes(substituted: int, slots: int) -> None:
    """StorageError when so many slots, over all data ranks, did not decode that the data must be wrong."""
    if substituted > FATAL_FLOOR and substituted > FATAL_SHARE * slots:
        raise StorageError(
            f"{substituted} of {slots} samples did not decode: curate the data again before training on it"
        )


_Used = tuple[dict[str, Any], Slot]  # the sample that was read for a slot, and the slot with its window


class _Pixels:
    """The memory of a micro-batch: clips are decoded to where they are trained from.

    source, target: (B, T, H, W, 3) uint8. With one clip, a perturbed source is taken as it comes.
    """

    def __init__(self, size: int, bucket: Bucket) -> None:
        self.bucket = bucket
        self.shape = (size, bucket.frames, bucket.height, bucket.width, 3)
        self.target = np.empty(self.shape, np.uint8)
        self._source: np.ndarray | None = None

    @property
    def source(self) -> np.ndarray:
        if self._source is None:
            self._source = np.empty(self.shape, np.uint8)
        return self._source

    def put_source(self, at: int, clip: np.ndarray) -> None:
        if self.shape[0] == 1 and clip.shape == self.shape[1:]:
            self._source = clip[None]
        else:
            self.source[at] = clip

    def blacken(self, at: int) -> None:
        self.source[at] = self.target[at] = 0


def _load_slot(plan: BatchPlan, slot: Slot, stream: str, pixels: _Pixels, at: int, sums: _Sums) -> _Used:
    sample, used = plan.sample(slot.sample), slot
    for attempt in range(MAX_SUBSTITUTES + 1):
        try:
            _load(plan.mixture, sample, used, stream, pixels, at, sums)
            return sample, used
        except MediaError as error:
            failure = f"{sample['dataset']} {sample['key']}: {error}"
            row = plan.substitute(slot, attempt)
            other = plan.sample(row)
            start = min(slot.start, other["length"] - pixels.bucket.frames)
            used = replace(slot, sample=row, key=other["key"], start=start)
            sums.substituted.append(f"{failure}; {other['key']} instead")
            sample = other
    raise StorageError(f"{MAX_SUBSTITUTES} substitutes of {slot.key} did not decode either: {sums.substituted[-1]}")


def _load(
    mixture: Mixture, sample: Mapping[str, Any], slot: Slot, stream: str, pixels: _Pixels, at: int, sums: _Sums
) -> None:
    """Put source and target window of one sample into place `at`."""
    began = time.perf_counter()
    media = fetch(sample)
    fetched = time.perf_counter()
    for side, data in media.items():
        _decode(sample, side, data, slot.start, pixels.bucket, getattr(pixels, side)[at])
        sums.frames += pixels.bucket.frames
    decoded = time.perf_counter()
    if "source" not in media:
        settings = mixture.stream(stream)
        options = settings.pretext_options.get(slot.task, {}) if isinstance(settings, VideoStream) else {}
        rng = np.random.Generator(np.random.Philox(key=order.key_of(slot.seed, "perturb")))
        pixels.put_source(at, pretext.perturb(slot.task, pixels.target[at], rng, **options))
    parts = (fetched - began, decoded - fetched, time.perf_counter() - decoded)
    for name, seconds in zip(sums.seconds, parts, strict=True):
        sums.seconds[name] += seconds
    sums.fetched_bytes += sum(len(data) for data in media.values())


def fetch(sample: Mapping[str, Any]) -> dict[str, bytes]:
    """The member bytes of a sample by side, with as few range reads as they need. StorageError when they fail."""
    sides = [s for s in ("source", "target") if sample[f"{s}_uri"] is not None]
    where = {s: (sample[f"{s}_uri"], sample[f"{s}_offset"], sample[f"{s}_size"]) for s in sides}
    if len(sides) == 2 and where["source"][0] == where["target"][0]:
        (uri, first, size), (_, second, length) = where["source"], where["target"]
        if 0 <= second - first - size <= NEAR:
            data = memoryview(_read(sample["key"], uri, first, second + length - first))
            return {"source": bytes(data[:size]), "target": bytes(data[second - first :])}
    return {s: _read(sample["key"], *where[s]) for s in sides}


def _read(key: str, uri: str, offset: int, size: int) -> bytes:
    for attempt in range(RETRIES):
        try:
            return storage.read_range(uri, offset, size)
        except (FileNotFoundError, EOFError) as error:
            raise StorageError(f"the media of {key} is not where the index says: {error}") from error
        except OSError as error:
            if attempt == RETRIES - 1:
                raise StorageError(f"the media of {key} cannot be read from {uri}: {error}") from error
            time.sleep(FIRST_PAUSE_S * 2**attempt)
    raise AssertionError


def _decode(sample: Mapping[str, Any], side: str, data: bytes, start: int, bucket: Bucket, out: np.ndarray) -> None:
    indices = file_frames(sample, side, start, bucket.frames)
    try:
        video.decode(data, indices, (bucket.height, bucket.width), out)
    except MediaError:
        if hashlib.sha256(data).digest() != sample[f"{side}_sha256"]:
            raise StorageError(
                f"the {side} of {sample['key']} in {sample[f'{side}_uri']} is not the file that was indexed: "
                "its digest differs; restore the shard or index it again"
            ) from None
        raise


def _assemble(
    mixture: Mixture, place: tuple[int, int, int], stream: str, pixels: _Pixels, slots: list[Slot], numbers: list[int],
    found: list[_Used], weights: np.ndarray, real: int, steps: int, sums: _Sums,
) -> MicroBatch:  # fmt: skip
    used = [slot for _, slot in found]
    return MicroBatch(
        *place,
        stream=stream,
        bucket=pixels.bucket,
        source=pixels.source,
        target=pixels.target,
        prompts=[prompt_of(mixture, sample, slot) for sample, slot in found],
        tasks=[s.task for s in slots],
        keys=[s.key for s in used],
        datasets=[s.dataset for s in slots],
        categories=[sample["category"] or "other" for sample, _ in found],
        slots=np.asarray(numbers, np.int32),
        starts=np.asarray([s.start for s in used], np.int32),
        seeds=np.asarray([s.seed for s in slots], np.int64),
        weights=weights,
        drop_source=np.asarray([s.drop_source for s in slots], np.bool_),
        real_global_batch=real,
        micro_steps=steps,
        timings=sums.seconds,
        fetched_bytes=sums.fetched_bytes,
        frames=sums.frames,
        substituted=sums.substituted,
        windows=[window_id(sample, slot.start, pixels.bucket) for sample, slot in found],
    )
