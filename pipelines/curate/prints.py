"""Fingerprints of a clip: 64-bit hashes of a few frames, by which the same footage is known again.

They survive another encoding, another size and a cut at the end. A crop, a mirror image, bars and another start do not.
"""

from __future__ import annotations

import numpy as np

MOMENTS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)  # seconds of the file at which a frame is taken
POSITIONS = len(MOMENTS)
SIDE = 32  # pixels to a side of what is hashed, whatever the aspect ratio
WAVES = 8  # lowest frequencies per direction: a bit each, and nothing that coding or scaling removes
FLAT = 8.0  # median strength of a frequency, in grey levels times SIDE: less is coding noise
NONE = 0  # no frame there, or nothing to see on it; no real hash has this value


def _cosines() -> np.ndarray:
    waves, places = np.arange(WAVES)[:, None], np.arange(SIDE)[None]
    table = np.cos(np.pi * (2 * places + 1) * waves / (2 * SIDE)) * np.sqrt(2 / SIDE)
    table[0] /= np.sqrt(2)
    return table.astype(np.float32)


COSINES = _cosines()
BITS = (np.uint64(1) << np.arange(64, dtype=np.uint64)).astype(np.uint64)


def frame_hash(luma: np.ndarray) -> int:
    """The low frequencies of a picture (H, W) uint8, each stronger than the median or not; NONE for a flat one."""
    from PIL import Image

    small = np.asarray(Image.fromarray(luma).resize((SIDE, SIDE), Image.Resampling.BOX), np.float32)
    waves = (COSINES @ small @ COSINES.T).ravel()
    waves[0] = 0.0  # the mean: brightness is not what is shown
    if float(np.median(np.abs(waves[1:]))) < FLAT:
        return NONE
    return int(BITS[waves > np.median(waves[1:])].sum(dtype=np.uint64))


def of_picture(luma: np.ndarray) -> np.ndarray:
    """(POSITIONS,) uint64 of a still (H, W) uint8: the whole and its quarters, since one hash alone is little."""
    down, right = luma.shape[0] // 2, luma.shape[1] // 2
    parts = [luma, luma[:down, :right], luma[:down, right:], luma[down:, :right], luma[down:, right:]]
    found = np.zeros(POSITIONS, np.uint64)
    found[: len(parts)] = [frame_hash(np.ascontiguousarray(p)) if min(p.shape) else NONE for p in parts]
    return found


def add(found: np.ndarray, fps: float | None, first: int, luma: np.ndarray) -> None:
    """Fill in what a run of a clip's frames has of it: luma (T, H, W) uint8, `first` its first frame's number."""
    for place, moment in enumerate(MOMENTS):
        at = round(moment * (fps or 0)) - first
        if 0 <= at < len(luma):
            found[place] = frame_hash(luma[at])


def as_words(found: np.ndarray) -> list[int] | None:
    """For the signals' columns: signed 64-bit words, None where nothing can be recognised."""
    return found.view(np.int64).tolist() if found.any() else None
