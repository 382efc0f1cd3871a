"""What every reader of media shares: facts, file types, geometry, resolution buckets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

IMAGE_TYPES = ("jpg", "png", "webp", "gif", "bmp", "tiff")
_MAGIC = (
    (0, b"\xff\xd8\xff", "jpg"),
    (0, b"\x89PNG\r\n\x1a\n", "png"),
    (0, b"GIF8", "gif"),
    (8, b"WEBP", "webp"),
    (0, b"BM", "bmp"),
    (0, b"II*\x00", "tiff"),
    (0, b"MM\x00*", "tiff"),
    (4, b"ftypqt", "mov"),
    (4, b"ftyp", "mp4"),
    (4, b"moov", "mov"),
    (0, b"\x1aE\xdf\xa3", "mkv"),
    (8, b"AVI ", "avi"),
    (0, b"\x00\x00\x01\xba", "mpg"),
    (0, b"\x00\x00\x01\xb3", "mpg"),
    (0, b"FLV\x01", "flv"),
    (0, b"0&\xb2u\x8ef\xcf\x11", "wmv"),
)


class MediaError(Exception):
    """The bytes are not a picture or a video that can be decoded."""


@dataclass(frozen=True)
class Probe:
    """Facts of one file. `frames` is counted, not believed; an image has 1 frame and fps 0."""

    width: int
    height: int
    fps: float
    frames: int
    codec: str
    has_audio: bool
    duration: float  # seconds


@dataclass(frozen=True, order=True)
class Bucket:
    """One shape that a batch may have."""

    frames: int
    height: int
    width: int


def media_type(data: bytes) -> str:
    """The file type by its first bytes, as a file extension. MediaError when unknown."""
    if not data:
        raise MediaError("the file is empty")
    for offset, magic, name in _MAGIC:
        if data[offset : offset + len(magic)] == magic:
            return name
    if data[0] == 0x47 and len(data) > 188 and data[188] == 0x47:
        return "ts"
    raise MediaError("neither a picture nor a video that is known here")


def buckets(area: int, multiple: int, aspect: tuple[float, float], frames: Sequence[int]) -> list[Bucket]:
    """Every shape with a height that is a multiple of `multiple` and about `area` pixels.

    The released code's rule: width = area / height rounded to the multiple; width / height within `aspect`.
    """
    sizes = []
    for height in range(multiple, math.floor(math.sqrt(area / aspect[0])) + 2 * multiple, multiple):
        width = math.floor(area / height / multiple + 0.5) * multiple
        if width > 0 and aspect[0] <= width / height <= aspect[1]:
            sizes.append((height, width))
    return [Bucket(int(t), h, w) for t in sorted(set(frames)) for h, w in sizes]


def nearest_bucket(width: int, height: int, frames: int, choices: Sequence[Bucket]) -> Bucket | None:
    """The bucket for a clip: nearest aspect ratio, then the longest that the clip fills; None when too short."""
    fitting = [b for b in choices if b.frames <= frames]
    if not fitting:
        return None
    longest = max(b.frames for b in fitting)
    ratio = math.log(width / height)
    return min(
        (b for b in fitting if b.frames == longest), key=lambda b: (abs(math.log(b.width / b.height) - ratio), b)
    )


def cover_crop(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    """Scale (T, H, W, 3) uint8 to cover (height, width), bicubic with antialiasing, then crop the centre."""
    if frames.shape[1:3] == (height, width):
        return frames
    cover = cover_size(frames.shape[1], frames.shape[2], height, width)
    return centre_crop(resize(frames, *cover), height, width)


def cover_size(height: int, width: int, to_height: int, to_width: int) -> tuple[int, int]:
    scale = max(to_height / height, to_width / width)
    return max(to_height, round(height * scale)), max(to_width, round(width * scale))


def centre_crop(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    top, left = (frames.shape[1] - height) // 2, (frames.shape[2] - width) // 2
    return np.ascontiguousarray(frames[:, top : top + height, left : left + width])


def resize(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    from PIL import Image

    if frames.shape[1:3] == (height, width):
        return frames
    size = (width, height)
    return np.stack([np.asarray(Image.fromarray(f).resize(size, Image.Resampling.BICUBIC)) for f in frames])


def check_range(indices: Sequence[int], frames: int) -> None:
    wrong = [i for i in indices if not 0 <= i < frames]
    if wrong:
        raise MediaError(f"frame {wrong[0]} was asked for, the file has {frames}")
