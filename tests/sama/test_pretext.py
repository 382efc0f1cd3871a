"""Each perturbation changes what it may change and nothing else, and is a function of its generator alone."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sama import pretext
from sama.errors import InputError
from sama.pretext import PERTURBATIONS, perturb

SHAPES = [(1, 8, 8), (2, 8, 8), (5, 7, 9), (9, 16, 12), (16, 15, 17), (49, 6, 10)]


def clip(shape: tuple[int, int, int], seed: int = 0) -> np.ndarray:
    frames = np.random.default_rng(seed).integers(1, 256, (*shape, 3), dtype=np.uint8)
    frames.setflags(write=False)  # batches from Ray are read-only views
    return frames


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("name", PERTURBATIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_keeps_shape_and_input_and_depends_on_the_generator_alone(name, shape):
    frames = clip(shape)
    before = frames.copy()
    first, second = perturb(name, frames, rng(3)), perturb(name, frames, rng(3))
    assert first.shape == frames.shape
    assert first.dtype == np.uint8
    assert np.array_equal(first, second)
    assert np.array_equal(frames, before)


any_shape = st.tuples(st.integers(1, 20), st.integers(1, 19), st.integers(1, 19))
seeds = st.integers(0, 2**32)


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(sorted(PERTURBATIONS)), shape=any_shape, seed=seeds)
def test_any_size_keeps_shape_and_dtype_and_leaves_the_source_alone(name, shape, seed):
    frames = clip(shape, seed % 7)
    before = frames.copy()
    out = perturb(name, frames, rng(seed))
    assert out.shape == before.shape
    assert out.dtype == np.uint8
    assert np.array_equal(frames, before)
    assert np.array_equal(out, perturb(name, frames, rng(seed)))


@settings(max_examples=60, deadline=None)
@given(
    shape=any_shape, seed=seeds, hold_last=st.booleans(),
    grid=st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3)),
)  # fmt: skip
def test_tube_shuffle_of_any_grid_moves_every_voxel_once_and_is_undone_by_its_inverse(shape, seed, hold_last, grid):
    where = perturb("tube_shuffle", coordinates(shape), rng(seed), grid=grid, hold_last=hold_last).reshape(-1, 3)
    assert len(np.unique(where, axis=0)) == len(where)
    frames = clip(shape)
    shuffled = perturb("tube_shuffle", frames, rng(seed), grid=grid, hold_last=hold_last)
    undone = np.empty_like(frames)
    undone[tuple(where.T)] = shuffled.reshape(-1, 3)
    assert np.array_equal(undone, frames)


@settings(max_examples=60, deadline=None)
@given(shape=any_shape, seed=seeds, fraction=st.floats(0, 1))
def test_inpainting_keeps_frame_0_and_all_but_one_block(shape, seed, fraction):
    frames = clip(shape)
    out = perturb("cube_inpainting", frames, rng(seed), fraction=fraction)
    assert np.array_equal(out[0], frames[0])
    black = np.flatnonzero((out != frames).any(axis=(1, 2, 3)))
    assert len(black) == min(round(fraction * shape[0]), shape[0] - 1)
    assert not out[black].any()
    assert not len(black) or black[-1] - black[0] == len(black) - 1


@settings(max_examples=60, deadline=None)
@given(shape=any_shape, seed=seeds, factor=st.integers(1, 5))
def test_speed_shows_every_factor_th_frame_in_both_variants(shape, seed, factor):
    frames = clip(shape)
    real = -(-shape[0] // factor)
    held = perturb("speed", frames, rng(seed), factor=factor)
    assert np.array_equal(held[:real], frames[::factor])
    assert all(np.array_equal(f, held[real - 1]) for f in held[real:])
    short = perturb("speed", frames, rng(seed), factor=factor, variant="shorter")
    assert len(short) % 4 == 1
    assert real - 4 < len(short) <= real
    assert np.array_equal(short, held[: len(short)])


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(["temporal_jigsaw", "reverse", "frame_drop"]), shape=any_shape, seed=seeds)
def test_tasks_in_time_alone_leave_every_frame_whole(name, shape, seed):
    frames = coordinates(shape)
    out = perturb(name, frames, rng(seed))
    order = out[:, 0, 0, 0]
    assert np.array_equal(out, frames[order])
    assert name == "frame_drop" or np.array_equal(np.sort(order), np.arange(shape[0]))


def test_tokens_are_the_papers():
    assert PERTURBATIONS["none"].token == ""
    assert PERTURBATIONS["cube_inpainting"].token == "[Complete the missing regions in the video.]"
    assert PERTURBATIONS["speed"].token == "[Restore the video to normal playback speed.]"
    assert PERTURBATIONS["tube_shuffle"].token == "[Restore the correct spatio-temporal order of the video segments.]"
    tokens = [p.token for p in PERTURBATIONS.values()]
    assert len(set(tokens)) == len(tokens) >= 7


def test_none_is_the_clip():
    frames = clip((5, 8, 8))
    assert np.array_equal(perturb("none", frames, rng()), frames)


@pytest.mark.parametrize("total", [2, 5, 9, 33, 81])
def test_cube_inpainting_blackens_one_block_without_frame_0(total):
    starts = set()
    for seed in range(60):
        frames = clip((total, 4, 4), seed)
        out = perturb("cube_inpainting", frames, rng(seed))
        black = np.flatnonzero((out == 0).all(axis=(1, 2, 3)))
        assert len(black) == round(0.3 * total)
        assert black[0] >= 1
        assert np.array_equal(black, np.arange(black[0], black[0] + len(black)))
        untouched = np.setdiff1d(np.arange(total), black)
        assert np.array_equal(out[untouched], frames[untouched])
        starts.add(int(black[0]))
    assert starts <= set(range(1, total - round(0.3 * total) + 1))
    assert total == 2 or len(starts) > 1


@pytest.mark.parametrize(("total", "real", "short"), [(1, 1, 1), (5, 3, 1), (9, 5, 5), (16, 8, 5), (81, 41, 41)])
def test_speed_has_both_variants(total, real, short):
    frames = clip((total, 4, 4))
    held = perturb("speed", frames, rng())
    assert np.array_equal(held[:real], frames[::2])
    assert all(np.array_equal(f, held[real - 1]) for f in held[real:])
    cut = perturb("speed", frames, rng(), variant="shorter")
    assert len(cut) == short
    assert np.array_equal(cut, frames[::2][:short])


def coordinates(shape: tuple[int, int, int]) -> np.ndarray:
    """Every voxel says where it was."""
    return np.stack(np.meshgrid(*(np.arange(n, dtype=np.uint8) for n in shape), indexing="ij"), axis=-1)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("hold_last", [True, False])
def test_tube_shuffle_is_a_permutation_and_its_inverse_undoes_it(shape, hold_last):
    where = perturb("tube_shuffle", coordinates(shape), rng(5), hold_last=hold_last)
    flat = where.reshape(-1, 3)
    assert len(np.unique(flat, axis=0)) == len(flat)  # every voxel once
    frames = clip(shape)
    shuffled = perturb("tube_shuffle", frames, rng(5), hold_last=hold_last)
    undone = np.empty_like(frames)
    undone[flat[:, 0], flat[:, 1], flat[:, 2]] = shuffled.reshape(-1, 3)
    assert np.array_equal(undone, frames)


def test_tube_shuffle_moves_whole_tubes_in_time_too():
    frames = coordinates((9, 8, 8))
    moved_in_time = 0
    for seed in range(20):
        out = perturb("tube_shuffle", frames, rng(seed))
        assert np.array_equal(out[8], frames[8])  # 4k+1: the last frame is held out
        starts = {tuple(out[t, h, w]) for t in (0, 4) for h in (0, 4) for w in (0, 4)}
        assert starts == {(t, h, w) for t in (0, 4) for h in (0, 4) for w in (0, 4)}
        moved_in_time += out[0, 0, 0, 0] == 4
        still = perturb("tube_shuffle", frames, rng(seed), hold_last=False)
        assert set(still[:5, :, :, 0].ravel()) == set(range(5))  # 5 + 4 frames: nothing fits the other half
    assert 0 < moved_in_time < 20


def test_temporal_jigsaw_and_reverse_move_whole_frames():
    frames = coordinates((9, 4, 4))
    orders = set()
    for seed in range(10):
        out = perturb("temporal_jigsaw", frames, rng(seed))
        order = out[:, 0, 0, 0]
        assert np.array_equal(out, frames[order])
        assert sorted(order) == list(range(9))
        orders.add(tuple(order))
    assert len(orders) > 3
    assert np.array_equal(perturb("reverse", frames, rng()), frames[::-1])


def test_frame_drop_shows_the_frame_before_again():
    frames = coordinates((20, 2, 2))
    order = perturb("frame_drop", frames, rng(1))[:, 0, 0, 0].astype(int)
    lost = order != np.arange(20)
    assert lost.sum() == 8
    assert order[0] == 0
    assert all(order[t] == order[t - 1] for t in np.flatnonzero(lost))


def test_tube_offset_shifts_regions_in_time_only():
    frames = coordinates((9, 5, 6))
    shifted = 0
    for seed in range(10):
        out = perturb("tube_offset", frames, rng(seed))
        assert np.array_equal(out[..., 1:], frames[..., 1:])
        shifts = {
            int(out[0, h, w, 0]) for h in (0, 4) for w in (0, 5) if np.array_equal(np.sort(out[:, h, w, 0]), range(9))
        }
        assert 0 in shifts  # one region keeps the time
        shifted += len(shifts) > 1
    assert shifted > 5


def blurred(clip: np.ndarray, frames_open: int) -> np.ndarray:
    """Motion blur by its formula: pairwise means, rounded down; beyond the end the last frame counts again."""
    mean, reach = clip.astype(int), 1
    while reach < frames_open:
        later = [min(at + reach, len(mean) - 1) for at in range(len(mean))]
        mean, reach = (mean + mean[later]) // 2, 2 * reach
    return mean


@settings(max_examples=60, deadline=None)
@given(shape=any_shape, seed=seeds, frames_open=st.sampled_from([1, 2, 4, 8, 32]), strip=st.integers(1, 1200))
def test_motion_blur_is_its_formula(shape, seed, frames_open, strip):
    frames = clip(shape, seed)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(pretext, "BLUR_STRIP", strip)
        assert np.array_equal(
            perturb("motion_blur", frames, rng(), frames_open=frames_open), blurred(frames, frames_open)
        )


def test_motion_blur_averages_from_the_frame_on():
    frames = clip((49, 64, 96))
    out = perturb("motion_blur", frames, rng(), frames_open=4).astype(float)
    for at in range(46):
        assert np.abs(out[at] - frames[at : at + 4].astype(float).mean(axis=0)).max() <= 1.5
    still = np.broadcast_to(frames[:1], frames.shape)
    assert np.array_equal(perturb("motion_blur", still, rng()), still)


def test_mistakes_are_named():
    frames = clip((5, 4, 4))
    with pytest.raises(InputError, match="tube_shufle is not a pretext task"):
        perturb("tube_shufle", frames, rng())
    with pytest.raises(InputError, match=r"ratio is not an option .* fraction"):
        perturb("cube_inpainting", frames, rng(), ratio=0.5)
    with pytest.raises(InputError, match="hold or shorter"):
        perturb("speed", frames, rng(), variant="long")
    with pytest.raises(ValueError, match="uint8"):
        perturb("none", frames.astype(np.float32), rng())
