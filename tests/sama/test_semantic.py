"""Anchor frames and pooling against plain loops."""

from __future__ import annotations

import math

import pytest
import torch

from sama.randomness import normal
from sama.semantic import anchor_indices, anchor_latent_frames, pool_tokens


def test_anchor_frames() -> None:
    assert anchor_indices(81) == [0]
    assert anchor_indices(1, 4) == [0]
    assert anchor_indices(81, 3) == [0, 40, 80]
    assert anchor_indices(9, 4) == [0, 3, 5, 8]
    assert anchor_indices(3, 9) == [0, 1, 2]
    with pytest.raises(ValueError, match="at least 1"):
        anchor_indices(5, 0)


def test_anchor_frames_are_uniform() -> None:
    for frames in range(1, 40):
        for n in range(2, 9):
            at = anchor_indices(frames, n)
            assert len(at) == len(set(at)) == min(n, frames)
            for i, index in enumerate(at):
                assert abs(index - i * (frames - 1) / max(len(at) - 1, 1)) <= 0.5


def test_latent_frame_of_an_anchor_holds_its_pixels() -> None:
    for latent_frames in (1, 3, 6):
        frames = 4 * (latent_frames - 1) + 1
        holds = {0: 0, **{pixel: 1 + (pixel - 1) // 4 for pixel in range(1, frames)}}
        for n in (1, 2, 5):
            at = anchor_latent_frames(latent_frames, n)
            assert len(at) == n
            assert at[: len(anchor_indices(frames, n))] == [holds[i] for i in anchor_indices(frames, n)]


@pytest.mark.parametrize("side", [8, 9, 16, 27])
def test_pooling_is_the_mean_over_each_part(side: int) -> None:
    patches, pooled = normal(1, "patches", (2, side * side, 5)), normal(1, "pooled", (2, 5))
    tokens = pool_tokens(patches, pooled)
    assert tokens.shape == (2, 65, 5)
    for row in range(8):
        for column in range(8):
            inside = [
                y * side + x
                for y in range(row * side // 8, math.ceil((row + 1) * side / 8))
                for x in range(column * side // 8, math.ceil((column + 1) * side / 8))
            ]
            torch.testing.assert_close(tokens[:, row * 8 + column], patches[:, inside].mean(1))
    assert torch.equal(tokens[:, 64], pooled)


def test_pooling_needs_a_square() -> None:
    with pytest.raises(ValueError, match="12 patches do not form a square"):
        pool_tokens(torch.zeros(1, 12, 4), torch.zeros(1, 4))
