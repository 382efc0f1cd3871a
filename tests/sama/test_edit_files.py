"""Whole files through a toy model: size, rate, length and sound stay, and nothing is written on bad input."""

from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from sama import video
from sama.edit_files import edit_file, edit_media, output_format, pixel_aspect, stretch, strip, working_size
from sama.editing import EditPipeline
from sama.errors import InputError
from tests.sama.toys import ToyEncoders, ToyModel

FAST = {"steps": 1, "progress": False}


@pytest.fixture
def pipeline() -> EditPipeline:
    return EditPipeline(ToyModel(), ToyEncoders())


def smooth(frames: int, height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[0:height, 0:width]
    grey = [(x * 2 + y + 5 * t) % 256 for t in range(frames)]
    return np.repeat(np.stack(grey)[..., None], 3, axis=-1).astype(np.uint8)


def with_sound(frames: np.ndarray, fps: int) -> bytes:
    """An mp4 with an AAC tone, made here."""
    sink = io.BytesIO()
    with av.open(sink, "w", format="mp4") as out:
        picture, sound = out.add_stream("libx264", rate=fps), out.add_stream("aac", rate=16000)
        picture.height, picture.width, picture.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        for frame in frames:
            out.mux(picture.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        out.mux(picture.encode(None))
        for start in range(0, len(frames) * 16000 // fps, 1024):
            wave = (np.sin(np.arange(start, start + 1024) / 6) * 9000).astype(np.int16)[None]
            piece = av.AudioFrame.from_ndarray(wave, format="s16", layout="mono")
            piece.rate, piece.pts = 16000, start
            out.mux(sound.encode(piece))
        out.mux(sound.encode(None))
    return sink.getvalue()


def audio_packets(data: bytes) -> list[bytes]:
    with av.open(io.BytesIO(data)) as container:
        return [bytes(p) for p in container.demux(container.streams.audio[0]) if p.size]


def test_pixels_that_are_not_square_stay_so(pipeline):
    """720x576 shown as 16:9: the model sees 16:9, the file keeps its size and its pixels."""
    data = video.encode(smooth(3, 144, 180), fps=25, pixel_aspect=Fraction(64, 45))
    assert pixel_aspect(data) == Fraction(64, 45)
    edited = next(edit_media(pipeline, data, ["make it red"], **FAST))
    assert pixel_aspect(edited.data) == Fraction(64, 45)
    facts = video.probe(edited.data)
    assert (facts.width, facts.height) == (180, 144)
    seen = edited.frames.shape[2] / edited.frames.shape[1]
    plain = video.encode(smooth(3, 144, 180), fps=25)
    assert pixel_aspect(plain) == 1
    square = next(edit_media(pipeline, plain, ["make it red"], **FAST)).frames.shape
    assert abs(seen - 16 / 9) < abs(square[2] / square[1] - 16 / 9)
    assert pixel_aspect(next(edit_media(pipeline, plain, ["make it red"], **FAST)).data) == 1
    with pytest.raises(video.MediaError):
        pixel_aspect(b"nothing")


@pytest.mark.parametrize(("frames", "height", "width"), [(7, 90, 120), (9, 120, 68), (2, 50, 320), (3, 75, 101)])
def test_size_rate_and_length_stay(pipeline, frames, height, width):
    data = video.encode(smooth(frames, height, width), fps=12.5)
    edited = next(edit_media(pipeline, data, ["make it red"], **FAST))
    facts = video.probe(edited.data)
    assert (facts.width, facts.height, facts.frames) == (width, height, frames)
    assert facts.fps == pytest.approx(12.5)
    assert edited.kind == "mp4"
    assert edited.frames.shape == edited.source.shape
    assert edited.source.shape[1] % 16 == edited.source.shape[2] % 16 == 0


def test_the_sound_is_kept(pipeline):
    data = with_sound(smooth(20, 64, 64), fps=10)
    assert video.probe(data).has_audio
    edited = next(edit_media(pipeline, data, ["x"], **FAST)).data
    assert video.probe(edited).has_audio
    before, after = audio_packets(data), audio_packets(edited)
    assert after == before[: len(after)]
    assert len(after) >= len(before) - 2  # at most the encoder's padding behind the last frame is cut


def test_the_same_seed_gives_the_same_bytes(pipeline):
    data = video.encode(smooth(6, 64, 80), fps=8)

    def run(seed):
        return next(edit_media(pipeline, data, ["x"], seed=seed, **FAST)).data

    assert run(5) == run(5)
    assert run(5) != run(6)


def test_an_animated_picture_is_a_video(pipeline, shared: Path):
    data = next(iter(sorted((shared / "clips/videos/comfy").glob("*.webp")))).read_bytes()
    edited = next(edit_media(pipeline, data, ["x"], max_frames=6, **FAST))
    facts = video.probe(edited.data)
    assert (edited.kind, facts.width, facts.height, facts.frames, facts.fps) == ("mp4", 350, 350, 6, 15.0)


def test_sound_that_cannot_be_taken_along_is_told_before_the_edit(monkeypatch):
    data, model = with_sound(smooth(6, 64, 64), fps=10), ToyModel()

    def broken(track, seconds):
        raise video.MediaError("its sound cannot be taken along: Invalid data")

    monkeypatch.setattr("sama.sound.AudioTrack.copy", broken)
    with pytest.raises(video.MediaError, match="its sound"):
        next(edit_media(EditPipeline(model, ToyEncoders()), data, ["x"], **FAST))
    assert not model.calls


@pytest.mark.parametrize("name", ["png", "jpg", "webp"])
def test_an_image_gives_an_image(pipeline, tmp_path: Path, name):
    source = tmp_path / f"in.{name}"
    source.write_bytes(video.encode_image(smooth(1, 75, 101)[0], name))
    edited = edit_file(pipeline, source, "x", tmp_path / f"out.{name}", **FAST)
    written = (tmp_path / f"out.{name}").read_bytes()
    assert written == edited.data
    assert video.is_image(written)
    assert video.media_type(written) == name
    assert video.decode(written).shape == (1, 75, 101, 3)


def test_the_name_of_the_output_must_fit(pipeline):
    picture, clip = video.encode_image(smooth(1, 32, 32)[0]), video.encode(smooth(2, 32, 32), fps=8)
    assert output_format(picture, "a/b.JPEG") == "jpg"
    assert output_format(clip, "b.mp4") == "mp4"
    for data, name in ((picture, "b.mp4"), (clip, "b.png"), (clip, "b")):
        with pytest.raises(InputError, match="is written as"):
            output_format(data, name)


def test_bad_files_write_nothing(pipeline, tmp_path: Path):
    out = tmp_path / "out.mp4"
    out.write_bytes(b"an earlier edit")
    whole = video.encode(smooth(9, 64, 64), fps=8)
    for name, data in (
        ("cut.mp4", whole[: len(whole) // 2]),
        ("text.mp4", b"hello there, no video"),
        ("empty.mp4", b""),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InputError, match=name):
            edit_file(pipeline, tmp_path / name, "x", out, **FAST)
    with pytest.raises(InputError, match="no readable file"):
        edit_file(pipeline, tmp_path / "absent.mp4", "x", out, **FAST)
    assert out.read_bytes() == b"an earlier edit"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cut.mp4", "empty.mp4", "out.mp4", "text.mp4"]


@pytest.mark.parametrize(
    ("width", "height"), [(832, 480), (480, 832), (1280, 720), (512, 512), (1920, 804), (300, 1300)]
)
def test_working_size(width, height):
    found = working_size(width, height, 832 * 480, 32)
    assert found.width % 32 == found.height % 32 == 0
    assert found.width * found.height == pytest.approx(832 * 480, rel=0.08)
    # what is stretched is the rest to the nearest multiple: steps of 32 in about 630 pixels on either side
    assert (found.width / found.height) / (width / height) == pytest.approx(1.0, abs=0.12)


def test_stretch_there_and_back_keeps_a_smooth_picture():
    frames = smooth(2, 100, 60)
    ramp = np.broadcast_to(np.linspace(0, 255, 60), (2, 100, 60))[..., None].repeat(3, -1).astype(np.uint8)
    back = stretch(stretch(ramp, 64, 48), 100, 60)
    assert np.abs(back.astype(int) - ramp).max() <= 6
    assert stretch(frames, 100, 60) is frames


def test_strip_has_the_source_above_the_edit():
    source, edited = np.zeros((9, 64, 96, 3), np.uint8), np.full((9, 64, 96, 3), 200, np.uint8)
    rows = video.decode(strip(source, edited))[0]
    assert rows.shape == (256, 6 * 192, 3)
    assert rows[:128].max() == 0
    assert rows[128:].min() == 200


def test_only_the_beginning(pipeline):
    data = video.encode(smooth(12, 64, 64), fps=8)
    edited = next(edit_media(pipeline, data, ["x"], max_frames=5, **FAST))
    assert video.probe(edited.data).frames == 5
