"""Sound that is taken along stays in step with the picture, whatever clock, codec or container it comes in."""

from __future__ import annotations

import io

import av
import numpy as np
import pytest

from sama import video
from sama.media import MediaError

FPS, RATE, FRAMES, FLASH = 10, 16000, 20, 12  # the frame that flashes while the sound clicks


def clip(container: str, codec: str, late: float = 0.0, silent: float = 0.0) -> bytes:
    """A flash and a click at one moment. late: when the picture starts on the file's clock; silent: how much later the
    sound does."""
    sink = io.BytesIO()
    with av.open(sink, "w", format=container) as out:
        picture = out.add_stream("libx264", rate=FPS)
        picture.height = picture.width = 64
        picture.pix_fmt, picture.options = "yuv420p", {"tune": "zerolatency"}
        sound = out.add_stream(codec, rate=RATE, layout="mono")
        for i, frame in enumerate(pictures()):
            shown = av.VideoFrame.from_ndarray(frame, format="rgb24")
            shown.pts = i + round(late * FPS)
            out.mux(picture.encode(shown))
        out.mux(picture.encode(None))
        wave = np.zeros(round((FRAMES / FPS - silent) * RATE), np.int16)
        at = round((FLASH / FPS - silent) * RATE)
        wave[at : at + 600] = 20000
        for start in range(0, len(wave) - 1023, 1024):
            piece = av.AudioFrame.from_ndarray(wave[None, start : start + 1024], format="s16", layout="mono")
            piece.sample_rate, piece.pts = RATE, start + round((late + silent) * RATE)
            out.mux(sound.encode(piece))
        out.mux(sound.encode(None))
    return sink.getvalue()


def pictures() -> np.ndarray:
    frames = np.zeros((FRAMES, 64, 64, 3), np.uint8)
    frames[FLASH] = 255
    return frames


def moments(data: bytes) -> tuple[float, float]:
    """When the flash and the click come, in seconds."""
    with av.open(io.BytesIO(data)) as container:
        flash = next(f.time for f in container.decode(video=0) if f.to_ndarray(format="rgb24").mean() > 100)
    with av.open(io.BytesIO(data)) as container:
        for frame in container.decode(audio=0):
            loud = np.abs(frame.to_ndarray().astype(float)).max(0)
            loud = loud / (32768 if frame.format.name.startswith("s16") else 1) > 0.2
            if loud.any():
                return flash, frame.time + float(loud.argmax()) / frame.sample_rate
    raise AssertionError("no click")


@pytest.mark.parametrize(
    ("container", "codec"),
    [
        ("mp4", "aac"),
        ("matroska", "libopus"),
        ("matroska", "pcm_s16le"),
        ("mpegts", "aac"),
        ("mpegts", "mp2"),
        ("mov", "pcm_s16le"),
        ("matroska", "flac"),
    ],
)
@pytest.mark.parametrize(("late", "silent"), [(0.0, 0.0), (1.5, 0.0), (0.0, 0.5), (1.5, 0.5)])
def test_flash_and_click_stay_together(container: str, codec: str, late: float, silent: float) -> None:
    data = clip(container, codec, late, silent)
    before, after = moments(data), moments(video.encode(pictures(), FPS, audio_from=data))
    assert before[1] == pytest.approx(before[0], abs=0.04)  # the made file is as it is meant
    assert after[0] == pytest.approx(FLASH / FPS, abs=1e-6)
    assert after[1] == pytest.approx(after[0], abs=0.04)


def test_sound_is_cut_where_the_picture_ends() -> None:
    data = video.encode(pictures()[:5], FPS, audio_from=clip("mp4", "aac", late=1.5))
    with av.open(io.BytesIO(data)) as container:
        last = [f.time + f.samples / f.sample_rate for f in container.decode(audio=0)][-1]
    assert last == pytest.approx(0.5, abs=1024 / RATE)


def test_sound_that_does_not_decode_is_said() -> None:
    data = clip("matroska", "flac")
    with av.open(io.BytesIO(data)) as container:
        packets = [bytes(p) for p in container.demux(audio=0) if p.size]
    for packet in packets:
        data = data.replace(packet, b"\xff\xf8" + b"\0" * (len(packet) - 2))
    with pytest.raises(MediaError, match="its sound cannot be taken along"):
        video.encode(pictures(), FPS, audio_from=data)
