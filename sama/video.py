"""Video and image files in memory: probe, decode by index at a size, encode; resolution buckets.

Sizes are pixels as shown, after rotation (a sample aspect ratio other than 1 is not applied). Of several
video streams the one that FFmpeg calls the best is read, in probing as in decoding.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from sama.media import (
    IMAGE_TYPES,
    Bucket,
    MediaError,
    Probe,
    buckets,
    centre_crop,
    check_range,
    cover_crop,
    cover_size,
    media_type,
    nearest_bucket,
    resize,
)
from sama.pictures import decode_image, encode_image, is_image, probe_image

__all__ = [
    "Bucket",
    "MediaError",
    "Probe",
    "buckets",
    "cover_crop",
    "decode",
    "encode",
    "encode_image",
    "is_image",
    "media_type",
    "nearest_bucket",
    "probe",
]


def probe(data: bytes) -> Probe:
    """Size, rate and exact frame count. Video packets are counted without decoding them.

    MediaError when nothing can be read, or when the file ends before its header says (a truncated copy).
    """
    kind = media_type(data)
    if kind in IMAGE_TYPES:
        return probe_image(data, kind)
    return _scan_video(data)[0]


def decode(data: bytes, indices: Sequence[int] | None = None, size: tuple[int, int] | None = None) -> np.ndarray:
    """Frames as (T, H, W, 3) uint8 RGB.

    indices: frame numbers in presentation order, any order, repeats allowed; None for all frames.
    size: (height, width); scaled to cover it while decoding, then centre-cropped. None keeps the size.
    MediaError when a wanted frame is not there or does not decode.
    """
    if media_type(data) in IMAGE_TYPES:
        return decode_image(data, indices, size)
    facts, simple = _scan_video(data)
    wanted = list(range(facts.frames)) if indices is None else [int(i) for i in indices]
    check_range(wanted, facts.frames)
    if not wanted:
        height, width = size or (facts.height, facts.width)
        return np.zeros((0, height, width, 3), np.uint8)
    cover = cover_size(facts.height, facts.width, *size) if size else None
    frames = _decode_decord(data, wanted, facts, cover) if simple else None
    if frames is None:
        frames = _decode_av(data, wanted, cover)
    return centre_crop(frames, *size) if size else frames


def encode(frames: np.ndarray, fps: float, audio_from: bytes | None = None, crf: int = 16) -> bytes:
    """An H.264 mp4 (yuv420p, faststart) of frames (T, H, W, 3) uint8 RGB.

    4:2:0 needs even sides: an odd one gets its last row or column once more, even ones stay as they are.
    audio_from: a file whose first audio track is taken along, cut to the video's length; a codec that
    mp4 cannot hold is re-encoded as AAC. One encoder thread: the same bytes on every machine.
    """
    import av

    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not len(frames):
        raise ValueError(f"frames must be (T, H, W, 3) uint8 with T > 0, not {frames.shape} {frames.dtype}")
    if fps <= 0:
        raise ValueError(f"fps must be above 0, not {fps}")
    odd_h, odd_w = frames.shape[1] % 2, frames.shape[2] % 2
    if odd_h or odd_w:
        frames = np.pad(frames, ((0, 0), (0, odd_h), (0, odd_w), (0, 0)), mode="edge")
    audio = av.open(io.BytesIO(audio_from)) if audio_from else None
    with tempfile.TemporaryDirectory() as folder, audio or contextlib.nullcontext():
        path = Path(folder) / "video.mp4"  # faststart reads the file again, so it must have a name
        with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as out:
            stream: Any = out.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
            stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
            stream.options = {"crf": str(crf), "threads": "1"}
            stream.codec_context.thread_count = 1
            stream.codec_context.colorspace = 6  # smpte170m, which is what the conversion below writes
            track = _AudioTrack(out, audio) if audio and audio.streams.audio else None
            for frame in frames:
                picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
                picture = picture.reformat(format="yuv420p", dst_colorspace="ITU601")
                out.mux(stream.encode(picture))
            out.mux(stream.encode(None))
            if track:
                track.copy(len(frames) / fps)
        return path.read_bytes()


# Videos: PyAV for facts, decord for pixels, PyAV again where decord fails


def _scan_video(data: bytes) -> tuple[Probe, bool]:
    """The facts, and whether decord may read the file.

    decord 3.4 was measured to return neighbouring frames in MPEG program streams (its frame 0 is not the
    first) and where frames shown before a key frame follow it in the file (open GOP, HEVC leading pictures).
    """
    import av

    simple, last_key = media_type(data) in ("mp4", "mov", "mkv"), None
    try:
        with av.open(io.BytesIO(data)) as container:
            stream = _best_stream(container)
            count, corrupt, times, turn = 0, False, [], None
            for packet in container.demux(stream):
                if turn is None:  # one decoded frame proves the codec and knows the rotation
                    turn = next((frame.rotation for frame in packet.decode()), None)
                if packet.size and not packet.is_discard:
                    count, corrupt = count + 1, corrupt or packet.is_corrupt
                if packet.size and packet.pts is not None:
                    times.append(float(packet.pts * packet.time_base))
                    last_key = packet.pts if packet.is_keyframe else last_key
                    simple = simple and (last_key is None or packet.pts >= last_key)
            context = stream.codec_context
            width, height = context.width, context.height
            if stream.frames > count or corrupt:
                raise MediaError(f"truncated: the header promises {stream.frames or 'more'} frames, {count} are whole")
            if turn is None or not width or not height:
                raise MediaError("the video has no frame")
            codec, has_audio = context.codec.canonical_name, bool(container.streams.audio)
            rate = float(stream.average_rate or stream.guessed_rate or 0)
            if not rate and len(times) > 1 and max(times) > min(times):
                rate = (len(times) - 1) / (max(times) - min(times))
            if not rate:
                raise MediaError("the video has no frame rate")
    except (av.FFmpegError, OSError, ValueError, StopIteration) as error:
        raise MediaError(f"not a readable video: {_reason(error)}") from None
    if turn % 180:
        width, height = height, width
    return Probe(width, height, rate, count, codec, has_audio, count / rate), simple


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)


def _best_stream(container: Any) -> Any:
    stream = container.streams.best("video")
    if stream is None or stream.codec_context is None:
        raise MediaError("no video stream")
    return stream


def _decode_decord(
    data: bytes, indices: Sequence[int], facts: Probe, cover: tuple[int, int] | None
) -> np.ndarray | None:
    """The wanted frames at the covering size; None when decord cannot read the file or counts otherwise."""
    import decord

    order = sorted(set(indices))

    decord.logging.set_level(decord.logging.FATAL)
    height, width = cover or (-1, -1)
    try:
        reader = decord.VideoReader(io.BytesIO(data), width=width, height=height, num_threads=1)
        if len(reader) != facts.frames:
            return None
        frames = reader.get_batch(order).asnumpy()
    except (decord.DECORDError, RuntimeError, IndexError):
        return None
    expected = cover or (facts.height, facts.width)
    if frames.shape[1:3] != expected:
        return None
    return frames if order == list(indices) else frames[np.searchsorted(order, indices)]


def _decode_av(data: bytes, indices: Sequence[int], cover: tuple[int, int] | None) -> np.ndarray:
    import av

    wanted, found, position = set(indices), {}, 0
    try:
        with av.open(io.BytesIO(data)) as container:
            for frame in container.decode(_best_stream(container)):
                if position in wanted:
                    picture = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
                    found[position] = resize(picture[None], *cover)[0] if cover else np.ascontiguousarray(picture)
                position += 1
                if len(found) == len(wanted):
                    break
    except (av.FFmpegError, OSError, ValueError) as error:
        raise MediaError(f"frame {position} does not decode: {_reason(error)}") from None
    missing = sorted(wanted - set(found))
    if missing:
        raise MediaError(f"frame {missing[0]} was asked for, only {position} decode")
    return np.stack([found[i] for i in indices])


class _AudioTrack:
    """Carries the first audio stream of one container into another."""

    def __init__(self, out: Any, source: Any) -> None:
        self.source, self.out = source, out
        self.stream = source.streams.audio[0]
        self.as_is = self.stream.codec_context.name in out.supported_codecs
        if self.as_is:
            self.target = out.add_stream_from_template(self.stream)
        else:
            self.target = out.add_stream("aac", rate=self.stream.rate)

    def copy(self, seconds: float) -> None:
        """Write the track up to `seconds`."""
        start = None
        for packet in self.source.demux(self.stream):
            if packet.pts is None:
                continue
            start = packet.pts if start is None else start
            if float((packet.pts - start) * packet.time_base) >= seconds:
                break
            if self.as_is:
                packet.stream = self.target
                self.out.mux(packet)
                continue
            for frame in packet.decode():
                frame.pts = None
                self.out.mux(self.target.encode(frame))
        if not self.as_is:
            self.out.mux(self.target.encode(None))
