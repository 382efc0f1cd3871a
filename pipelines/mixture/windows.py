"""Which frames of a clip make a training window: the frame policy and the rate, as arithmetic on columns."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from sama.video import Bucket


def strides(columns: Mapping[str, np.ndarray], fps: Literal["native"] | float) -> tuple[np.ndarray, np.ndarray]:
    """File frames per training frame, on the source and on the target side (float64).

    columns: source_fps, target_fps (nan or 0: unknown or an image), policy_fps (overrides what the files say of
    their rate, nan: none), by_time bool (pairing is time). fps: the stream's; `native` keeps the slower side's.
    A clip is never played slower than it was filmed: strides are at least 1.
    """
    policy = np.nan_to_num(columns["policy_fps"])
    source, target = (np.where(policy > 0, policy, np.nan_to_num(columns[n])) for n in ("source_fps", "target_fps"))
    by_time = columns["by_time"] & (source > 0) & (target > 0)
    own = np.where(by_time, np.minimum(source, target), target)
    rate = own if fps == "native" else np.minimum(own, float(fps))
    rate = np.where(rate > 0, rate, 1.0)
    on_target = np.where(target > 0, np.maximum(target / rate, 1.0), 1.0)
    return np.where(by_time, np.maximum(source / rate, 1.0), on_target), on_target


def available(frames: np.ndarray, skipped: np.ndarray, stride: np.ndarray) -> np.ndarray:
    """How many training frames one side has: frame p lies at file frame skip_head + floor(p * stride + 0.5)."""
    usable = np.maximum(frames - skipped, 0)
    return np.ceil((usable - 0.5) / stride).clip(0).astype(np.int64)


def file_frames(sample: Mapping[str, Any], side: str, start: int, frames: int) -> list[int]:
    """Frame numbers in the file of one side for the window [start, start + frames)."""
    positions = np.floor((start + np.arange(frames)) * sample[f"{side}_stride"] + 0.5).astype(int)
    last = sample[f"{side}_frames"] - sample["skip_tail"] - 1
    return [int(i) for i in np.minimum(positions + sample["skip_head"], last)]


def window_id(sample: Mapping[str, Any], start: int, bucket: Bucket) -> str:
    """Names the pixels of a sample's window at a size (hex): equal exactly when they are; keys caches of them."""
    strides = (sample["source_stride"] or 0.0, sample["target_stride"] or 0.0)
    place = struct.pack("<4q2d", start, bucket.frames, bucket.height, bucket.width, *strides)
    return hashlib.sha256(sample["sample_digest"] + place).hexdigest()
