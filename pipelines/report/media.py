"""Pictures for the page: a few small JPEGs per sample, and a limit that no amount of data can exceed."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from typing import Any

import numpy as np

from pipelines.curate.gallery import looping
from pipelines.report.markup import Markup, tag
from pipelines.samples import storage
from sama import video

THUMB_HEIGHT = 92  # pixels of one frame in a gallery
FRAMES = 4  # per clip in a gallery
STRIP_WIDTH = 1280  # a strip is never wider
MAX_MEMBER = 512 * 2**20  # a larger file is not read for a thumbnail


class Album:
    """Embeds pictures until `limit` characters of the page are spent; after that a note stands in their place."""

    def __init__(self, limit: int, enabled: bool = True) -> None:
        self.limit, self.enabled, self.spent, self.left_out = limit, enabled, 0, 0

    def data_uri(self, data: bytes, mime: str) -> str | None:
        """The bytes as a data URI, or None when pictures are off or the limit is reached."""
        if not self.enabled:
            return None
        length = (len(data) + 2) // 3 * 4
        if self.spent + length > self.limit:
            self.left_out += 1
            return None
        self.spent += length
        return f"data:{mime};base64,{base64.b64encode(data).decode()}"

    def picture(self, pixels: np.ndarray, alt: str, quality: int = 78) -> Markup:
        """(H, W, 3) uint8 as an <img> with a small JPEG inside."""
        return self._shown(self.data_uri(_jpeg(pixels, quality), "image/jpeg"), alt)

    def file(self, uri: str, alt: str) -> Markup:
        """An image file, scaled down to at most STRIP_WIDTH."""
        if not self.enabled:
            return self._shown(None, alt)
        try:
            pixels = video.decode(storage.read_bytes(uri))[0]
        except (video.MediaError, OSError, ValueError) as error:
            return void(f"{alt}: {error}")
        if pixels.shape[1] > STRIP_WIDTH:
            height = max(1, round(pixels.shape[0] * STRIP_WIDTH / pixels.shape[1]))
            pixels = video.cover_crop(pixels[None], height, STRIP_WIDTH)[0]
        return self.picture(pixels, alt, quality=84)

    def clip(self, uri: str, largest: int = 3 * 2**20) -> Markup:
        """A short mp4 that plays in the page; nothing when it is larger than `largest` bytes or of another type."""
        if not self.enabled or not storage.exists(uri) or storage.size_of(uri) > largest:
            return Markup("")
        data = storage.read_bytes(uri)
        try:
            kind = video.media_type(data)
        except video.MediaError:
            return Markup("")
        source = self.data_uri(data, "video/mp4") if kind == "mp4" else None
        if source is None:
            return Markup("")
        return tag("video", src=source, controls=True, loop=True, muted=True, preload="metadata")

    def _shown(self, source: str | None, alt: str) -> Markup:
        if source:
            return tag("img", src=source, alt=alt, loading="lazy", decoding="async")
        return void("left out to keep this page small" if self.enabled else "pictures were not asked for")


def void(text: str) -> Markup:
    """A quiet frame that says why there is no picture."""
    return tag("div", text, class_="void")


def looping_pair(row: dict, album: Album, blur: bool) -> Markup:
    """Source and target of an index row side by side, looping; or why not."""
    if not album.enabled:
        return void("pictures were not asked for")
    try:
        source = album.data_uri(looping(row, blur), "image/webp")
    except (video.MediaError, OSError, EOFError, ValueError) as error:
        return void(str(error))
    if source is None:
        return void("left out to keep this page small")
    return tag("img", src=source, alt=f"source and target of {row['key']}", loading="lazy", decoding="async")


def row_of_frames(row: Mapping[str, Any], side: str, frames: int = FRAMES) -> np.ndarray:
    """Frames of one member of an index row, side by side: (H, W, 3) uint8.

    video.MediaError when it does not decode; OSError or EOFError when it cannot be read.
    """
    if row[f"{side}_size"] > MAX_MEMBER:
        raise video.MediaError("too large for a thumbnail")
    data = storage.read_range(row[f"{side}_uri"], row[f"{side}_offset"], row[f"{side}_size"])
    count = row[f"{side}_frames"] or 1
    first, last = row["skip_head"] or 0, count - 1 - (row["skip_tail"] or 0)
    if first > last:
        first, last = 0, count - 1
    return contact(data, first, last, row[f"{side}_width"] or 1, row[f"{side}_height"] or 1, frames)


def contact(data: bytes, first: int, last: int, width: int, height: int, frames: int = FRAMES) -> np.ndarray:
    """`frames` evenly spaced frames of a file, side by side with a thin gap: (H, W, 3) uint8."""
    at = sorted({round(v) for v in np.linspace(first, last, frames)})
    across = int(np.clip(round(THUMB_HEIGHT * width / height), 48, 180))
    if len(at) == 1:  # a picture: once, larger
        scale = 1.9
        return video.decode(data, [at[0]], (round(THUMB_HEIGHT * scale), round(across * scale)))[0]
    return side_by_side(video.decode(data, at, (THUMB_HEIGHT, across)))


def blurred(pixels: np.ndarray, lines: int = 10) -> np.ndarray:
    """(H, W, 3) uint8 as if it had only `lines` lines: nobody and nothing is to be recognised."""
    from PIL import Image

    picture = Image.fromarray(np.ascontiguousarray(pixels))
    small = picture.resize((max(1, picture.width * lines // picture.height), lines), Image.Resampling.BOX)
    return np.asarray(small.resize(picture.size, Image.Resampling.BICUBIC))


def side_by_side(frames: np.ndarray, gap: int = 2) -> np.ndarray:
    """(T, H, W, 3) as one (H, T * (W + gap) - gap, 3) picture."""
    padded = np.pad(frames, ((0, 0), (0, 0), (0, gap), (0, 0)), constant_values=128)
    return np.concatenate(list(padded), axis=1)[:, : padded.shape[2] * len(frames) - gap]


def _jpeg(pixels: np.ndarray, quality: int) -> bytes:
    from PIL import Image

    sink = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(sink, format="jpeg", quality=quality, optimize=True)
    return sink.getvalue()
