"""The objective against plain formulas, written out in Python numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from sama.checkpoints import random_transformer
from sama.errors import InputError
from sama.objective import EncodedBatch, TimestepSampler, losses
from sama.presets import get_preset
from sama.randomness import normal


def batch(seeds: list[int], semantic: bool = True) -> EncodedBatch:
    n = len(seeds)
    return EncodedBatch(
        latents=torch.stack([normal(s, "clean", (16, 2, 4, 4)) for s in seeds]),
        source_latents=torch.stack([normal(s, "source", (16, 2, 4, 4)) for s in seeds]),
        text_embeds=torch.stack([normal(s, "text", (6, 64)) for s in seeds]),
        semantic=torch.stack([normal(s, "features", (65, 48)) for s in seeds]) if semantic else None,
        seeds=seeds,
        weights=torch.ones(n),
    )


class Recorder(torch.nn.Module):
    """Answers with fixed velocities and remembers what it was asked."""

    def forward(self, latents, timestep, text_embeds, source_latents=None, semantic_tokens=None):
        self.seen = (latents, timestep, text_embeds, source_latents, semantic_tokens)
        answer = torch.full_like(latents, 0.25)
        return answer, None if semantic_tokens is None else torch.full_like(semantic_tokens, -0.5)


def wan_table(shift: float = 5.0) -> list[tuple[float, float]]:
    """(sigma, weight) of each of the 1000 training steps, one by one."""
    sigmas, bells = [], []
    for i in range(1000):
        linear = (1000 - i) / 1000
        sigmas.append(shift * linear / (1 + (shift - 1) * linear))
        bells.append(math.exp(-2 * ((1000 * sigmas[-1] - 500) / 1000) ** 2))
    lowest = min(bells)
    mean = sum(b - lowest for b in bells) / 1000
    return [(s, (b - lowest) / mean) for s, b in zip(sigmas, bells, strict=True)]


def test_wan_shifted_draws_from_the_schedulers_steps_uniformly() -> None:
    sampler, table = TimestepSampler(), wan_table()
    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=5.0)
    np.testing.assert_allclose([s for s, _ in table], scheduler.sigmas.numpy(), atol=1e-6)
    known = np.array([s for s, _ in table])
    counts = np.zeros(10)
    for seed in range(3000):
        sigma, weight = sampler.sample(seed)
        index = int(np.abs(known - sigma).argmin())
        assert sigma == pytest.approx(table[index][0], abs=1e-9)
        assert weight == pytest.approx(table[index][1], abs=1e-9)
        counts[index // 100] += 1
    assert abs(counts / 300 - 1).max() < 0.25


def test_weights_have_mean_one_and_vanish_at_pure_noise() -> None:
    weights = [w for _, w in wan_table()]
    assert sum(weights) / 1000 == pytest.approx(1.0)
    assert weights[0] == pytest.approx(0.0, abs=1e-9)
    drawn = [TimestepSampler().sample(seed)[1] for seed in range(4000)]
    assert sum(drawn) / len(drawn) == pytest.approx(1.0, abs=0.05)


def test_uniform_and_logit_normal() -> None:
    flat = np.array([TimestepSampler("uniform").sample(s) for s in range(3000)])
    assert (flat[:, 1] == 1).all()
    assert 0 < flat[:, 0].min() < 0.01 < 0.99 < flat[:, 0].max() <= 1
    assert abs(np.histogram(flat[:, 0], 5, (0, 1))[0] / 600 - 1).max() < 0.15
    for shift in (1.0, 5.0):
        drawn = np.array([TimestepSampler("logit_normal", shift).sample(s)[0] for s in range(3000)])
        plain = drawn / (shift - (shift - 1) * drawn)
        logits = np.log(plain / (1 - plain))
        assert abs(logits.mean()) < 0.06
        assert abs(logits.std() - 1) < 0.05
    with pytest.raises(InputError, match="there are wan_shifted, uniform, logit_normal"):
        TimestepSampler("cosine")


def test_losses_follow_the_formula() -> None:
    given, model, sampler = batch([11, 12, 13]), Recorder(), TimestepSampler()
    got = losses(model, given, sampler, semantic_weight=0.3)
    latents, timestep, text, source, semantic = model.seen
    assert got.semantic is not None
    assert source is given.source_latents
    assert torch.equal(text, given.text_embeds)
    for i, seed in enumerate(given.seeds):
        sigma, weight = sampler.sample(seed)
        noise = normal(seed, "noise", (16, 2, 4, 4)).double()
        semantic_noise = normal(seed, "semantic noise", (65, 48)).double()
        clean, features = given.latents[i].double(), normal(seed, "features", (65, 48)).double()
        assert timestep[i].item() == pytest.approx(1000 * sigma, rel=1e-6)
        torch.testing.assert_close(latents[i].double(), (1 - sigma) * clean + sigma * noise, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(
            semantic[i].double(), (1 - sigma) * features + sigma * semantic_noise, atol=1e-6, rtol=1e-5
        )
        mse = ((0.25 - (noise - clean)) ** 2).mean().item()
        l1 = (-0.5 - (semantic_noise - features)).abs().mean().item()
        assert got.mse[i].item() == pytest.approx(mse, rel=1e-5)
        assert got.fm[i].item() == pytest.approx(weight * mse, rel=1e-5)
        assert got.semantic[i].item() == pytest.approx(l1, rel=1e-5)
        assert got.total[i].item() == pytest.approx(weight * mse + 0.3 * l1, rel=1e-5)
        assert got.sigma[i].item() == pytest.approx(sigma, rel=1e-6)


def test_fixed_sigma_weighs_one_and_keeps_the_noise() -> None:
    model = Recorder()
    got = losses(model, batch([5, 6]), TimestepSampler(), fixed_sigma=0.5)
    assert torch.equal(model.seen[1], torch.tensor([500.0, 500.0]))
    assert torch.equal(got.fm, got.mse)
    again = losses(model, batch([5, 6]), TimestepSampler("uniform"), fixed_sigma=0.5)
    assert torch.equal(got.total, again.total)


def test_without_semantic_tokens() -> None:
    model = Recorder()
    got = losses(model, batch([5], semantic=False), TimestepSampler())
    assert got.semantic is None
    assert torch.equal(got.total, got.fm)
    assert model.seen[4] is None


def test_a_samples_loss_does_not_depend_on_its_batch() -> None:
    model = random_transformer({**get_preset("tiny").transformer, "num_layers": 2})
    with torch.no_grad():
        model.proj_out.weight.copy_(normal(1, "head", model.proj_out.weight.shape) * 0.1)
        together = losses(model, batch([1, 2, 3]), TimestepSampler())
        for i, seed in enumerate((1, 2, 3)):
            alone = losses(model, batch([seed]), TimestepSampler())
            for a, b in zip(alone, together, strict=True):
                assert a is not None
                assert b is not None
                torch.testing.assert_close(a[0], b[i], rtol=1e-4, atol=1e-5)


def test_every_parameter_of_the_model_learns() -> None:
    model = random_transformer({**get_preset("tiny").transformer, "num_layers": 2})
    with torch.no_grad():
        model.proj_out.weight.copy_(normal(1, "head", model.proj_out.weight.shape) * 0.1)
    losses(model, batch([1, 2]), TimestepSampler()).total.mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_seeds_must_match() -> None:
    given = batch([1, 2])
    given.seeds = [1]
    with pytest.raises(ValueError, match="1 seeds for 2 samples"):
        losses(Recorder(), given, TimestepSampler())
