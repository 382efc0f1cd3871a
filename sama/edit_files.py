"""Editing whole files: any size and length in, the same size, length, rate and sound out."""

from __future__ import annotations

import dataclasses
import io
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sama import video
from sama.editing import EditPipeline, EditSettings, Watch
from sama.errors import InputError
from sama.video import Bucket, Probe
from sama.video_frames import best_stream

DECODE_BYTES = 2**28  # pixels held at the file's own size while they are scaled to the working size
STRIP_FRAMES, STRIP_HEIGHT = 6, 128


@dataclass(frozen=True)
class Edited:
    """One edited file and what a report says about it.

    data: the file's bytes, mp4 for a video, `kind` for an image; source, frames: (T, H, W, 3) uint8 at the size
    the model worked at; seconds: wall time of this edit.
    """

    data: bytes
    kind: str
    instruction: str
    source: np.ndarray
    frames: np.ndarray
    seconds: float
    facts: Probe

    def strip(self) -> bytes:
        """A png: source frames in the top row, edited frames below."""
        return strip(self.source, self.frames)


def edit_media(
    pipeline: EditPipeline,
    data: bytes,
    instructions: Sequence[str],
    *,
    settings: EditSettings | None = None,
    image_format: str = "png",
    max_frames: int | None = None,
    progress: bool | Watch = True,
    **changes: Any,
) -> Iterator[Edited]:
    """Edit a file's bytes once per instruction; the file is decoded and encoded into latents once.

    The model works at the preset's area, at the aspect ratio of its buckets nearest to the file's: frames are stretched
    by the few percent that remain and stretched back, so nothing is cropped and source and edit agree pixel by pixel.
    Pixels that are not square stay so, and the model sees the picture in its true proportions. image_format: png, jpg
    or webp, for a still image. max_frames: edit only the beginning. Frames of uneven lengths come back at their mean
    rate. video.MediaError when the bytes cannot be decoded; InputError for settings.
    """
    facts = video.probe(data)
    count = min(facts.frames, max_frames) if max_frames else facts.frames
    preset = pipeline.encoders.preset
    still = video.is_image(data)
    pixel = pixel_aspect(data)
    shape = working_size(round(facts.width * pixel), facts.height, preset.area, preset.multiple)
    sound = data if facts.has_audio else None
    if sound:  # one that cannot be taken along is told before the edit, not after it
        video.encode(np.zeros((count, 16, 16, 3), np.uint8), facts.fps, audio_from=sound)
    source = read(data, facts, count, shape.height, shape.width)
    edits = pipeline.edit_each(source, instructions, settings, progress=progress, **changes)
    for instruction in instructions:
        started = time.monotonic()
        frames = next(edits)
        full = stretch(frames, facts.height, facts.width)
        if still:
            done = video.encode_image(full[0], image_format)
        else:
            done = video.encode(full, facts.fps, audio_from=sound, pixel_aspect=pixel if pixel != 1 else None)
        seconds = time.monotonic() - started
        yield Edited(done, image_format if still else "mp4", instruction, source, frames, seconds, facts)


def edit_file(pipeline: EditPipeline, clip: str | Path, instruction: str, out: str | Path, **options: Any) -> Edited:
    """Edit one local file into `out` (.mp4 for a video; .png, .jpg or .webp for an image).

    Options are those of `edit_media`. `out` appears only when the edit is done. InputError for a file that is not
    there, cannot be decoded, or whose kind does not fit the name of `out`.
    """
    target = Path(out)
    try:
        data = Path(clip).read_bytes()
    except OSError:
        raise InputError(f"there is no readable file {clip}") from None
    try:
        image_format = output_format(data, str(out))
        edited = next(edit_media(pipeline, data, [instruction], image_format=image_format, **options))
    except video.MediaError as error:
        raise InputError(f"{clip}: {error}") from None
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f"{target.name}.tmp")
    temporary.write_bytes(edited.data)
    temporary.replace(target)
    return edited


def output_format(data: bytes, out: str) -> str:
    """The format that `out` names, for an input of these bytes. InputError when the two do not fit."""
    suffix = Path(out).suffix.lower().lstrip(".")
    if video.is_image(data):
        if suffix not in ("png", "jpg", "jpeg", "webp"):
            raise InputError(f"{out}: an edited image is written as .png, .jpg or .webp")
        return "jpg" if suffix == "jpeg" else suffix
    if suffix != "mp4":
        raise InputError(f"{out}: an edited video is written as .mp4")
    return suffix


def pixel_aspect(data: bytes) -> Fraction:
    """Width over height of a video's pixels, as shown after rotation; 1 where the file does not say."""
    import av

    if video.media_type(data) in video.IMAGE_TYPES:
        return Fraction(1)
    try:
        with av.open(io.BytesIO(data)) as container:
            stream = best_stream(container)
            frame = next(container.decode(stream))
            said = stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio
    except (av.FFmpegError, OSError, ValueError, StopIteration) as error:
        raise video.MediaError(f"not a readable video: {error}") from None
    if not said or said <= 0:
        return Fraction(1)
    return 1 / Fraction(said) if frame.rotation % 180 else Fraction(said)


def working_size(width: int, height: int, area: int, multiple: int) -> Bucket:
    """The size the model works at: the bucket (frames 1) nearest to the file's aspect ratio, however long."""
    ratio = width / height
    choices = video.buckets(area, multiple, (min(0.5, 0.8 * ratio), max(2.0, 1.25 * ratio)), [1])
    found = video.nearest_bucket(width, height, 1, choices)
    if found is None:
        raise InputError(f"no size of about {area} pixels in multiples of {multiple} fits {width}x{height}")
    return found


def read(data: bytes, facts: Probe, count: int, height: int, width: int) -> np.ndarray:
    """The first `count` frames stretched to (count, height, width, 3) uint8, decoded a part at a time."""
    at_once = max(16, DECODE_BYTES // (facts.width * facts.height * 3))
    frames = np.empty((count, height, width, 3), dtype=np.uint8)
    for start in range(0, count, at_once):
        stop = min(start + at_once, count)
        frames[start:stop] = stretch(video.decode(data, range(start, stop)), height, width)
    return frames


def stretch(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    """Scale (T, H, W, 3) uint8 to exactly (height, width), bicubic with antialiasing; the aspect ratio may change."""
    if frames.shape[1:3] == (height, width):
        return frames
    out = np.empty((len(frames), height, width, 3), dtype=np.uint8)
    for i, frame in enumerate(frames):
        out[i] = np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC))
    return out


def strip(source: np.ndarray, edited: np.ndarray) -> bytes:
    """A png of evenly spaced frames: source in the top row, edited below; (T, H, W, 3) uint8 each."""
    picks = np.unique(np.linspace(0, len(source) - 1, min(STRIP_FRAMES, len(source))).round().astype(int))
    height = STRIP_HEIGHT if len(picks) > 1 else 2 * STRIP_HEIGHT
    width = max(1, round(source.shape[2] * height / source.shape[1]))
    rows = [np.concatenate(list(stretch(side[picks], height, width)), axis=1) for side in (source, edited)]
    return video.encode_image(np.concatenate(rows, axis=0))


def as_changes(settings: EditSettings) -> dict[str, Any]:
    """The settings as plain values, for the facts written beside an edit."""
    return dataclasses.asdict(settings)
