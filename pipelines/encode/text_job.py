"""Text embeddings of all prompts of a plan that a cache does not hold yet, on a pool of Ray actors."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from pipelines.encode import prompts, store
from pipelines.encode.parts import open_encoders
from pipelines.encode.prompts import Prompts
from pipelines.mixture import BatchPlan

if TYPE_CHECKING:
    from sama.encoders import Encoders

FOLDER = "text"  # in the cache
DTYPE = "bfloat16"
PART_BYTES = 256 * 2**20  # of one task and one file: seconds of a GPU's work, held in memory until it is written
PART_PROMPTS = 4096
FORWARD_TOKENS = 16384  # padded tokens that go through the text encoder together
COUNTED = 200_000  # prompts whose tokens are counted one by one; of more, a sample of so many
PROBE = 64  # prompts that are encoded to measure the speed


@dataclass(frozen=True)
class Size:
    """What the prompts weigh. tokens: mean of a prompt; counted: prompts that were tokenised for it, of `prompts`."""

    prompts: int
    counted: int
    tokens: float
    nbytes: int


def measure(plan: BatchPlan, wanted: Prompts, missing: np.ndarray, encoders: Encoders) -> Size:
    """Bytes of the missing entries (bool mask), from the lengths of all of them or of an even sample."""
    places = np.flatnonzero(missing)
    if not places.size:
        return Size(0, 0, 0.0, 0)
    chosen = places[np.linspace(0, len(places) - 1, min(COUNTED, len(places))).astype(np.int64)]
    tokens = 0
    for some in np.array_split(chosen, -(-len(chosen) // PART_PROMPTS)):
        tokens += sum(encoders.text_lengths(prompts.at(plan, wanted.rows[some], wanted.tasks[some])))
    mean = tokens / len(chosen)
    nbytes = tokens if len(chosen) == len(places) else mean * len(places)
    return Size(len(places), len(chosen), mean, int(nbytes * encoders.preset.text_dim * 2))


def chunks(wanted: Prompts, missing: np.ndarray, text_dim: int, tokens: float) -> list[pa.Table]:
    """The missing places cut into tasks. Cuts depend on the plan alone, so that a job killed and run again makes the
    same parts under the same names."""
    per = max(1, min(PART_PROMPTS, int(PART_BYTES / (max(tokens, 1.0) * text_dim * 2))))
    per = 1 << (per.bit_length() - 1)  # a mean that changes a little changes no cut
    found = []
    for first in range(0, len(wanted), per):
        mine = first + np.flatnonzero(missing[first : first + per])
        if mine.size:
            found.append(pa.table({"row": [wanted.rows[mine]], "task": [wanted.tasks[mine]]}))
    return found


class TextChunk:
    """A Ray Data stage on an actor: embeds the prompts of a chunk and adds its part to the cache.

    in:  one row with the lists row, task (see Prompts) of the prompts of one chunk
    out: entries, bytes, tokens, seconds, failed: one row of counts
    """

    def __init__(self, plan: str, cache: str, preset: str, weights: str | None, dtype: str) -> None:
        self.plan, self.cache = BatchPlan.open(plan), cache
        self.encoders = open_encoders(preset, weights, dtype)
        self.digest = self.encoders.digest_of("text")

    def __call__(self, chunk: pa.Table) -> pa.Table:
        began = time.monotonic()
        rows, tasks = (chunk[n].combine_chunks().values.to_numpy() for n in ("row", "task"))
        texts = prompts.at(self.plan, rows, tasks)
        keys = [prompts.text_key(t, self.digest) for t in texts]
        values = encode_all(self.encoders, texts)
        written = store.write(self.cache, store.name_of(keys), keys, values)
        tokens = written // (2 * self.encoders.preset.text_dim)
        return pa.table(
            {"entries": [len(keys)], "bytes": [written], "tokens": [tokens], "failed": [0],
             "seconds": [time.monotonic() - began]}
        )  # fmt: skip


def seconds_of(preset: str, weights: str | None, dtype: str, texts: list[str]) -> float:
    """How long these prompts take, the weights being loaded."""
    encoders = open_encoders(preset, weights, dtype)
    encode_all(encoders, texts[:1])
    began = time.monotonic()
    encode_all(encoders, texts)
    return time.monotonic() - began


def encode_all(encoders: Encoders, texts: list[str]) -> list[memoryview]:
    """The bfloat16 embeddings of each prompt, of its own length, as bytes; prompts of like length go together."""
    import torch

    lengths = encoders.text_lengths(texts)
    found: dict[int, memoryview] = {}
    for group in _like_lengths(lengths):
        embeds = encoders.encode_prompts([texts[i] for i in group])
        for i, embed in zip(group, embeds, strict=True):
            data = embed.to(torch.bfloat16).contiguous().cpu().view(torch.uint8).numpy()
            found[i] = data.reshape(-1).data
    return [found[i] for i in range(len(texts))]


def _like_lengths(lengths: list[int]) -> Iterator[list[int]]:
    """Positions in groups of at most FORWARD_TOKENS padded tokens, longest first: what does not fit fails early."""
    group: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if group and (len(group) + 1) * lengths[group[0]] > FORWARD_TOKENS:
            yield group
            group = []
        group.append(i)
    if group:
        yield group


def facts(encoders: Encoders) -> dict[str, Any]:
    """What the text part of a cache holds (store.json)."""
    from pipelines.encode.parts import dtype_name

    return {
        "kind": "text", "dtype": DTYPE, "text_dim": encoders.preset.text_dim, "computed_in": dtype_name(encoders.dtype),
        "text_digest": encoders.digest_of("text"),
    }  # fmt: skip
