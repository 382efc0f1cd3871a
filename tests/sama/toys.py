"""A transformer and encoders small enough to be written out by hand, for tests of the edit pipeline's logic."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch
from torch import nn

from sama.presets import get_preset


class ToyModel(nn.Module):
    """Velocities that depend on every input; records the calls. Shapes as SamaTransformer's."""

    def __init__(self, semantic_dim: int = 6, per_anchor: int = 5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.3))
        self.config = SimpleNamespace(semantic_dim=semantic_dim, semantic_tokens_per_anchor=per_anchor)
        self.calls: list[SimpleNamespace] = []

    def forward(self, latents, timestep, text_embeds, source_latents=None, semantic_tokens=None):
        self.calls.append(
            SimpleNamespace(
                latents=latents, timestep=timestep, text=text_embeds, source=source_latents, semantic=semantic_tokens
            )
        )
        told = text_embeds.mean() + timestep.view(-1, 1, 1, 1, 1) / 1000
        velocity = self.weight * latents + torch.sin(told)
        if source_latents is not None:
            velocity = velocity - 0.5 * source_latents
        if semantic_tokens is None:
            return velocity, None
        velocity = velocity + semantic_tokens.mean()
        return velocity, 0.2 * semantic_tokens + velocity.mean() + told.mean()


class WindowModel(ToyModel):
    """Answers every forward with the running number of its window, to show how windows are joined."""

    def __init__(self, windows: int) -> None:
        super().__init__()
        self.windows = windows

    def forward(self, latents, timestep, text_embeds, source_latents=None, semantic_tokens=None):
        number = len(self.calls) % self.windows
        super().forward(latents, timestep, text_embeds, source_latents, semantic_tokens)
        semantic = None if semantic_tokens is None else torch.full_like(semantic_tokens, 10.0 * (number + 1))
        return torch.full_like(latents, float(number)), semantic


class DriftModel(ToyModel):
    """Reaches the source exactly, plus a brightness that climbs from the first to the last frame of each window:
    what real editors do over a clip, and what makes hard cuts between windows visible."""

    def __init__(self, climb: float) -> None:
        super().__init__()
        self.climb = climb

    def forward(self, latents, timestep, text_embeds, source_latents=None, semantic_tokens=None):
        ramp = self.climb * torch.linspace(0, 1, latents.shape[2]).view(1, 1, -1, 1, 1)
        return (latents - source_latents - ramp) / (timestep / 1000), torch.zeros_like(semantic_tokens)


class ToyEncoders:
    """Latents are block means (4 frames after the first, 8x8 pixels, 3 channels) in -1..1; text is its length."""

    def __init__(self) -> None:
        self.encoded_videos = 0
        self.texts: list[str] = []
        self.preset = get_preset("tiny")  # for its sizes
        self.moves: list[str] = []

    def to(self, device):
        self.moves.append(str(device))
        return self

    def release(self, *names):
        self.moves.append(f"release {' '.join(names)}")

    def encode_video(self, frames):
        self.encoded_videos += 1
        x = torch.as_tensor(frames).permute(0, 4, 1, 2, 3).float() / 127.5 - 1
        first, rest = x[:, :, :1], x[:, :, 1:]
        if rest.shape[2]:
            rest = rest.unflatten(2, (-1, 4)).mean(dim=3)
        return nn.functional.avg_pool3d(torch.cat([first, rest], dim=2), (1, 8, 8))

    def decode_video(self, latents):
        x = torch.cat([latents[:, :, :1], latents[:, :, 1:].repeat_interleave(4, dim=2)], dim=2)
        x = x.repeat_interleave(8, dim=3).repeat_interleave(8, dim=4)
        return ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 4, 1)

    def encode_text(self, texts):
        self.texts += texts
        return torch.stack([torch.full((4, 2), len(t) / 40) for t in texts])


def clip(frames: int, height: int = 32, width: int = 48, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)
