"""One decode of a clip, boiled down to the small arrays that every signal is computed from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pipelines.curate import prints
from sama import video

SHORT_SIDE = 240  # pixels decoded: enough to see blur and bars; 480p halves, 720p is a third
CELLS = 60  # cells along the short side: codec noise and grain average out
CHUNK = 160  # frames decoded at once: bounds memory for clips of any length; most need one reading
MAX_FRAMES = 1024  # frames looked at, from the first usable one; later ones are not examined
BLUR_EVERY = 8  # frames between two that are kept for the blur signal
DETAIL_FRAME = 8  # the frame kept at full size: early, so cheap to reach, and not the better key frame


Decode = Callable[..., np.ndarray]  # as sama.video.decode


@dataclass(frozen=True)
class Seen:
    """What one look at a clip leaves behind.

    cells: (T, h, w, 3) float32, mean colour of each cell, 0..255, on the grid asked for
    luma: (S, H, W) uint8, every eighth frame at the decoded size
    brightest: (H, W) uint8, the highest luma each pixel ever has
    detail: (H', W') uint8, luma of one early frame at the clip's own size
    prints: (prints.POSITIONS,) uint64, by which the same footage is known again
    first: number in the file of the first frame looked at; scale: own pixels per decoded pixel
    """

    cells: np.ndarray
    luma: np.ndarray
    brightest: np.ndarray
    detail: np.ndarray
    prints: np.ndarray
    first: int
    fps: float
    scale: float


def small_size(height: int, width: int) -> tuple[int, int]:
    """(height, width) with the short side at SHORT_SIDE; smaller clips keep their size."""
    factor = min(1.0, SHORT_SIDE / min(height, width))
    return max(1, round(height * factor)), max(1, round(width * factor))


def look(
    data: bytes, *, height: int, width: int, fps: float, frames: int,
    skip_head: int = 0, skip_tail: int = 0, grid_size: tuple[int, int] | None = None, decode: Decode = video.decode,
) -> Seen:  # fmt: skip
    """Decode a clip or picture once, in chunks, between its skipped head and tail.

    height, width, fps, frames: as the index has them. grid_size: decoded (height, width) of the partner;
    cells are then cut from the frames as training would cut them (cover, centre crop), so that both grids
    agree. decode: what reads the frames, so that a judge's can be taken from the same decoding.
    MediaError when nothing is left after the policy or a frame does not decode.
    """
    stop = min(frames - skip_tail, skip_head + MAX_FRAMES)
    if stop <= skip_head:
        raise video.MediaError(f"no frame is left of {frames} after skipping {skip_head} + {skip_tail}")
    size = small_size(height, width)
    cells, lumas, brightest, found = [], [], None, np.zeros(prints.POSITIONS, np.uint64)
    for start in range(skip_head, stop, CHUNK):
        chunk = decode(data, range(start, min(start + CHUNK, stop)), size)
        bright = luma(chunk)
        highest = bright.max(axis=0)
        brightest = highest if brightest is None else np.maximum(brightest, highest)
        if frames > 1:
            prints.add(found, fps, start, bright)
        lumas.append(bright[(skip_head - start) % BLUR_EVERY :: BLUR_EVERY])
        cells.append(to_cells(video.cover_crop(chunk, *(grid_size or size))))
    detail = decode(data, [min(skip_head + DETAIL_FRAME, stop - 1)])
    assert brightest is not None
    if frames == 1:
        found = prints.of_picture(lumas[0][0])
    return Seen(
        cells=np.concatenate(cells), luma=np.concatenate(lumas), brightest=brightest, detail=luma(detail)[0],
        prints=found, first=skip_head, fps=fps, scale=height / size[0],
    )  # fmt: skip


def see(frames: np.ndarray, fps: float = 16.0, grid_size: tuple[int, int] | None = None) -> Seen:
    """The same from frames in memory: (T, H, W, 3) uint8."""
    size = small_size(*frames.shape[1:3])
    small = video.cover_crop(frames, *size)
    bright, found = luma(small), np.zeros(prints.POSITIONS, np.uint64)
    prints.add(found, fps, 0, bright)
    return Seen(
        cells=to_cells(video.cover_crop(small, *(grid_size or size))), luma=bright[::BLUR_EVERY],
        brightest=bright.max(axis=0), detail=luma(frames[min(DETAIL_FRAME, len(frames) - 1)][None])[0],
        prints=found, first=0, fps=fps, scale=frames.shape[1] / size[0],
    )  # fmt: skip


def luma(frames: np.ndarray) -> np.ndarray:
    """(T, H, W, 3) uint8 RGB -> (T, H, W) uint8, BT.601 weights."""
    red, green, blue = (frames[..., i].astype(np.uint16) for i in range(3))
    return ((red * 77 + green * 150 + blue * 29) >> 8).astype(np.uint8)


def to_cells(frames: np.ndarray, short: int = CELLS) -> np.ndarray:
    """Mean colour of square cells, about `short` along the short side: (T, h, w, 3) float32.

    Pixels beyond the last whole cell are left out.
    """
    side = max(1, min(frames.shape[1:3]) // short)
    height, width = (n // side * side for n in frames.shape[1:3])
    total = np.uint16 if frames.dtype == np.uint8 and side <= 16 else np.float32  # 256 x 255 fits 16 bits
    rows = np.zeros((len(frames), height // side, width, 3), total)
    for i in range(side):  # adding strided views is far faster than a reshape and a mean
        rows += frames[:, i:height:side, :width]
    cells = np.zeros((len(frames), height // side, width // side, 3), total)
    for i in range(side):
        cells += rows[:, :, i::side]
    return cells.astype(np.float32) / (side * side)
