"""The frames that a judge sees, taken from the decoding that the signals need anyway."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from pipelines.judge import protocol
from sama import video


class Tap:
    """Stands in for `sama.video.decode` while a clip is looked at, and keeps the judge's frames as they pass.

    numbers: frame numbers in the file; short: pixels of the short side that are enough.
    """

    def __init__(self, numbers: Sequence[int], short: int) -> None:
        self.numbers, self.short = [int(n) for n in numbers], short
        self.kept: dict[int, np.ndarray] = {}

    def __call__(
        self, data: bytes, indices: Sequence[int] | None = None, size: tuple[int, int] | None = None
    ) -> np.ndarray:
        frames = video.decode(data, indices, size)
        if indices is not None and len(frames) and min(frames.shape[1:3]) >= self.short:
            for place, number in enumerate(indices):
                if number in self.numbers and number not in self.kept:
                    self.kept[number] = frames[place].copy()  # the chunk around it is let go
        return frames

    def jpegs(self, data: bytes, size: tuple[int, int]) -> tuple[bytes, ...]:
        """The frames as JPEG files of `size` (height, width), cut as training would cut them (cover, centre crop).

        Those that have not passed in a size that will do are decoded now. MediaError when one does not decode.
        """
        missing = [n for n in self.numbers if n not in self.kept]
        late = dict(zip(missing, video.decode(data, missing, size), strict=True)) if missing else {}
        found = self.kept | late
        return tuple(_jpeg(video.cover_crop(found[n][None], *size)[0]) for n in self.numbers)


def taps(row: dict[str, Any], frames: int, short: int) -> tuple[dict[str, Tap], tuple[int, int]]:
    """A tap for each side of an index row, on the same moments, and the one size of all pictures: the source's."""
    still = row["kind"] == "image_edit"
    head, tail = (0, 0) if still else (row["skip_head"] or 0, row["skip_tail"] or 0)
    sides = [s for s in ("source", "target") if row[f"{s}_uri"] is not None]
    left = {s: max(1, (row[f"{s}_frames"] or 1) - head - tail) for s in sides}
    rates = {s: row[f"{s}_fps"] or 0.0 for s in sides}
    one, two = ((left[s], rates[s]) for s in (sides[0], sides[-1]))
    numbers = protocol.moments(1 if still else frames, one, two, row["pairing"] or "index")
    first = sides[0]
    size = protocol.frame_size(row[f"{first}_height"], row[f"{first}_width"], short)
    found = {}
    for side, at in zip((sides[0], sides[-1]), numbers, strict=True):
        enough = min(short, row[f"{side}_height"], row[f"{side}_width"])
        found[side] = Tap((at + head).tolist(), enough)
    return found, size


def _jpeg(frame: np.ndarray) -> bytes:
    from PIL import Image

    sink = io.BytesIO()
    Image.fromarray(frame).save(sink, "JPEG", quality=protocol.JPEG_QUALITY)
    return sink.getvalue()
