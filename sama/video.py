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
    cover_crop,
    media_type,
    nearest_bucket,
)
from sama.pictures import decode_image, encode_image, is_image, probe_image
from sama.sound import AudioTrack
from sama.video_frames import best_stream, decode_video, reason

__all__ = [
    "IMAGE_TYPES",
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
    return _scan_video(data)


def decode(
    data: bytes,
    indices: Sequence[int] | None = None,
    size: tuple[int, int] | None = None,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Frames as (T, H, W, 3) uint8 RGB.

    indices: frame numbers in presentation order, any order, repeats allowed; None for all frames.
    size: (height, width); scaled to cover it while decoding, then centre-cropped. None keeps the size.
    out: where the frames go, (T, H, W, 3) uint8; needs `size`. Without it memory is allocated.
    Only the frames from the last key frame before the first wanted one to the last wanted one are decoded, one
    thread. MediaError when a wanted frame is not there or does not decode.
    """
    if out is not None and size is None:
        raise ValueError("out needs a size")
    if media_type(data) in IMAGE_TYPES:
        frames = decode_image(data, indices, size)
        if out is None:
            return frames
        out[:] = frames
        return out
    if indices is None or not len(indices):
        facts = probe(data)
        size = size or (facts.height, facts.width)
        indices = range(facts.frames) if indices is None else []
        if not len(indices):
            return np.zeros((0, *size, 3), np.uint8)
    return decode_video(data, [int(i) for i in indices], size, out)


def encode(
    frames: np.ndarray, fps: float, audio_from: bytes | None = None, crf: int = 16, pixel_aspect: Fraction | None = None
) -> bytes:
    """An H.264 mp4 (yuv420p, faststart) of frames (T, H, W, 3) uint8 RGB.

    4:2:0 needs even sides: a picture with an odd one is written as yuv444p, which keeps its size but which some
    players do not show. audio_from: a file whose first audio track is taken along, cut to the video's length and as
    far from its picture in time as it was; a codec that players do not expect in mp4 is re-encoded as AAC.
    pixel_aspect: width over height of a pixel, square by default. One encoder thread: the same bytes on every machine.
    MediaError for sound that does not decode.
    """
    import av

    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not len(frames):
        raise ValueError(f"frames must be (T, H, W, 3) uint8 with T > 0, not {frames.shape} {frames.dtype}")
    if fps <= 0:
        raise ValueError(f"fps must be above 0, not {fps}")
    pixels = "yuv444p" if frames.shape[1] % 2 or frames.shape[2] % 2 else "yuv420p"
    audio = av.open(io.BytesIO(audio_from)) if audio_from else None
    with tempfile.TemporaryDirectory() as folder, audio or contextlib.nullcontext():
        path = Path(folder) / "video.mp4"  # faststart reads the file again, so it must have a name
        with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as out:
            stream: Any = out.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
            stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], pixels
            stream.options = {"crf": str(crf), "threads": "1"}
            stream.codec_context.thread_count = 1
            if pixel_aspect is not None:
                stream.codec_context.sample_aspect_ratio = pixel_aspect
            stream.codec_context.colorspace = 6  # smpte170m, which is what the conversion below writes
            track = AudioTrack(out, audio) if audio and audio.streams.audio else None
            for frame in frames:
                picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
                picture = picture.reformat(format=pixels, dst_colorspace="ITU601")
                out.mux(stream.encode(picture))
            out.mux(stream.encode(None))
            if track:
                track.copy(len(frames) / fps)
        return path.read_bytes()


def _scan_video(data: bytes) -> Probe:
    import av

    try:
        with av.open(io.BytesIO(data)) as container:
            stream = best_stream(container)
            count, corrupt, times, turn = 0, False, [], None
            for packet in container.demux(stream):
                if turn is None:  # one decoded frame proves the codec and knows the rotation
                    turn = next((frame.rotation for frame in packet.decode()), None)
                if packet.size and not packet.is_discard:
                    count, corrupt = count + 1, corrupt or packet.is_corrupt
                if packet.size and packet.pts is not None:
                    times.append(float(packet.pts * packet.time_base))
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
        raise MediaError(f"not a readable video: {reason(error)}") from None
    if turn % 180:
        width, height = height, width
    return Probe(width, height, rate, count, codec, has_audio, count / rate)
