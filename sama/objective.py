"""The training objective: flow matching on the target latents plus lambda times L1 on the semantic features.

Method: sections 3 and 4. `x_sigma = (1 - sigma) x + sigma eps`, velocity `eps - x`, timestep 1000 sigma.
All draws of a sample follow from its own seed, so a loss depends neither on the batch a sample is in nor on
the number of workers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from sama import randomness
from sama.errors import InputError

STEPS = 1000
KINDS = ("wan_shifted", "uniform", "logit_normal")


@dataclass
class EncodedBatch:
    """What the model trains on.

    latents: (B, C, T, H, W) clean target, normalised; source_latents: the same shape or None
    text_embeds: (B, L, text_dim); semantic: (B, N, semantic_dim) clean features or None
    seeds: one per sample; weights: (B,) 1 for a real sample, 0 for a filler (the loop applies them)
    """

    latents: torch.Tensor
    source_latents: torch.Tensor | None
    text_embeds: torch.Tensor
    semantic: torch.Tensor | None
    seeds: list[int]
    weights: torch.Tensor


class Losses(NamedTuple):
    """Per sample, float32, not yet weighted with `EncodedBatch.weights`.

    fm: flow-matching loss with its timestep weight; semantic: L1, None without semantic tokens;
    total = fm + semantic_weight * semantic; sigma: the noise level; mse: fm before the timestep weight
    """

    fm: torch.Tensor
    semantic: torch.Tensor | None
    total: torch.Tensor
    sigma: torch.Tensor
    mse: torch.Tensor


def shifted(sigma: float, shift: float) -> float:
    """Wan's timestep shift: `s sigma / (1 + (s - 1) sigma)`."""
    return shift * sigma / (1.0 + (shift - 1.0) * sigma)


class TimestepSampler:
    """Draws a noise level and the weight of the flow-matching loss at it.

    wan_shifted (default): an index uniform over the scheduler's 1000 shifted steps; the weight is the bell
    `exp(-2 ((t - 500) / 1000)^2)` minus its minimum over those steps, scaled to mean 1 over them.
    uniform: sigma uniform in (0, 1], not shifted. logit_normal: sigmoid of a normal draw, shifted. Both weigh 1.
    """

    def __init__(self, kind: str = "wan_shifted", shift: float = 5.0) -> None:
        if kind not in KINDS:
            raise InputError(f"{kind} is not a way to draw timesteps; there are {', '.join(KINDS)}")
        self.kind, self.shift = kind, shift
        grid = 1.0 - torch.arange(STEPS, dtype=torch.float64) / STEPS
        self._sigmas = shift * grid / (1.0 + (shift - 1.0) * grid)
        bell = torch.exp(-2.0 * ((self._sigmas * STEPS - STEPS / 2) / STEPS) ** 2)
        bell = bell - bell.min()
        self._weights = bell / bell.mean()

    def sample(self, seed: int) -> tuple[float, float]:
        """(sigma, weight) of the sample with this seed; sigma in (0, 1]."""
        if self.kind == "wan_shifted":
            index = int(randomness.uniform(seed, "timestep") * STEPS)
            return float(self._sigmas[index]), float(self._weights[index])
        if self.kind == "uniform":
            return 1.0 - randomness.uniform(seed, "timestep"), 1.0
        drawn = float(torch.sigmoid(randomness.normal(seed, "timestep", ()).double()))
        return shifted(drawn, self.shift), 1.0


def _noised(
    clean: torch.Tensor, seeds: list[int], purpose: str, sigma: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Noised samples and their velocity targets, float32 on the device of `clean`."""
    noise = torch.stack([randomness.normal(s, purpose, clean.shape[1:]) for s in seeds]).to(clean.device)
    clean = clean.float()
    level = sigma.view(-1, *[1] * (clean.ndim - 1))
    return (1.0 - level) * clean + level * noise, noise - clean


def losses(
    model: nn.Module,
    batch: EncodedBatch,
    sampler: TimestepSampler,
    semantic_weight: float = 0.1,
    *,
    fixed_sigma: float | None = None,
) -> Losses:
    """Noise the batch, run the model once and compare both velocities with their targets.

    The semantic features get the same noise level as the latents, in feature space. The timestep weight
    applies to the flow-matching part only. fixed_sigma: this noise level for all, weight 1 (held-out loss).
    """
    if len(batch.seeds) != len(batch.latents):
        raise ValueError(f"{len(batch.seeds)} seeds for {len(batch.latents)} samples")
    drawn = [sampler.sample(s) if fixed_sigma is None else (fixed_sigma, 1.0) for s in batch.seeds]
    device = batch.latents.device
    sigma, weight = torch.tensor(drawn, dtype=torch.float64).to(torch.float32).to(device).unbind(1)

    noisy, wanted = _noised(batch.latents, batch.seeds, "noise", sigma)
    noisy_semantic = wanted_semantic = None
    if batch.semantic is not None:
        noisy_semantic, wanted_semantic = _noised(batch.semantic, batch.seeds, "semantic noise", sigma)
    velocity, semantic_velocity = model(
        noisy, sigma * STEPS, batch.text_embeds, source_latents=batch.source_latents, semantic_tokens=noisy_semantic
    )
    mse = (velocity.float() - wanted).square().flatten(1).mean(1)
    fm = mse * weight
    if wanted_semantic is None:
        return Losses(fm, None, fm, sigma, mse)
    semantic = (semantic_velocity.float() - wanted_semantic).abs().flatten(1).mean(1)
    return Losses(fm, semantic, fm + semantic_weight * semantic, sigma, mse)
