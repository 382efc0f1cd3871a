from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pipelines.curate import signals
from pipelines.curate.look import see, to_cells
from pipelines.demo import world
from sama import video


def cells(frames: int = 12, value: float = 100.0) -> np.ndarray:
    return np.full((frames, 60, 80, 3), value, np.float32)


def clip(seed: int, frames: int = 33, height: int = 96, width: int = 128) -> np.ndarray:
    return world.render(world.random_scene(seed), frames, height, width)


def test_cells_are_exact_means():
    frames = np.random.default_rng(0).integers(0, 256, (2, 121, 185, 3), np.uint8)
    found = to_cells(frames)
    assert found.shape == (2, 60, 92, 3)
    np.testing.assert_allclose(found[1, 3, 5], frames[1, 6:8, 10:12].mean(axis=(0, 1)))


def test_difference_counts_what_the_eye_sees():
    edited = cells()
    edited[:, :30, :40] += 40.0  # a quarter, visibly
    edited[:, 30:, 40:] += 10.0  # another quarter, hardly
    found = signals.difference(cells(), edited)
    assert found == {"mad": pytest.approx(12.5), "changed_area": pytest.approx(0.25)}


def test_motion_and_its_ratio():
    moving = cells() + np.arange(12, dtype=np.float32)[:, None, None, None] * 3
    assert signals.motion(moving) == pytest.approx(3.0)
    assert signals.motion(cells()) == 0.0
    assert signals.motion(cells(1)) is None
    assert signals.motion_ratio(4.0, 1.0) == 0.25
    assert signals.motion_ratio(0.0, 1.0) is None
    assert signals.motion_ratio(None, None) is None


def test_frames_pair_by_index_or_by_time():
    slow, fast = see(clip(1, 16), fps=16.0), see(clip(1, 24), fps=24.0)
    by_index = signals.aligned(slow, fast, "index")
    assert [len(side) for side in by_index] == [16, 16]
    mine, theirs = signals.aligned(slow, fast, "time")
    assert len(mine) == 16
    assert np.abs(mine / 16.0 - theirs / 24.0).max() <= 0.5 / 24.0 + 1e-9
    cut_short = see(clip(1, 10), fps=16.0)
    mine, theirs = signals.aligned(slow, cut_short, "time")
    assert mine.tolist() == theirs.tolist() == list(range(10))
    mine, _ = signals.aligned(slow, slow, "time", policy_fps=8.0)
    assert mine.tolist() == list(range(0, 16, 2))


def test_the_same_scene_at_two_rates_has_the_same_motion():
    scene = world.random_scene(3)
    slow = see(world.render(scene, 33, 96, 128, fps=16.0), fps=16.0)
    fast = see(world.render(scene, 49, 96, 128, fps=24.0), fps=24.0)
    row = signals.measure(slow, fast, pairing="time")
    assert row["motion_ratio"] == pytest.approx(1.0, abs=0.06)
    assert row["mad"] < 1.5


def test_flicker_is_not_a_fade():
    steps = np.arange(12, dtype=np.float32)[:, None, None, None]
    assert signals.flicker(cells() + 5 * steps) == pytest.approx(0.0)
    assert signals.flicker(cells() + 10 * (steps % 2)) == pytest.approx(20.0)
    assert signals.flicker(cells(2)) is None


def test_blur_grows_with_blurring_and_passes_smooth_scenes():
    from PIL import Image, ImageFilter

    caught = 0
    for seed in range(8):
        sharp = see(clip(seed, 9)).luma
        soft = np.stack([np.asarray(Image.fromarray(f).filter(ImageFilter.GaussianBlur(4))) for f in sharp])
        a, b = signals.blur(sharp), signals.blur(soft)
        assert a is not None
        assert b is not None
        assert a < 0.62
        assert b > a + 0.2
        caught += b > 0.65
    assert caught >= 6
    assert signals.blur(np.full((1, 96, 128), 90, np.uint8)) is None


def test_blockiness_sees_the_grid_of_eight():
    noise = np.random.default_rng(1).integers(90, 110, (128, 160)).astype(np.uint8)
    blocks = np.kron(np.random.default_rng(2).integers(60, 180, (16, 20)), np.ones((8, 8))).astype(np.uint8)
    assert signals.blockiness(noise) == pytest.approx(1.0, abs=0.1)
    assert signals.blockiness(blocks // 2 + noise // 2) > 2  # type: ignore[operator]
    assert signals.blockiness(noise[:32]) is None


def test_black_bars_are_measured_and_a_night_sky_is_none():
    frames = clip(4, 5, 480, 832) // 2 + 100
    frames[:, :60] = 10
    frames[:, :, -24:] = 16
    seen = see(frames)
    top, bottom, left, right = signals.black_border(seen.brightest, seen.scale)
    assert (bottom, left) == (0, 0)
    assert abs(top - 60) <= 2
    assert abs(right - 24) <= 2
    sky = np.repeat(np.linspace(0, 120, 240)[:, None], 320, axis=1).astype(np.uint8)
    assert signals.black_border(sky) == [0, 0, 0, 0]
    assert signals.black_border(np.zeros((240, 320), np.uint8), 2.0) == [480, 0, 0, 0]


@pytest.mark.parametrize("seed", range(4))
def test_shot_cuts_are_named_by_the_last_frame_before(seed: int):
    other = world.render(world.random_scene(seed + 50), 20, 96, 128)
    joined = np.concatenate([clip(seed, 17), 255 - other])
    assert signals.shot_cuts(see(joined).cells) == [16]
    assert signals.shot_cuts(see(clip(seed, 40)).cells) == []


def test_a_blended_frame_makes_one_cut():
    first, second = clip(1, 16), 255 - clip(51, 16)
    blend = ((first[-1:].astype(int) + second[:1]) // 2).astype(np.uint8)
    found = signals.shot_cuts(see(np.concatenate([first, blend, second])).cells)
    assert found in ([15], [16])


def test_a_flash_is_no_cut_and_a_fade_through_black_is_one():
    frames = clip(5, 40)
    flash = frames.copy()
    flash[20] = 255
    assert signals.shot_cuts(see(flash).cells) == []
    dark = np.r_[np.ones(10), np.linspace(1, 0, 12), np.zeros(4), np.linspace(0, 1, 6), np.ones(8)]
    faded = (frames * dark[:, None, None, None]).astype(np.uint8)
    found = signals.shot_cuts(see(faded).cells)
    assert len(found) == 1
    assert 14 <= found[0] <= 16
    assert signals.shot_cuts(see(faded[:24]).cells) == []  # nothing follows: an end, not a cut


def test_measure_fills_every_column_it_promises():
    scene = world.random_scene(6)
    edited, words = world.edit_scene(scene, "recolour", 6)
    row = signals.measure(
        see(world.render(scene, 17, 96, 128)), see(world.render(edited, 17, 96, 128)), instruction=words
    )
    assert all(row[c] is not None for c in row), row
    assert row["changed_area"] > 0.005
    assert row["instruction_words"] == len(words.split())
    assert not row["static"]
    lone = signals.measure(None, see(np.repeat(clip(7, 1), 9, axis=0)))
    assert lone["static"]
    assert lone["mad"] is lone["motion_source"] is lone["instruction_words"] is None
    picture = signals.measure(see(clip(7, 1)), see(clip(8, 1)), instruction="")
    assert picture["static"] is picture["motion_ratio"] is picture["flicker"] is None
    assert picture["mad"] > 1


def test_a_clip_looked_at_in_chunks_is_the_same(monkeypatch: pytest.MonkeyPatch):
    from pipelines.curate import look

    data = video.encode(clip(9, 45), 16.0)
    facts: dict[str, Any] = {"height": 96, "width": 128, "fps": 16.0, "frames": 45, "skip_head": 3, "skip_tail": 2}
    whole = look.look(data, **facts)
    monkeypatch.setattr(look, "CHUNK", 7)
    parts = look.look(data, **facts)
    assert len(whole.cells) == 40
    assert whole.first == 3
    for name in ("cells", "luma", "brightest", "detail"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(parts, name))
    with pytest.raises(video.MediaError, match="no frame is left of 45"):
        look.look(data, **{**facts, "skip_head": 43})


def test_cuts_carry_the_file_s_frame_numbers():
    from pipelines.curate import look

    joined = np.concatenate([clip(1, 17), 255 - clip(51, 17)])
    data = video.encode(joined, 16.0)
    seen = look.look(data, height=96, width=128, fps=16.0, frames=34, skip_head=4)
    assert signals.measure(None, seen)["shot_cuts_target"] == [16]
