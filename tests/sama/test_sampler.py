"""The sampler's arithmetic against formulas written down plainly."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sama.sampler import (
    State,
    euler,
    plain_guidance,
    separate_guidance,
    shifted_sigmas,
    window_weights,
    windows,
)


def test_sigmas_follow_the_schedulers_formula():
    import numpy as np

    plain = np.linspace(1.0, 0.0, 51)
    expected = 5.0 * plain / (1.0 + 4.0 * plain)
    assert shifted_sigmas(50, 5.0) == pytest.approx(expected.tolist(), abs=1e-12)
    assert shifted_sigmas(4, 1.0) == [1.0, 0.75, 0.5, 0.25, 0.0]


def test_sigmas_agree_with_diffusers():
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler(shift=5.0)
    plain = [1.0 - i / 50 for i in range(50)]
    scheduler.set_timesteps(sigmas=plain)
    assert shifted_sigmas(50) == pytest.approx(scheduler.sigmas.tolist(), abs=1e-6)


@pytest.mark.parametrize(("steps", "shift"), [(0, 5.0), (-1, 5.0), (5, 0.0)])
def test_sigmas_refuse_nonsense(steps, shift):
    with pytest.raises(ValueError, match="must be"):
        shifted_sigmas(steps, shift)


def test_euler_moves_latents_and_semantic_tokens_with_the_same_steps():
    """The velocity of this toy is -state, sigma and a constant; the loop below is Euler written out by hand."""
    start = State(torch.randn(1, 2, 3, 2, 2), torch.randn(1, 5, 4))
    sigmas = shifted_sigmas(7, 3.0)

    def velocity(state, sigma):
        return State(-state.latents + sigma, 2.0 * state.semantic - sigma)

    latents, semantic = start.latents.clone(), start.semantic.clone()
    for now, then in itertools.pairwise(sigmas):
        step_latents, step_semantic = -latents + now, 2.0 * semantic - now
        latents, semantic = latents + (then - now) * step_latents, semantic + (then - now) * step_semantic
    end = euler(start, sigmas, velocity)
    torch.testing.assert_close(end.latents, latents)
    torch.testing.assert_close(end.semantic, semantic)


def test_euler_reaches_the_data_when_the_velocity_is_exact():
    """On the straight path of one sample the velocity is eps - x everywhere: any number of steps ends at x."""
    x, eps = torch.randn(1, 4, 2, 2, 2), torch.randn(1, 4, 2, 2, 2)
    for steps in (1, 9):
        end = euler(State(eps), shifted_sigmas(steps), lambda state, sigma: State(eps - x))
        torch.testing.assert_close(end.latents, x, atol=1e-5, rtol=1e-5)
        assert end.semantic is None


def test_euler_reports_every_step():
    seen = []

    def watch(steps):
        for i in steps:
            seen.append(i)
            yield i

    euler(State(torch.zeros(1)), shifted_sigmas(5), lambda s, t: State(s.latents), watch)
    assert seen == [0, 1, 2, 3, 4]


def test_plain_guidance():
    conditional, negative = (
        State(torch.tensor([3.0]), torch.tensor([1.0])),
        State(torch.tensor([1.0]), torch.tensor([-1.0])),
    )
    guided = plain_guidance(conditional, negative, 5.0)
    assert guided.latents.item() == 1.0 + 5.0 * (3.0 - 1.0)
    assert guided.semantic.item() == -1.0 + 5.0 * (1.0 + 1.0)
    assert plain_guidance(conditional, negative, 1.0).latents.item() == 3.0


def test_separate_guidance():
    both, text_only, source_only = (State(torch.randn(2, 3), torch.randn(2, 5)) for _ in range(3))
    guided = separate_guidance(both, text_only, source_only, source_scale=1.5, text_scale=4.0)
    for part in ("latents", "semantic"):
        v_it, v_0t, v_i0 = (getattr(v, part) for v in (both, text_only, source_only))
        torch.testing.assert_close(getattr(guided, part), v_it + 1.5 * (v_it - v_0t) + 4.0 * (v_it - v_i0))
    plain = plain_guidance(both, source_only, 5.0)
    torch.testing.assert_close(separate_guidance(both, text_only, source_only, 0.0, 4.0).latents, plain.latents)


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 120), st.integers(1, 30), st.data())
def test_windows_cover_and_overlap(length, size, data):
    overlap = data.draw(st.integers(0, size - 1))
    starts = windows(length, size, overlap)
    size_here = min(size, length)
    assert starts[0] == 0
    assert starts[-1] + size_here == length
    assert starts == sorted(set(starts))
    for a, b in itertools.pairwise(starts):
        assert a + size - b >= overlap
    weights = window_weights(length, size, starts)
    assert weights.shape == (len(starts), length)
    torch.testing.assert_close(weights.sum(dim=0), torch.ones(length))
    for i, start in enumerate(starts):
        outside = torch.ones(length, dtype=torch.bool)
        outside[start : start + size_here] = False
        assert (weights[i][outside] == 0).all()
        assert (weights[i][~outside] > 0).all()


def test_a_joint_is_a_straight_line():
    starts = windows(10, 6, 2)
    assert starts == [0, 4]
    assert window_weights(10, 6, starts)[1].tolist() == pytest.approx([0, 0, 0, 0, 1 / 3, 2 / 3, 1, 1, 1, 1])


def test_windows_refuse_an_overlap_as_long_as_themselves():
    with pytest.raises(ValueError, match="overlap"):
        windows(10, 4, 4)
