"""The edit pipeline: what it asks the model, what it makes of the answers, lengths and windows."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from sama.editing import EditPipeline, EditSettings, latent_frames, pad_length
from sama.errors import InputError
from sama.randomness import normal
from sama.sampler import windows
from tests.sama.toys import DriftModel, ToyEncoders, ToyModel, WindowModel, clip


def toy_pipeline(model=None):
    return EditPipeline(model or ToyModel(), ToyEncoders())


def by_hand(frames, instruction, steps, shift, combine):
    """An edit as one reads it in the paper: a loop over sigmas, `combine` mixing the model's answers."""
    model, encoders = ToyModel(), ToyEncoders()
    source = encoders.encode_video(torch.from_numpy(frames)[None])
    text, none = encoders.encode_text(["[Video edit] " + instruction])[0:1], encoders.encode_text(["[Video edit]"])
    x = normal(3, "edit latents", source.shape)
    s = normal(3, "edit semantic", (1, 5, 6))
    with torch.no_grad():
        for i in range(steps):
            now, then = 1 - i / steps, 1 - (i + 1) / steps
            now, then = (shift * v / (1 + (shift - 1) * v) for v in (now, then))
            t = torch.tensor([1000 * now])
            answers = [model(x, t, text, source, s), model(x, t, none, source, s), model(x, t, text, None, s)]
            x = x + (then - now) * combine(*(a[0] for a in answers))
            s = s + (then - now) * combine(*(a[1] for a in answers))
    return encoders.decode_video(x)[0].numpy()


def test_an_edit_is_the_loop_of_the_paper():
    frames = clip(5)
    expected = by_hand(frames, "make it red", 6, 5.0, lambda it, i0, ot: i0 + 5.0 * (it - i0))
    edited = toy_pipeline().edit(frames, "make it red", steps=6, seed=3, progress=False)
    np.testing.assert_array_equal(edited, expected)


def test_separate_guidance_is_the_formula_of_the_released_code():
    frames = clip(5)
    expected = by_hand(frames, "make it red", 4, 3.0, lambda it, i0, ot: it + 0.7 * (it - ot) + 2.0 * (it - i0))
    edited = toy_pipeline().edit(
        frames, "make it red", steps=4, shift=3.0, guidance=2.0, source_guidance=0.7, seed=3, progress=False
    )
    np.testing.assert_array_equal(edited, expected)


def test_forwards_per_step_and_what_they_see():
    for options, forwards in (({"guidance": 1.0}, 1), ({}, 2), ({"source_guidance": 0.0}, 3)):
        model = ToyModel()
        toy_pipeline(model).edit(clip(1), "x", steps=2, progress=False, **options)
        assert len(model.calls) == 2 * forwards
        assert model.calls[0].timestep.tolist() == [1000.0]
        assert sum(not call.source.any() for call in model.calls) == (2 if forwards == 3 else 0)


def test_no_source_is_zeros_as_in_training_or_left_out():
    for how, shown in (("zeros", False), ("omit", None)):
        model = ToyModel()
        toy_pipeline(model).edit(clip(5), "x", steps=1, progress=False, source_guidance=0.5, no_source=how)
        missing = model.calls[1].source
        assert missing is None if shown is None else (missing.shape == model.calls[0].source.shape)
        assert missing is None or not missing.any()
        assert model.calls[0].source.any()
        assert torch.equal(model.calls[0].text, model.calls[1].text)
        assert not torch.equal(model.calls[0].text, model.calls[2].text)


def test_dropped_sources_of_training_are_what_guidance_shows():
    """Training encodes a dropped source as the zeros that v(0, .) sees."""
    from types import SimpleNamespace

    from pipelines.train.encode import BatchEncoder

    frames = clip(5)[None]
    encoders = ToyEncoders()
    encoders.encode_semantic = lambda f: torch.zeros(len(f), 5, 6)
    batch = SimpleNamespace(
        source=frames, target=frames, prompts=["x"], drop_source=[True], seeds=[1], weights=[1.0], tasks=["edit"],
    )  # fmt: skip
    trained = BatchEncoder(encoders, 1, torch.device("cpu"))(batch).source_latents
    model = ToyModel()
    toy_pipeline(model).edit(clip(5), "x", steps=1, progress=False, source_guidance=0.5)
    torch.testing.assert_close(trained, model.calls[1].source)


def test_video_from_text_alone():
    model = ToyModel()
    pipeline = toy_pipeline(model)
    tiny = pipeline.encoders.preset
    pipeline.encoders.preset = dataclasses.replace(tiny, transformer={**tiny.transformer, "in_channels": 3})
    made = pipeline.generate("a dog", 7, 32, 48, steps=2, seed=3, progress=False)
    assert (made.shape, made.dtype) == ((7, 32, 48, 3), np.uint8)
    assert [call.source for call in model.calls] == [None] * 4
    assert model.calls[0].latents.shape == (1, 3, 3, 4, 6)
    assert sorted(pipeline.encoders.texts) == ["[Video edit]", "[Video edit] a dog"]
    np.testing.assert_array_equal(made, pipeline.generate("a dog", 7, 32, 48, steps=2, seed=3, progress=False))
    with pytest.raises(InputError, match="nothing to guide it by"):
        pipeline.generate("a dog", 5, 32, 48, source_guidance=1.0)
    with pytest.raises(InputError, match="multiples of 16"):
        pipeline.generate("a dog", 5, 40, 48)
    with pytest.raises(InputError, match="prompt is empty"):
        pipeline.generate(" ", 5, 32, 48)


def test_prefix_and_negative_prompt():
    pipeline = toy_pipeline()
    pipeline.edit(clip(1), "  make it red\n", steps=1, progress=False)
    assert sorted(pipeline.encoders.texts) == ["[Video edit]", "[Video edit] make it red"]
    pipeline = toy_pipeline()
    pipeline.edit(clip(1), "make it red", steps=1, progress=False, prefix="", negative_prompt="blurred")
    assert sorted(pipeline.encoders.texts) == ["blurred", "make it red"]


@pytest.mark.parametrize("length", [1, 2, 4, 5, 7, 8, 9])
def test_any_length_comes_back(length):
    frames = clip(length)
    padded = pad_length(frames)
    assert len(padded) % 4 == 1
    assert len(padded) - length < 4
    np.testing.assert_array_equal(padded[:length], frames)
    assert (padded[length:] == frames[-1]).all()
    model = ToyModel()
    assert toy_pipeline(model).edit(frames, "x", steps=1, progress=False).shape == frames.shape
    assert model.calls[0].latents.shape[2] == latent_frames(len(padded))


def test_seeds():
    pipeline, frames = toy_pipeline(), clip(5)
    first = pipeline.edit(frames, "x", steps=2, seed=1, progress=False)
    np.testing.assert_array_equal(first, pipeline.edit(frames, "x", steps=2, seed=1, progress=False))
    assert (first != pipeline.edit(frames, "x", steps=2, seed=2, progress=False)).any()


def test_several_instructions_encode_the_source_once():
    pipeline, frames = toy_pipeline(), clip(5)
    edits = list(pipeline.edit_each(frames, ["make it red", "remove the dog from it"], steps=2, progress=False))
    assert pipeline.encoders.encoded_videos == 1
    assert (edits[0] != edits[1]).any()
    np.testing.assert_array_equal(edits[1], pipeline.edit(frames, "remove the dog from it", steps=2, progress=False))


def test_one_window_is_the_same_as_no_windows():
    frames = clip(9)
    short = toy_pipeline().edit(frames, "x", steps=3, frames_per_window=9, progress=False)
    np.testing.assert_array_equal(short, toy_pipeline().edit(frames, "x", steps=3, progress=False))


def test_windows_see_their_own_piece_and_the_first_windows_semantic_tokens():
    """17 latent frames in windows of 9 that share 2 at least: starts 0, 4, 8 by even spread of ceil(8 / 7) + 1."""
    frames, model = clip(65), WindowModel(windows=3)
    settings = EditSettings(steps=2, shift=1.0, guidance=1.0, frames_per_window=33, overlap=8)
    pipeline = toy_pipeline(model)
    latents = pipeline.sample(
        pipeline.encoders.encode_video(torch.from_numpy(frames)[None]),
        torch.zeros(1, 4, 2),
        torch.zeros(1, 4, 2),
        settings,
    )
    assert [call.latents.shape[2] for call in model.calls] == [9] * 6
    source = pipeline.encoders.encode_video(torch.from_numpy(frames)[None])
    for call, start in zip(model.calls, [0, 4, 8] * 2, strict=True):
        torch.testing.assert_close(call.source, source[:, :, start : start + 9])
    # one step of size 0.5 under the first window's semantic velocity of 10, whatever the other windows said
    noise = normal(0, "edit semantic", (1, 5, 6))
    for call in model.calls[:3]:
        torch.testing.assert_close(call.semantic, noise)
    for call in model.calls[3:]:
        torch.testing.assert_close(call.semantic, noise - 0.5 * 10.0)
    # velocities 0, 1, 2 of the windows: what was added to the noise climbs from 0 to 2 without a jump
    moved = -(latents - normal(0, "edit latents", latents.shape)).mean(dim=(0, 1, 3, 4))
    assert moved[0].item() == pytest.approx(0.0, abs=1e-6)
    assert moved[-1].item() == pytest.approx(2.0, abs=1e-6)
    climbs = moved.diff()
    assert climbs.min() >= -1e-6
    assert climbs.max() < 0.5


def moving_clip(frames: int) -> np.ndarray:
    """A blob on waves, both moving steadily: (frames, 48, 64, 3) uint8."""
    y, x = np.mgrid[0:48, 0:64]
    t = np.arange(frames)[:, None, None]
    blob = np.exp(-((x - 32 - 20 * np.sin(t / 9)) ** 2 + (y - 24 - 14 * np.cos(t / 7)) ** 2) / 120)
    waves = 60 + 40 * np.sin((x + 0.7 * t) / 6) + 30 * np.cos(y / 5)
    return (
        np.stack([0.8 * waves + 100 * blob, waves, 0.6 * waves + 60 * (1 - blob)], axis=-1)
        .clip(0, 255)
        .astype(np.uint8)
    )


def seam(settings: EditSettings) -> float:
    """Largest change of a frame at the joints of windows over what 99 % of the other frames of the edit stay below."""
    frames = moving_clip(300)
    edited = EditPipeline(DriftModel(0.3), ToyEncoders()).edit(frames, "x", settings, progress=False)
    change = np.abs(edited[1:].astype(np.float32) - edited[:-1]).mean(axis=(1, 2, 3))
    starts = windows(latent_frames(301), settings.window, settings.shared)
    joints = {4 * b - 4 + i for s in starts[1:] for b in range(s, s + settings.shared + 1) for i in range(4)}
    elsewhere = np.delete(change, sorted(joints))
    return float(change[sorted(joints)].max() / np.quantile(elsewhere, 0.99))


def test_a_long_clip_shows_no_seam_although_each_window_drifts():
    how = EditSettings(steps=2, guidance=1.0, frames_per_window=33)
    assert seam(how) < 1.15
    assert seam(EditSettings(steps=2, guidance=1.0, frames_per_window=33, overlap=0)) > 1.5  # the same without blending


def test_without_semantic_tokens():
    model = ToyModel()
    toy_pipeline(model).edit(clip(5), "x", steps=1, anchors=0, progress=False)
    assert all(call.semantic is None for call in model.calls)
    toy_pipeline(model).edit(clip(5), "x", steps=1, anchors=3, progress=False)
    assert model.calls[-1].semantic.shape == (1, 15, 6)


def test_progress_is_shown_or_handed_over(capsys):
    toy_pipeline().edit(clip(1), "x", steps=3)
    assert "3/3" in capsys.readouterr().err
    seen = []
    toy_pipeline().edit(clip(1), "x", steps=3, progress=lambda steps: (seen.append(i) or i for i in steps))
    assert seen == [0, 1, 2]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"steps": 0}, "steps"),
        ({"shift": 0.0}, "shift"),
        ({"shift": float("nan")}, "shift must be a number"),
        ({"guidance": float("inf")}, "guidance must be a number"),
        ({"source_guidance": float("nan")}, "source_guidance must be a number"),
        ({"anchors": -1}, "anchors"),
        ({"seed": -1}, "seed"),
        ({"frames_per_window": 80}, "4k\\+1"),
        ({"frames_per_window": 9, "overlap": 9}, "overlap"),
        ({"no_source": "noise"}, "zeros, omit"),
    ],
)
def test_settings_that_cannot_be(change, words):
    with pytest.raises(InputError, match=words):
        EditSettings(**change)


def test_frames_and_instructions_that_cannot_be():
    pipeline = toy_pipeline()
    with pytest.raises(InputError, match="empty"):
        pipeline.edit(clip(1), " ", progress=False)
    with pytest.raises(InputError, match="uint8"):
        pipeline.edit(clip(1).astype(np.float32), "x", progress=False)
    with pytest.raises(InputError, match="multiples of 16"):
        pipeline.edit(clip(1, height=24), "x", progress=False)
    with pytest.raises(InputError, match="T > 0"):
        pipeline.edit(clip(1)[:0], "x", progress=False)


def test_offloading_moves_one_part_at_a_time_and_changes_no_pixel():
    frames = clip(5)
    plain = toy_pipeline().edit(frames, "x", steps=2, progress=False)
    model, encoders = ToyModel(), ToyEncoders()
    np.testing.assert_array_equal(
        plain, EditPipeline(model, encoders, offload="cpu").edit(frames, "x", steps=2, progress=False)
    )
    assert encoders.moves == ["cpu", "cpu", "release text_encoder", "cpu", "cpu", "cpu"]
