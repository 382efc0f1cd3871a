"""From noise to an edit: the shifted sigmas, Euler's method, guidance, and windows over long clips.

Conventions as in the released weights (method: section 4): `x_sigma = (1 - sigma) x + sigma eps`, velocity
`eps - x`, timestep `1000 sigma`. Everything here is plain arithmetic on tensors and knows no model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch


class State(NamedTuple):
    """What is integrated together: two points of one flow, or their two velocities.

    latents: (B, C, T, H, W) float32; semantic: (B, N, D) float32 in the semantic encoder's feature space, or None.
    """

    latents: torch.Tensor
    semantic: torch.Tensor | None = None

    def plus(self, other: State, factor: float = 1.0) -> State:
        """self + factor * other; a part that one of the two lacks stays as it is here."""
        semantic = self.semantic
        if semantic is not None and other.semantic is not None:
            semantic = semantic + factor * other.semantic
        return State(self.latents + factor * other.latents, semantic)


def shifted_sigmas(steps: int, shift: float = 5.0) -> list[float]:
    """The noise levels of `steps` Euler steps: `steps + 1` values falling from 1 to 0.

    `sigma' = shift * sigma / (1 + (shift - 1) * sigma)` over sigma = 1 - i / steps; shift 1 is evenly spaced.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    if shift <= 0:
        raise ValueError(f"shift must be above 0, got {shift}")
    plain = [1.0 - i / steps for i in range(steps)] + [0.0]
    return [shift * s / (1.0 + (shift - 1.0) * s) for s in plain]


def euler(
    start: State,
    sigmas: Sequence[float],
    velocity: Callable[[State, float], State],
    watch: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> State:
    """Follow the flow from sigmas[0] down to sigmas[-1]: latents and semantic tokens with the same steps.

    velocity(state, sigma) gives both velocities at one noise level; `watch` wraps the step numbers (progress).
    """
    state = start
    for i in watch(range(len(sigmas) - 1)):
        state = state.plus(velocity(state, sigmas[i]), sigmas[i + 1] - sigmas[i])
    return state


def plain_guidance(conditional: State, negative: State, scale: float) -> State:
    """Classifier-free guidance: `negative + scale * (conditional - negative)`, for both parts."""
    return negative.plus(conditional.plus(negative, -1.0), scale)


def separate_guidance(
    both: State, text_only: State, source_only: State, source_scale: float, text_scale: float
) -> State:
    """Text and source guided apart, as the released code does (method: section 4).

    `v(I,T) + s_I (v(I,T) - v(0,T)) + s_T (v(I,T) - v(I,0))` with both = v(I,T), text_only = v(0,T): source latents
    of zeros, source_only = v(I,0): the negative prompt. So s_T = 4 with s_I = 0 is plain guidance of 5.
    """
    guided = both.plus(both.plus(text_only, -1.0), source_scale)
    return guided.plus(both.plus(source_only, -1.0), text_scale)


def windows(length: int, size: int, overlap: int) -> list[int]:
    """Starts of windows of `size` that cover `length`, neighbours sharing at least `overlap`; the last ends at the end.

    All in latent frames. One window, starting at 0, when the clip fits into it.
    """
    if size < 1 or not 0 <= overlap < size:
        raise ValueError(f"a window of {size} latent frames cannot overlap its neighbour by {overlap}")
    if length <= size:
        return [0]
    count = -(-(length - size) // (size - overlap)) + 1
    # spread evenly: a last window pushed back alone would share far more than the others do
    return [round(i * (length - size) / (count - 1)) for i in range(count)]


def window_weights(length: int, size: int, starts: Sequence[int]) -> torch.Tensor:
    """How much each window counts at each latent frame: (windows, length) float32, columns adding up to 1.

    A window fades in over what it shares with the one before and out over what it shares with the next, so the
    joint of two windows is a straight line from one to the other.
    """
    size = min(size, length)
    weights = torch.zeros(len(starts), length, dtype=torch.float64)
    for i, start in enumerate(starts):
        ramp = torch.ones(size, dtype=torch.float64)
        if i > 0:
            shared = starts[i - 1] + size - start
            if shared > 0:
                ramp[:shared] *= torch.arange(1, shared + 1, dtype=torch.float64) / (shared + 1)
        if i + 1 < len(starts):
            shared = start + size - starts[i + 1]
            if shared > 0:
                ramp[size - shared :] *= torch.arange(shared, 0, -1, dtype=torch.float64) / (shared + 1)
        weights[i, start : start + size] = ramp
    return (weights / weights.sum(dim=0, keepdim=True)).float()
