"""Semantic anchoring: which frames are anchors, and how patch features become 64 local + 1 global tokens.

Method: section 3.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


def anchor_indices(frames: int, n: int = 1) -> list[int]:
    """Frames of the target that serve as anchors: `n` spread uniformly from the first to the last.

    One anchor is frame 0, as in the released code. A clip has at most as many anchors as frames, so an
    image always has one.
    """
    if frames < 1 or n < 1:
        raise ValueError(f"{n} anchors of {frames} frames: both must be at least 1")
    n = min(n, frames)
    if n == 1:
        return [0]
    return [(2 * i * (frames - 1) + n - 1) // (2 * (n - 1)) for i in range(n)]


def anchor_latent_frames(latent_frames: int, n: int, vae_temporal: int = 4) -> list[int]:
    """The latent frame in which each of the `n` anchors lies; latent frame 0 holds pixel frame 0 alone.

    `n` may exceed what `anchor_indices` gives for so short a clip; then anchors share their frames.
    """
    at = anchor_indices(vae_temporal * (latent_frames - 1) + 1, n)
    at += at[-1:] * (n - len(at))
    return [(i + vae_temporal - 1) // vae_temporal for i in at]


def pool_tokens(patch_features: torch.Tensor, pooled: torch.Tensor, grid: int = 8) -> torch.Tensor:
    """Patch features (B, side*side, D) and the encoder's pooled output (B, D) -> tokens (B, grid*grid + 1, D).

    Local tokens first, in reading order: each is the mean over its part of the square patch grid (parts
    overlap by a patch where `side` does not divide by `grid`). The global token is last. The paper fixes
    64 + 1 tokens but not their order, which the transformer cannot tell anyway under `null` positions.
    """
    batch, patches, dim = patch_features.shape
    side = round(patches**0.5)
    if side * side != patches:
        raise ValueError(f"{patches} patches do not form a square")
    square = patch_features.transpose(1, 2).reshape(batch, dim, side, side)
    local = F.adaptive_avg_pool2d(square, grid).flatten(2).transpose(1, 2)
    return torch.cat([local, pooled[:, None].to(local.dtype)], dim=1)
