"""Clean latents of all samples of a plan that a cache does not hold yet, on a pool of Ray actors."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import torch

from pipelines.encode import latents, store
from pipelines.encode.latents import Clean
from pipelines.encode.parts import open_encoders
from pipelines.loading import MicroBatch, read_item
from pipelines.mixture import BatchPlan
from pipelines.mixture.batch import HeldOut, Slot
from pipelines.mixture.mixture import EDIT
from sama.encoders import Encoders
from sama.semantic import anchor_indices
from sama.video import MediaError

PART_BYTES = 256 * 2**20
PART_ROWS = 256
PROBE = 4  # samples that are encoded to measure the speed


def chunks(rows: np.ndarray, sizes: np.ndarray) -> list[pa.Table]:
    """The places of missing entries (sizes in bytes) cut into tasks, in the order of the plan."""
    found, first, size = [], 0, 0
    for i, one in enumerate(sizes.tolist()):
        if i > first and (size + one > PART_BYTES or i - first == PART_ROWS):
            found.append(pa.table({"row": [rows[first:i]]}))
            first, size = i, 0
        size += one
    return [*found, *([pa.table({"row": [rows[first:]]})] if first < len(rows) else [])]


class LatentChunk:
    """A Ray Data stage on an actor: decodes and encodes the samples of a chunk and adds its part to the cache.

    in:  one row with the list row: rows of the plan of the samples of one chunk
    out: entries, bytes, tokens, seconds, failed: one row of counts; failed: samples that do not decode, which training
         replaces. StorageError when bytes cannot be had.
    """

    def __init__(
        self, plan: str, cache: str, preset: str, weights: str | None, dtype: str, anchors: int, threads: int
    ) -> None:
        self.plan, self.cache, self.anchors, self.threads = BatchPlan.open(plan), cache, anchors, threads
        self.encoders = open_encoders(preset, weights, dtype)
        self.identity = latents.identity(self.encoders, anchors)

    def __call__(self, chunk: pa.Table) -> pa.Table:
        began = time.monotonic()
        rows = chunk["row"][0].as_py()
        windows, values = [], []
        for batch in self._decoded(rows):
            windows += batch.windows
            values.append(latents.pack(encode_clean(self.encoders, batch, self.anchors)))
        keys = latents.keys_of(windows, self.identity).tolist()
        written = 0
        if keys:
            name = f"{rows[0]:010d}-{store.name_of(keys)}"
            written = store.write(self.cache, name, keys, values)
        return pa.table(
            {"entries": [len(keys)], "bytes": [written], "tokens": [0], "failed": [len(rows) - len(keys)],
             "seconds": [time.monotonic() - began]}
        )  # fmt: skip

    def _decoded(self, rows: list[int]) -> Iterator[MicroBatch]:
        """Samples in order, some decoded ahead by threads; those that do not decode are left out."""
        waiting: deque[Future[MicroBatch]] = deque()
        with ThreadPoolExecutor(self.threads) as pool:
            for row in [*rows, *[None] * (self.threads + 1)]:
                if row is not None:
                    waiting.append(pool.submit(read_clean, self.plan, row))
                if waiting and (row is None or len(waiting) > self.threads):
                    try:
                        yield waiting.popleft().result()
                    except MediaError:
                        continue


def seconds_of(preset: str, weights: str | None, dtype: str, anchors: int, batches: list[MicroBatch]) -> float:
    """How long encoding these samples takes, the weights being loaded."""
    encoders = open_encoders(preset, weights, dtype)
    encode_clean(encoders, batches[0], anchors)
    began = time.monotonic()
    for batch in batches:
        encode_clean(encoders, batch, anchors)
    return time.monotonic() - began


def read_clean(plan: BatchPlan, row: int) -> MicroBatch:
    """A row's unperturbed sample as a micro-batch of one. MediaError, StorageError."""
    sample = plan.sample(row)
    group = next(g for g in plan.groups if g.first <= row < g.first + g.size)
    task = "none" if sample["kind"] == "text_to_video" else EDIT
    slot = Slot(row, sample["key"], sample["dataset"], task, 0, 0, False, False, 0)
    return read_item(plan, HeldOut(sample, group.stream, group.bucket, slot))


def encode_clean(encoders: Encoders, batch: MicroBatch, anchors: int) -> Clean:
    """The entry of a micro-batch of one."""
    target = torch.from_numpy(np.ascontiguousarray(batch.target))
    source = encoders.encode_video(batch.source)[0] if batch.tasks[0] == EDIT else None
    semantic = encoders.encode_semantic(target[:, anchor_indices(target.shape[1], anchors)])
    return Clean(encoders.encode_video(target)[0], source, semantic[0])
