"""Frames of a video file by number, decoded at a size, through PyAV."""

from __future__ import annotations

import bisect
import io
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

from sama.media import MediaError, cover_size, media_type

SEEK_FROM = 24  # a window that begins before this frame is decoded from the start: looking for key frames costs more


def decode_video(data: bytes, indices: list[int], size: tuple[int, int] | None, out: np.ndarray | None) -> np.ndarray:
    """The frames asked for, (T, H, W, 3) uint8; see `video.decode`. At least one is."""
    import av

    places: dict[int, list[int]] = {}
    for place, index in enumerate(indices):
        places.setdefault(index, []).append(place)
    first, left = min(places), len(places)
    if first < 0:
        raise MediaError(f"frame {first} was asked for; frames are counted from 0")
    picture, position = _Picture(size), -1
    try:
        for position, frame in _frames_from(data, first):
            wanted = places.get(position)
            if wanted is None:
                continue
            pixels = picture(frame)
            if out is None:
                out = np.empty((len(indices), *pixels.shape), np.uint8)
            for place in wanted:
                out[place] = pixels
            left -= 1
            if not left:
                return out
    except (av.FFmpegError, OSError, ValueError) as error:
        raise MediaError(f"frame {position + 1} does not decode: {reason(error)}") from None
    missing = min(i for i in places if i > position)
    raise MediaError(f"frame {missing} was asked for, the file has {position + 1}")


def _frames_from(data: bytes, first: int) -> Iterator[tuple[int, Any]]:
    """(number, frame) in presentation order, from a key frame that is not behind `first`."""
    import av

    next_number = 0
    if first >= SEEK_FROM and media_type(data) in ("mp4", "mov", "mkv"):  # the others have no index to seek by
        for number, frame in _frames_from_key(data, first):
            yield number, frame
            next_number = number + 1
    with av.open(io.BytesIO(data)) as container:  # from the start, also where seeking did not lead to the end
        stream = _one_thread(best_stream(container))
        yield from itertools.islice(enumerate(_decoded(container, stream)), next_number, None)


def _frames_from_key(data: bytes, first: int) -> Iterator[tuple[int, Any]]:
    """As `_frames_from`, ending early where the frames are not those that the packets' times promise."""
    import av

    with av.open(io.BytesIO(data)) as container:
        stream = _one_thread(best_stream(container))
        numbers = _seek(container, stream, first)
        if numbers is None:
            return
        expected = min(numbers.values())
        for frame in _decoded(container, stream):
            number = numbers.get(frame.pts)
            if number is None:
                continue  # shown before the key frame: not whole
            if number != expected:
                return
            yield number, frame
            expected += 1


def _decoded(container: Any, stream: Any) -> Iterator[Any]:
    for packet in container.demux(stream):
        if packet.is_corrupt:
            raise MediaError("the file is truncated")
        yield from packet.decode()


def _seek(container: Any, stream: Any, first: int) -> dict[int, int] | None:
    """Go to the last key frame shown at or before frame `first`; the number of each frame from there on by its time.

    None where the times of the packets cannot say it, or where it would save nothing. Frames that are shown before
    a key frame but follow it in the file (open GOP) belong to the key frame before.
    """
    shown = [(p.pts, p.is_keyframe) for p in container.demux(stream) if p.size and not p.is_discard]
    times = [pts for pts, _ in shown]
    if any(pts is None for pts in times) or len(set(times)) < len(times) or first >= len(times):
        return None
    in_order = sorted(times)
    key = max((pts for pts, is_key in shown if is_key and pts <= in_order[first]), default=in_order[0])
    if key == in_order[0]:
        return None
    container.seek(key, stream=stream)
    start = bisect.bisect_left(in_order, key)
    return {pts: number for number, pts in enumerate(in_order[start:], start)}


class _Picture:
    """A decoded frame as (H, W, 3) uint8 RGB, scaled to cover `size` and cropped. Valid until the next call."""

    def __init__(self, size: tuple[int, int] | None) -> None:
        from av.video.reformatter import VideoReformatter

        self._size, self._scale, self._convert = size, VideoReformatter(), VideoReformatter()

    def __call__(self, frame: Any) -> np.ndarray:
        turns = round(frame.rotation / 90) % 4
        height, width = frame.height, frame.width
        if self._size is None:
            return np.rot90(self._rgb(frame, height, width), turns)
        size = self._size[::-1] if turns % 2 else self._size
        if (height, width) != size:
            # even sides, so that the colour planes of 4:2:0 have whole sizes
            height, width = (side + side % 2 for side in cover_size(height, width, *size))
        top, left = (height - size[0]) // 2, (width - size[1]) // 2
        return np.rot90(self._rgb(frame, height, width)[top : top + size[0], left : left + size[1]], turns)

    def _rgb(self, frame: Any, height: int, width: int) -> np.ndarray:
        if frame.format.name in ("yuv420p", "yuvj420p"):
            # scaled as it is and then converted: measured at half the time of FFmpeg's scaling straight to RGB
            frame = self._scale.reformat(frame, width, height, interpolation="BICUBIC", threads=1)
        frame = self._convert.reformat(frame, width, height, "rgb24", interpolation="BICUBIC", threads=1)
        plane = frame.planes[0]
        rows = np.frombuffer(plane, np.uint8).reshape(height, plane.line_size)
        return rows[:, : 3 * width].reshape(height, width, 3)


def _one_thread(stream: Any) -> Any:
    stream.thread_type, stream.codec_context.thread_count = "NONE", 1
    return stream


def reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)


def best_stream(container: Any) -> Any:
    stream = container.streams.best("video")
    if stream is None or stream.codec_context is None:
        raise MediaError("no video stream")
    return stream
