"""Motion alignment: perturbations of the source clip that the model learns to undo (method: section 5).

Every perturbation takes and returns (T, H, W, 3) uint8, leaves its input untouched, may return it
unchanged (not copied) where there is nothing to perturb, and draws only from the generator it is given.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sama.errors import InputError


@dataclass(frozen=True)
class Perturbation:
    """One registered task: `token` precedes the caption; `options` are the keyword arguments with their defaults."""

    name: str
    token: str
    options: dict[str, Any]
    function: Callable[..., np.ndarray]

    @property
    def summary(self) -> str:
        """First line of the function's documentation."""
        return (inspect.getdoc(self.function) or "").split("\n")[0]


PERTURBATIONS: dict[str, Perturbation] = {}
BLUR_STRIP = 96 << 10  # bytes of a frame that are worked on at a time, so that they stay in the CPU's cache


def perturb(name: str, frames: np.ndarray, rng: np.random.Generator, **options: Any) -> np.ndarray:
    """Perturb a clip by a registered task.

    frames: (T, H, W, 3) uint8, may be read-only; the result has the same shape (except speed's variant
    "shorter"). InputError for an unknown name or option.
    """
    task = PERTURBATIONS.get(name)
    if task is None:
        raise InputError(f"{name} is not a pretext task; there are {', '.join(PERTURBATIONS)}")
    unknown = sorted(set(options) - set(task.options))
    if unknown:
        known = ", ".join(task.options) or "none"
        raise InputError(f"{unknown[0]} is not an option of the pretext task {name}; its options: {known}")
    if frames.ndim != 4 or frames.dtype != np.uint8:
        raise ValueError(f"frames must be (T, H, W, 3) uint8, not {frames.shape} {frames.dtype}")
    return task.function(frames, rng, **options)


def register(name: str, token: str) -> Callable[[Callable[..., np.ndarray]], Callable[..., np.ndarray]]:
    """Make `function(frames, rng, *, option=default, ...)` a pretext task that a mixture can name."""

    def add(function: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
        named = [p for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
        PERTURBATIONS[name] = Perturbation(name, token, {p.name: p.default for p in named}, function)
        return function

    return add


@register("none", "")
def none(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Source equals target (paper: ratio 1)."""
    return frames


@register("cube_inpainting", "[Complete the missing regions in the video.]")
def cube_inpainting(frames: np.ndarray, rng: np.random.Generator, *, fraction: float = 0.3) -> np.ndarray:
    """One contiguous block of frames turns black, frame 0 never (paper: 30 % of the frames, ratio 2)."""
    total = len(frames)
    length = min(round(fraction * total), total - 1)
    if length < 1:
        return frames
    start = int(rng.integers(1, total - length + 1))
    out = np.empty_like(frames, order="C")
    out[:start] = frames[:start]
    out[start : start + length] = 0
    out[start + length :] = frames[start + length :]
    return out


@register("speed", "[Restore the video to normal playback speed.]")
def speed(frames: np.ndarray, rng: np.random.Generator, *, factor: int = 2, variant: str = "hold") -> np.ndarray:
    """Playback `factor` times as fast (paper: 2x, ratio 3): ceil(T / factor) real frames.

    variant "hold" (default) keeps T by holding the last frame, as every global batch has one shape;
    "shorter" returns the real frames alone, cut to 4k+1.
    """
    if factor < 1:
        raise InputError(f"speed.factor must be at least 1, not {factor}")
    real = -(-len(frames) // factor)
    if variant == "shorter":
        return np.ascontiguousarray(frames[::factor][: (real - 1) // 4 * 4 + 1])
    if variant != "hold":
        raise InputError(f"speed.variant is hold or shorter, not {variant}")
    out = np.empty_like(frames, order="C")
    out[:real] = frames[::factor]
    out[real:] = out[real - 1]
    return out


@register("tube_shuffle", "[Restore the correct spatio-temporal order of the video segments.]")
def tube_shuffle(
    frames: np.ndarray, rng: np.random.Generator, *, grid: Sequence[int] = (2, 2, 2), hold_last: bool = True
) -> np.ndarray:
    """The clip is cut into a grid of tubes (time, height, width), randomly permuted (paper: 2x2x2, ratio 4).

    Sizes are split as evenly as possible, larger parts first; a tube only trades places with tubes of its
    size. hold_last: where T does not divide but T - 1 does (4k+1 frames), the last frame stays out of the
    shuffle; without it the tubes of such a clip could never move in time. The authors' code has both.
    """
    moved = _shuffled_frames(len(frames), grid[0], hold_last)
    tubes = _tubes((moved, *frames.shape[1:3]), grid)
    order = _shuffle_alike([tuple(s.stop - s.start for s in tube) for tube in tubes], rng)
    out = np.empty_like(frames, order="C")
    moves = [
        (at, to, tubes[origin][0].start + at - tubes[to][0].start, origin)
        for to, origin in enumerate(order)
        for at in range(tubes[to][0].start, tubes[to][0].stop)
    ]
    for at, to, come, origin in sorted(moves):  # frame by frame: memory is written in order
        (_, rows, columns), (_, from_rows, from_columns) = tubes[to], tubes[origin]
        out[at, rows, columns] = frames[come, from_rows, from_columns]
    out[moved:] = frames[moved:]
    return out


# Tasks that the paper leaves open; the tokens follow its pattern and are ours.


@register("temporal_jigsaw", "[Restore the correct temporal order of the video segments.]")
def temporal_jigsaw(
    frames: np.ndarray, rng: np.random.Generator, *, segments: int = 4, hold_last: bool = True
) -> np.ndarray:
    """Blocks of frames trade places in time, the picture plane stays whole (our task)."""
    return tube_shuffle(frames, rng, grid=(segments, 1, 1), hold_last=hold_last)


@register("reverse", "[Restore the forward playback direction of the video.]")
def reverse(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Backward playback (our task)."""
    out = np.empty_like(frames, order="C")
    out[:] = frames[::-1]
    return out


@register("frame_drop", "[Restore the dropped frames of the video.]")
def frame_drop(frames: np.ndarray, rng: np.random.Generator, *, fraction: float = 0.4) -> np.ndarray:
    """Random frames, frame 0 never, are lost: the frame before is shown again (our task)."""
    total = len(frames)
    lost = min(round(fraction * total), total - 1)
    if lost < 1:
        return frames
    shown = np.arange(total)
    shown[rng.choice(np.arange(1, total), size=lost, replace=False)] = 0
    out = np.empty_like(frames, order="C")
    for to, origin in enumerate(np.maximum.accumulate(shown)):
        out[to] = frames[origin]
    return out


@register("tube_offset", "[Restore the temporal alignment of the video regions.]")
def tube_offset(
    frames: np.ndarray, rng: np.random.Generator, *, grid: Sequence[int] = (2, 2), reach: float = 0.5
) -> np.ndarray:
    """Each region of the picture runs late or early by up to `reach` of the clip, cyclically (our task).

    At least one region keeps its time, so that the clip still says what the right time is.
    """
    total = len(frames)
    limit = int(reach * total)
    regions = _tubes((total, *frames.shape[1:3]), (1, *grid))
    shifts = rng.integers(-limit, limit + 1, size=len(regions))
    shifts[rng.integers(len(regions))] = 0
    out = np.empty_like(frames, order="C")
    for at in range(total):
        for (_, rows, columns), shift in zip(regions, shifts, strict=True):
            out[at, rows, columns] = frames[(at - int(shift)) % total, rows, columns]
    return out


@register("motion_blur", "[Remove the motion blur from the video.]")
def motion_blur(frames: np.ndarray, rng: np.random.Generator, *, frames_open: int = 4) -> np.ndarray:
    """Each frame is the mean of several frames from itself on, as from a long exposure (our task).

    frames_open: how many, a power of two. Beyond the end the last frame counts again. Means are built
    pairwise and rounded down.
    """
    if frames_open < 1 or frames_open & (frames_open - 1):
        raise InputError(f"motion_blur.frames_open must be a power of two, not {frames_open}")
    if frames_open == 1:
        return frames
    out = np.empty_like(frames, order="C")
    means, last = out.reshape(len(out), -1), len(out) - 1
    carry, strip = np.empty((2, BLUR_STRIP), np.uint8), slice(0)
    while strip.stop < means.shape[1]:
        strip = slice(strip.stop, min(strip.stop + BLUR_STRIP, means.shape[1]))
        half, both = carry[:, : strip.stop - strip.start]
        clip, reach = frames.reshape(len(frames), -1), 1
        while reach < frames_open:
            for at in range(len(means)):  # in place: a later frame is still of the level below
                a, b = clip[at, strip], clip[min(at + reach, last), strip]
                np.floor_divide(np.bitwise_xor(a, b, out=half), 2, out=half)
                np.add(np.bitwise_and(a, b, out=both), half, out=means[at, strip])
            clip, reach = means, 2 * reach
    return out


def _shuffled_frames(total: int, parts: int, hold_last: bool) -> int:
    return total - 1 if hold_last and total > 1 and total % parts and (total - 1) % parts == 0 else total


def _parts(total: int, count: int) -> list[slice]:
    """Cut 0..total into `count` slices as evenly as possible, larger ones first."""
    edges = [0]
    for i in range(count):
        edges.append(edges[-1] + total // count + (i < total % count))
    return [slice(a, b) for a, b in itertools.pairwise(edges)]


def _tubes(shape: Sequence[int], grid: Sequence[int]) -> list[tuple[slice, ...]]:
    times, rows, columns = (_parts(total, count) for total, count in zip(shape, grid, strict=True))
    return [(t, r, c) for t in times for r in rows for c in columns]


def _shuffle_alike(sizes: Sequence[tuple[int, ...]], rng: np.random.Generator) -> list[int]:
    """A random order in which only things of one size trade places."""
    order = list(range(len(sizes)))
    for size in dict.fromkeys(sizes):
        members = [i for i, s in enumerate(sizes) if s == size]
        for to, origin in zip(members, rng.permutation(members), strict=True):
            order[to] = int(origin)
    return order
