"""Pixels <-> normalised latents through a Wan VAE. Method: section 2."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

# frames x height x width that go through the VAE together: 14 clips of 9x64x64, one of 81x480x832
PIXELS_AT_ONCE = 2**19
TILED_ABOVE = 1280 * 720  # pixels of a frame beyond which the VAE works in tiles, or its activations fill the device
TILE, TILE_STRIDE = 512, 384  # pixels; neighbouring tiles are blended over the 128 that they share


@torch.no_grad()
def to_latents(vae: Any, pixels: torch.Tensor, device: torch.device) -> torch.Tensor:
    """(B, T, H, W, 3) uint8 to (B, C, T', H', W') float32: the mode of the posterior, normalised per channel."""
    _, time, height, width, _ = pixels.shape
    mean, std = _statistics(vae, device)
    out = []
    with tiled(vae, height * width):
        for clips in pixels.split(max(1, PIXELS_AT_ONCE // (time * height * width))):
            x = clips.to(device).permute(0, 4, 1, 2, 3).to(vae.dtype) / 127.5 - 1.0
            out.append((vae.encode(x).latent_dist.mode().float() - mean) / std)
    return torch.cat(out)


@torch.no_grad()
def to_pixels(vae: Any, latents: torch.Tensor, device: torch.device, spatial: int) -> torch.Tensor:
    """(B, C, T', H', W') to (B, T, H, W, 3) uint8 on the CPU; spatial: pixels of a latent's side."""
    mean, std = _statistics(vae, device)
    _, _, time, height, width = latents.shape
    area, out = height * width * spatial**2, []
    with tiled(vae, area):
        for some in latents.split(max(1, PIXELS_AT_ONCE // (4 * time * area))):
            z = some.to(device).float() * std + mean
            pixels = vae.decode(z.to(vae.dtype)).sample.float().clamp(-1.0, 1.0)
            out.append(((pixels + 1.0) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 4, 1).cpu())
    return torch.cat(out)


@contextlib.contextmanager
def tiled(vae: Any, area: int) -> Iterator[None]:
    """Tiles for frames of more than TILED_ABOVE pixels, unless tiling is on already."""
    if area <= TILED_ABOVE or vae.use_tiling:
        yield
        return
    vae.enable_tiling(TILE, TILE, TILE_STRIDE, TILE_STRIDE)
    try:
        yield
    finally:
        vae.disable_tiling()


def _statistics(vae: Any, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    mean, std = (
        torch.tensor(v, dtype=torch.float32, device=device).view(1, -1, 1, 1, 1)
        for v in (vae.config.latents_mean, vae.config.latents_std)
    )
    return mean, std
