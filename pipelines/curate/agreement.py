"""Signals that compare where and how the edit differs: place of the change, structure kept, caption strokes.

Columns: changed_box, structure_kept, text_strokes_source, text_strokes_target.
"""

from __future__ import annotations

import numpy as np

MOMENTS = 12  # evenly taken moments at which structure is compared: more changes nothing that a threshold sees
PATCH = 10  # cells to a side of a patch: a sixth of the short side
TEXTURE = 6.0  # standard deviation of a patch that has something to recognise
BEST = 75  # percentile of patches: even an edit of half the picture leaves a quarter alone
BOX_SHARE = 0.9  # of the change lies inside the box
TEXT_SIDE = 480  # pixels of the short side at which strokes are looked for: caption letters are then 10 to 40 high
STROKE = 50  # step between neighbours that is an edge of a printed letter
TEXT_WINDOW = (17, 61)  # height and width of the window that is full of such edges: about one line, a few letters


def changed_box(source: np.ndarray, target: np.ndarray, visible: float) -> list[float] | None:
    """Where the edit is: [top, bottom, left, right] of the box with BOX_SHARE of the visible change, shares 0..1.

    in: cells of the same moments, (T, h, w, 3) float32. None where nothing differs by more than `visible`.
    """
    seen = (np.abs(source - target).mean(axis=-1) > visible).mean(axis=0)
    if not seen.any():
        return None
    edges: list[float] = []
    for line in (seen.sum(axis=1), seen.sum(axis=0)):
        share = np.cumsum(line) / line.sum()
        first = int(np.searchsorted(share, (1 - BOX_SHARE) / 2))
        last = int(np.searchsorted(share, (1 + BOX_SHARE) / 2))
        edges += [first / len(line), min(last + 1, len(line)) / len(line)]
    return edges


def structure_kept(source: np.ndarray, target: np.ndarray) -> float | None:
    """How much of the source's picture is still there in its best-kept quarter: -1 .. 1, 1 the same up to tone.

    in:  cells of the same moments, (T, h, w, 3) float32
    The picture is cut into patches; each textured one of the source is correlated with the same place of the
    target, and the 75th percentile counts. So neither brightness nor contrast nor an edit of up to three quarters
    of the picture lowers it; a background made anew, shifted, or with other movement does. None without texture.
    Not a verdict on edits of the whole picture (style, background, camera).
    """
    at = np.unique(np.linspace(0, len(source) - 1, MOMENTS).astype(int))
    one, two = (_patches(cells[at].mean(axis=-1)) for cells in (source, target))
    if not one.size:
        return None
    spread = [np.sqrt((p * p).mean(axis=-1)) for p in (one, two)]
    textured = spread[0] > TEXTURE
    if not textured.any():
        return None
    alike = (one * two).mean(axis=-1)[textured] / np.maximum(spread[0] * spread[1], 1e-6)[textured]
    return float(np.percentile(alike, BEST))


def _patches(luma: np.ndarray) -> np.ndarray:
    """(T, h, w) -> (patches, PATCH * PATCH), each without its mean."""
    count, height, width = len(luma), luma.shape[1] // PATCH, luma.shape[2] // PATCH
    cut = luma[:, : height * PATCH, : width * PATCH].reshape(count, height, PATCH, width, PATCH)
    flat = cut.transpose(0, 1, 3, 2, 4).reshape(-1, PATCH * PATCH)
    return flat - flat.mean(axis=1, keepdims=True)


def text_strokes(luma: np.ndarray) -> float | None:
    """How densely the letter-like strokes stand where they stand densest: share of edge pixels in a window, 0..1.

    in: (H, W) uint8 at the clip's own size. A caption over a picture has 0.3 and more, hair or leaves up to 0.2.
    It does not read: a screen full of print has it too. None for pictures smaller than the window.
    """
    height, width = luma.shape
    scale = TEXT_SIDE / min(height, width)
    frame = _scaled(luma, round(height * scale), round(width * scale))
    edges = np.abs(np.diff(frame.astype(np.int16), axis=1)) > STROKE
    tall, wide = TEXT_WINDOW
    if edges.shape[0] < tall or edges.shape[1] < wide:
        return None
    sums = np.pad(edges, ((1, 0), (1, 0))).cumsum(axis=0, dtype=np.int32).cumsum(axis=1)
    window = sums[tall:, wide:] - sums[:-tall, wide:] - sums[tall:, :-wide] + sums[:-tall, :-wide]
    return float(window.max()) / (tall * wide)


def _scaled(luma: np.ndarray, height: int, width: int) -> np.ndarray:
    from PIL import Image

    if luma.shape == (height, width):
        return luma
    return np.asarray(Image.fromarray(luma).resize((width, height), Image.Resampling.BICUBIC))
