"""Files are read exactly: the right frames, sizes and counts, also of odd ones; broken ones say so."""

from __future__ import annotations

import io
import itertools
import struct
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from sama import video, video_frames
from sama.video import Bucket, MediaError


def numbered(count: int, height: int = 48, width: int = 64) -> np.ndarray:
    """Frames whose brightness is their number: 10 per frame, so that neighbours cannot be confused."""
    frames = np.zeros((count, height, width, 3), np.uint8)
    frames[:] = (10 * np.arange(count) + 20)[:, None, None, None].astype(np.uint8)
    return frames


def numbers(frames: np.ndarray) -> list[int]:
    return [round((float(f.mean()) - 20) / 10) for f in frames]


@pytest.fixture(scope="module")
def clip() -> bytes:
    return video.encode(numbered(21), 8.0)


@pytest.mark.parametrize("size", [(48, 64), (47, 64), (48, 63), (35, 33)])
def test_encode_keeps_any_size(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    frames = np.repeat(rng.integers(60, 200, (1, size[0] // 8 + 1, size[1] // 8 + 1, 3)), 5, 0)
    frames = frames.repeat(8, 1).repeat(8, 2)[:, : size[0], : size[1]].astype(np.uint8)
    data = video.encode(frames, 12.5)
    facts = video.probe(data)
    assert (facts.height, facts.width) == size
    assert (facts.frames, facts.fps, facts.codec, facts.has_audio) == (5, 12.5, "h264", False)
    assert np.abs(video.decode(data).astype(int) - frames).mean() < 4


def test_encoding_is_reproducible_and_seekable_from_the_start(clip: bytes) -> None:
    assert video.encode(numbered(21), 8.0) == clip
    assert clip.index(b"moov") < clip.index(b"mdat")  # faststart


@pytest.mark.parametrize("colour", [(255, 0, 0), (0, 255, 0), (0, 0, 255), (240, 200, 20)])
def test_colours_survive_a_round_trip(colour: tuple[int, int, int]) -> None:
    frames = np.full((3, 64, 64, 3), colour, np.uint8)
    assert np.abs(video.decode(video.encode(frames, 10)).astype(int) - frames).max() <= 6


def test_frames_by_index_come_in_the_order_asked_with_repeats(clip: bytes) -> None:
    for wanted in ([0], [20], [3, 1, 2], [5, 5, 0, 20, 5], list(range(20, -1, -3)), []):
        assert numbers(video.decode(clip, wanted)) == wanted
    with pytest.raises(MediaError, match="21 was asked for, the file has 21"):
        video.decode(clip, [0, 21])


def test_size_scales_to_cover_and_crops_the_centre() -> None:
    frames = np.zeros((2, 60, 120, 3), np.uint8)
    frames[:, :, 40:80] = 255  # the middle third
    shown = video.decode(video.encode(frames, 5), size=(30, 20))
    assert shown.shape == (2, 30, 20, 3)
    assert shown[:, :, 2:-2].min() > 200  # only the middle is left
    assert np.array_equal(video.cover_crop(frames, 60, 120), frames)
    assert video.cover_crop(frames, 30, 20)[:, :, 2:-2].min() > 200


def test_rotation_is_applied_to_size_and_pixels() -> None:
    frames = np.zeros((3, 64, 96, 3), np.uint8)
    frames[:, :32, :48] = (255, 0, 0)  # top left
    data = video.encode(frames, 10)
    at = data.index(b"tkhd") + 44
    one = 1 << 16
    turned = data[:at] + struct.pack(">9i", 0, one, 0, -one, 0, 0, 64 * one, 0, 1 << 30) + data[at + 36 :]
    facts = video.probe(turned)
    assert (facts.width, facts.height) == (64, 96)
    fast = video.decode(turned)
    assert fast.shape == (3, 96, 64, 3)
    assert fast[0, 5, -5, 0] > 200  # turned clockwise: now top right
    assert fast[0, 5, 5, 0] < 50
    small = video.decode(turned, [0], (48, 32))
    assert small.shape == (1, 48, 32, 3)
    assert small[0, 5, -5, 0] > 200
    assert small[0, 5, 5, 0] < 50


@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.6, 0.9, 0.999])
def test_a_cut_mp4_is_an_error_and_never_fewer_frames(clip: bytes, share: float) -> None:
    part = clip[: int(len(clip) * share)]
    with pytest.raises(MediaError):
        video.probe(part)
    with pytest.raises(MediaError):
        video.decode(part)


def test_noise_is_an_error(clip: bytes) -> None:
    head = clip.index(b"mdat") + 4
    noise = np.random.default_rng(0).integers(0, 256, len(clip) - head, dtype=np.uint8).tobytes()
    for data in (clip[:head] + noise, noise, b"", b"\0" * 2000, b"GIF8" + noise, b"\xff\xd8\xff" + noise):
        with pytest.raises(MediaError):
            video.probe(data)


def open_gop(count: int) -> bytes:
    """A clip where frames shown before a key frame follow it in the file."""
    sink = io.BytesIO()
    with av.open(sink, "w", format="mp4") as out:
        stream = out.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        stream.options = {"x264-params": "open-gop=1:keyint=6:min-keyint=1:bframes=3:b-adapt=0:scenecut=0", "crf": "10"}
        for frame in numbered(count):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(format="yuv420p")))
        out.mux(stream.encode(None))
    return sink.getvalue()


@pytest.mark.parametrize("seek_from", [1, 1000])
def test_open_gops_give_the_frame_that_was_asked_for(seek_from: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video_frames, "SEEK_FROM", seek_from)
    data = open_gop(21)
    for number in range(21):
        assert numbers(video.decode(data, [number])) == [number]
    for pair in itertools.combinations(range(0, 21, 4), 2):
        assert numbers(video.decode(data, pair)) == list(pair)


@pytest.mark.parametrize("name", ["bikes.mp4", "cityCC0.mpg", "h265_video.mp4", "rabbit-watermelon.mp4"])
def test_seeking_changes_no_pixel(shared: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = (shared / "clips" / "raw" / name).read_bytes()
    last = min(video.probe(data).frames, 200) - 1
    for wanted in ([last // 2, last // 2 + 1], [last - 2, last]):
        found = []
        for seek_from in (1, 1000):
            monkeypatch.setattr(video_frames, "SEEK_FROM", seek_from)
            found.append(video.decode(data, wanted, (48, 64)))
        assert np.array_equal(*found)


def test_frames_go_where_they_are_wanted(clip: bytes) -> None:
    out = np.zeros((3, 24, 32, 3), np.uint8)
    assert video.decode(clip, [2, 0, 2], (24, 32), out) is out
    assert numbers(out) == [2, 0, 2]
    with pytest.raises(ValueError, match="size"):
        video.decode(clip, [0], out=out)


def audio_clip(codec: str, container: str) -> bytes:
    sink = io.BytesIO()
    with av.open(sink, "w", format=container) as out:
        stream = out.add_stream(codec, rate=16000)
        stream.layout = "mono"
        for i in range(20):
            samples = (3000 * np.sin(np.arange(1600) / 9 + i)).astype(np.int16)
            frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
            frame.sample_rate = 16000
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return sink.getvalue()


@pytest.mark.parametrize(("codec", "container"), [("aac", "mp4"), ("pcm_s16le", "wav")])
def test_audio_is_taken_along_and_cut_to_the_video(codec: str, container: str) -> None:
    data = video.encode(numbered(8), 8.0, audio_from=audio_clip(codec, container))  # 1 s of 2 s
    assert video.probe(data).has_audio
    assert numbers(video.decode(data)) == list(range(8))
    with av.open(io.BytesIO(data)) as container_:
        heard = sum(frame.samples for frame in container_.decode(audio=0)) / 16000
    assert 0.8 < heard < 1.3


@pytest.mark.parametrize("fmt", ["png", "jpg", "webp"])
def test_pictures(fmt: str) -> None:
    frame = np.zeros((40, 60, 3), np.uint8)
    frame[:20] = (200, 100, 50)
    data = video.encode_image(frame, fmt)
    assert video.media_type(data) == fmt
    assert video.is_image(data)
    facts = video.probe(data)
    assert (facts.width, facts.height, facts.frames, facts.fps) == (60, 40, 1, 0.0)
    shown = video.decode(data)
    assert shown.shape == (1, 40, 60, 3)
    assert np.abs(shown[0].astype(int) - frame).mean() < 4
    assert video.decode(data, [0, 0], (20, 20)).shape == (2, 20, 20, 3)
    with pytest.raises(MediaError):
        video.probe(data[: len(data) // 2])


def saved(image: Image.Image, **options: Any) -> bytes:
    sink = io.BytesIO()
    image.save(sink, **options)
    return sink.getvalue()


def test_odd_pictures_turn_as_a_viewer_would_and_have_three_channels() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise
    turned = saved(Image.new("RGB", (60, 40), "red"), format="jpeg", exif=exif)
    assert (video.probe(turned).width, video.decode(turned).shape) == (40, (1, 60, 40, 3))
    clear = saved(Image.new("RGBA", (8, 8), (255, 0, 0, 0)), format="png")
    assert video.decode(clear).min() == 255  # transparent is white
    deep = saved(Image.fromarray(np.full((8, 8), 0x80FF, np.uint16)), format="png")
    assert video.decode(deep)[0, 0, 0].tolist() == [128, 128, 128]


@pytest.mark.parametrize("fmt", ["webp", "gif", "png"])
def test_animations_are_videos(fmt: str) -> None:
    frames = [Image.fromarray(f) for f in numbered(6)]
    data = saved(frames[0], format=fmt, save_all=True, append_images=frames[1:], duration=50, lossless=True)
    assert not video.is_image(data)
    facts = video.probe(data)
    assert (facts.frames, facts.fps, facts.width, facts.height) == (6, 20.0, 64, 48)
    assert numbers(video.decode(data, [4, 0])) == [4, 0]


def test_buckets_follow_the_released_rule() -> None:
    found = video.buckets(832 * 480, 32, (0.5, 2.0), [81, 33])
    sizes = {(b.height, b.width) for b in found}
    assert sizes >= {(480, 832), (832, 480), (448, 896), (896, 448)}
    assert all(b.height % 32 == 0 and b.width % 32 == 0 for b in found)
    assert all(0.5 <= b.width / b.height <= 2 for b in found)
    assert all(abs(b.height * b.width / (832 * 480) - 1) < 0.05 for b in found)
    assert len({b.height for b in found}) == len(found) / 2  # one width per height, for each length
    assert found == sorted(found)


def test_nearest_bucket() -> None:
    found = video.buckets(832 * 480, 32, (0.5, 2.0), [81, 61, 33])
    assert video.nearest_bucket(1280, 720, 101, found) == Bucket(81, 480, 832)
    assert video.nearest_bucket(720, 1280, 80, found) == Bucket(61, 832, 480)
    assert video.nearest_bucket(720, 1280, 32, found) is None
    wide = video.nearest_bucket(4000, 100, 33, found)
    assert wide is not None
    assert wide.width / wide.height == max(b.width / b.height for b in found)


# (frames, width, height, has_audio) of the clips whose containers are odd
ODD = {
    "nasa_13013.mp4": (390, 480, 270, True),  # two video streams: the one FFmpeg calls the best
    "av1_video.mkv": (125, 640, 360, False),  # no frame count in the header
    "sync_test.mkv": (1891, 192, 108, True),  # jittered times
    "cityCC0.mpg": (190, 720, 405, False),  # program stream, odd height
    "h264_10bits.mp4": (30, 200, 200, False),
    "h265_10bits.mp4": (30, 200, 200, False),
    "h265_video.mp4": (10, 128, 128, False),  # leading pictures
}


@pytest.mark.parametrize("name", sorted(ODD))
def test_odd_clips_decode_by_index_as_they_play(shared: Path, name: str) -> None:
    data = (shared / "clips" / "raw" / name).read_bytes()
    facts = video.probe(data)
    assert (facts.frames, facts.width, facts.height, facts.has_audio) == ODD[name]
    played = []
    with av.open(io.BytesIO(data)) as container:
        for frame in itertools.islice(container.decode(container.streams.best("video")), 60):
            played.append(frame.to_ndarray(format="rgb24"))
    wanted = [n for n in (0, 1, 4, 3, 17, 42, 59) if n < facts.frames]
    for number, frame in zip(wanted, video.decode(data, wanted), strict=True):
        distance = [float(np.abs(frame.astype(int) - p).mean()) for p in played]
        assert distance[number] == min(distance)  # 10-bit: another rounding to 8 bits, the same frame
        assert distance[number] < 4
    assert video.decode(data, [5], (64, 96)).shape == (1, 64, 96, 3)


def test_real_animated_webp(shared: Path) -> None:
    files = sorted((shared / "clips" / "videos" / "comfy").glob("*.webp"))
    assert files
    for file in files:
        data = file.read_bytes()
        assert not video.is_image(data)
        facts = video.probe(data)
        assert (facts.frames, facts.width, facts.height, facts.fps) == (45, 350, 350, 15.0)
        shown = video.decode(data, [0, 22, 44], (64, 64))
        assert shown.shape == (3, 64, 64, 3)
        assert np.abs(shown[0].astype(int) - shown[2]).mean() > 1
