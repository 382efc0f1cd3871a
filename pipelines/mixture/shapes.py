"""Give every eligible row the shape it is trained at, so that each global batch has one shape."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.mixture.mixture import BucketRules
from sama.video import Bucket, buckets, nearest_bucket

MERGE_ASPECT = 1.5  # a rare shape joins a neighbour whose aspect ratio differs by no more than this factor


def choices(rules: BucketRules, stream: str) -> list[Bucket]:
    """All shapes that the rules allow a stream; images have one frame."""
    return buckets(rules.area, rules.multiple, rules.aspect, (1,) if stream == "image" else rules.frames)


def assign(table: pa.Table, allowed: list[Bucket]) -> np.ndarray:
    """Index into `allowed` for every row by width, height and length; -1 where the clip is too short."""
    lengths = sorted({b.frames for b in allowed})
    fits = np.searchsorted(lengths, table["length"].to_numpy(), side="right")
    sides = [pc.fill_null(table[n], 0).to_numpy().astype(np.int64) for n in ("width", "height")]
    unique, which = np.unique((fits << 40) | (sides[0] << 20) | sides[1], return_inverse=True)
    number = {b: i for i, b in enumerate(allowed)}
    found = []
    for packed in unique.tolist():
        fit, width, height = packed >> 40, packed >> 20 & 0xFFFFF, packed & 0xFFFFF
        bucket = nearest_bucket(width, height, lengths[fit - 1], allowed) if fit else None
        found.append(-1 if bucket is None else number[bucket])
    return np.asarray(found, np.int64)[which.reshape(-1)]


def merge_rare(counts: Counter[int], allowed: list[Bucket], min_rows: int) -> dict[int, int]:
    """Where the rows of each used bucket go: rare ones join a neighbour, the rarest first.

    counts: rows by bucket index. A neighbour has the same number of frames, or fewer where none of the same is
    near, and an aspect ratio within MERGE_ASPECT. A rare bucket without one stays: its samples then repeat
    within a batch, and nothing is dropped.
    """
    left = {b: n for b, n in counts.items() if n}
    goes = {b: b for b in left}
    settled: set[int] = set()
    while True:
        rare = [b for b, n in left.items() if n < min_rows and b not in settled]
        if not rare:
            return goes
        smallest = min(rare, key=lambda b: (left[b], allowed[b]))
        home = _neighbour(smallest, left, allowed)
        if home is None:
            settled.add(smallest)
            continue
        left[home] += left.pop(smallest)
        goes = {b: home if to == smallest else to for b, to in goes.items()}


def _neighbour(bucket: int, left: dict[int, int], allowed: list[Bucket]) -> int | None:
    mine = allowed[bucket]
    ratio = math.log(mine.width / mine.height)
    near = []
    for other in left:
        theirs = allowed[other]
        distance = abs(math.log(theirs.width / theirs.height) - ratio)
        if other != bucket and theirs.frames <= mine.frames and distance <= math.log(MERGE_ASPECT) + 1e-9:
            near.append((mine.frames - theirs.frames, round(distance, 9), theirs, other))
    return min(near)[-1] if near else None
