"""Still pictures, and animations that FFmpeg cannot read (animated webp), through Pillow."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from sama.media import IMAGE_TYPES, MediaError, Probe, check_range, cover_crop, media_type


def is_image(data: bytes) -> bool:
    """Whether the file is one still picture (an animated webp, gif or png counts as a video)."""
    kind = media_type(data)
    if kind not in IMAGE_TYPES:
        return False
    if kind in ("jpg", "bmp"):
        return True
    with _open_image(data) as image:
        return getattr(image, "n_frames", 1) == 1


def _open_image(data: bytes) -> Any:
    from PIL import Image, UnidentifiedImageError

    try:
        return Image.open(io.BytesIO(data))
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise MediaError(f"not a readable picture: {error}") from None


def _image_frames(data: bytes, every: bool) -> Iterator[tuple[np.ndarray, float]]:
    """Each frame as (H, W, 3) uint8 with its duration in ms; only the first unless `every`."""
    from PIL import Image, ImageOps, ImageSequence

    with _open_image(data) as image:
        try:
            for frame in ImageSequence.Iterator(image) if every else [image]:
                frame.load()
                duration = float(frame.info.get("duration") or 0)
                yield _rgb(ImageOps.exif_transpose(frame)), duration
        except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
            raise MediaError(f"the picture does not decode: {error}") from None


def _rgb(image: Any) -> np.ndarray:
    """8-bit RGB; transparent parts become white, 16-bit greys are scaled."""
    from PIL import Image

    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("RGB"))


def _animated(data: bytes, kind: str) -> bool:
    return kind not in ("jpg", "bmp") and not is_image(data)


def probe_image(data: bytes, kind: str) -> Probe:
    animated = _animated(data, kind)
    count, milliseconds, first = 0, 0.0, None
    for frame, duration in _image_frames(data, animated):
        first = frame if first is None else first
        count, milliseconds = count + 1, milliseconds + duration
    if first is None:
        raise MediaError("the picture has no frame")
    height, width = first.shape[:2]
    if not animated:
        return Probe(width, height, 0.0, 1, kind, False, 0.0)
    # a browser shows a frame without a duration for 100 ms
    seconds = milliseconds / 1000 or count * 0.1
    return Probe(width, height, count / seconds, count, kind, False, seconds)


def decode_image(data: bytes, indices: Sequence[int] | None, size: tuple[int, int] | None) -> np.ndarray:
    frames = [frame for frame, _ in _image_frames(data, _animated(data, media_type(data)))]
    if indices is not None:
        check_range(indices, len(frames))
        frames = [frames[i] for i in indices]
    stack = np.stack(frames) if frames else np.zeros((0, *(size or (1, 1)), 3), np.uint8)
    return cover_crop(stack, *size) if size and len(stack) else stack


def encode_image(frame: np.ndarray, fmt: str = "png") -> bytes:
    """One frame (H, W, 3) uint8 as png, jpg (quality 95) or webp bytes."""
    from PIL import Image

    sink = io.BytesIO()
    name = {"jpg": "jpeg"}.get(fmt, fmt)
    Image.fromarray(frame).save(sink, format=name, **({} if name == "png" else {"quality": 95}))
    return sink.getvalue()
