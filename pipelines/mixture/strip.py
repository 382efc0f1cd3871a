"""A picture of what the pretext tasks do to a clip."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sama import pretext, video
from sama.errors import InputError

LABEL, GAP = 14, 2  # pixels


def draw(data: bytes, tasks: Sequence[str], frames: int, shown: int, height: int, seed: int) -> bytes:
    """A png with one labelled row per task: `shown` of `frames` frames at `height` pixels.

    data: a video file. tasks: names of registered tasks, all without any. InputError for a clip that is too short
    or an unknown task; video.MediaError when it does not decode.
    """
    probe = video.probe(data)
    count = min(frames, (probe.frames - 1) // 4 * 4 + 1)
    if count < 2:
        raise InputError(f"the clip has {probe.frames} frames, at least 5 are needed to show a perturbation")
    width = max(2, round(height * probe.width / probe.height))
    clip = video.decode(data, range(count), (height, width))
    at = np.unique(np.linspace(0, count - 1, min(shown, count)).round().astype(int))
    names = list(tasks) or list(pretext.PERTURBATIONS)
    rows = [_row(pretext.perturb(n, clip, np.random.default_rng(seed))[at], n) for n in names]
    return video.encode_image(np.concatenate(rows))


def _row(frames: np.ndarray, label: str) -> np.ndarray:
    from PIL import Image, ImageDraw

    padded = np.pad(frames, ((0, 0), (0, GAP), (0, GAP), (0, 0)), constant_values=255)
    strip = np.concatenate(list(padded), axis=1)
    head = Image.new("RGB", (strip.shape[1], LABEL), "white")
    ImageDraw.Draw(head).text((2, 1), label, fill="black")
    return np.concatenate([np.asarray(head), strip])
