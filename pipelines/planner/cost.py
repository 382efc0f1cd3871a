"""Seconds, device hours and money of a run, from its FLOPs and a stated share of the device's peak."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace

import torch

from pipelines.planner import model
from pipelines.planner.devices import Device, forward_flops
from pipelines.planner.layout import Layout, Rounds, rounds
from pipelines.planner.model import Shape
from sama.presets import Preset

SECONDS_PER_HOUR = 3600.0


@dataclass(frozen=True)
class Steps:
    """So many optimizer steps of one stream and shape. samples of `shape` is the micro-batch."""

    shape: Shape
    steps: int
    global_batch: int


@dataclass(frozen=True)
class Cost:
    """One line: a stream and shape. tokens, flops: of one step over all devices, real samples only.

    seconds: of one step, filler included. encode: the part of it that goes into the frozen encoders.
    """

    steps: Steps
    tokens: int
    flops: float
    seconds: float
    encode: float
    rounds: Rounds


@dataclass(frozen=True)
class Rates:
    """What the estimate assumes. mfu: of forward and backward, three times the forward FLOPs counted; encode_mfu: of
    the frozen encoders; price: money per device and hour."""

    device: Device
    mfu: float
    encode_mfu: float
    price: float | None = None


def costs(preset: Preset, layout: Layout, work: Sequence[Steps], rates: Rates) -> list[Cost]:
    """Cost of each stream and shape."""
    found = []
    for steps in work:
        shape = steps.shape
        cut = rounds(steps.global_batch, layout.data_ranks, shape.samples)
        tokens = shape.tokens(preset)
        forward = forward_flops(SimpleNamespace(**preset.transformer), tokens, preset.text_max_length)
        frozen = encoder_flops(preset, shape, layout.text_live)
        slots = steps.global_batch / (1 - cut.wasted)
        speed = rates.device.peak * layout.workers
        encode = slots * frozen / (speed * rates.encode_mfu)
        seconds = slots * 3 * forward / (speed * rates.mfu) + encode
        flops = steps.global_batch * (3 * forward + frozen)
        found.append(Cost(steps, steps.global_batch * tokens, flops, seconds, encode, cut))
    return found


def encoder_flops(preset: Preset, shape: Shape, text_live: bool) -> float:
    """FLOPs of the frozen encoders for one sample: VAE of target and source, SigLIP, and the text encoder if live.

    SigLIP and text: two per weight and token; attention is below a percent of the VAE's work.
    """
    _, vae = model.vae_encode(preset.name, shape.frames, shape.height, shape.width, torch.bfloat16)
    sizes = model.encoder_sizes(preset)
    patches = (384 // 14) ** 2
    text = 2.0 * sizes["text_encoder"] * preset.text_max_length if text_live else 0.0
    return vae * (2.0 if shape.source else 1.0) + 2.0 * sizes["vision"] * patches * shape.anchors + text


@dataclass(frozen=True)
class Total:
    """Of the whole run. money: None without a price."""

    steps: int
    seconds: float
    device_hours: float
    money: float | None
    wasted: float


def total(layout: Layout, found: Sequence[Cost], rates: Rates) -> Total:
    """Sum over the run. wasted: share of the device time that goes into filler slots."""
    seconds = sum(c.seconds * c.steps.steps for c in found)
    hours = seconds * layout.workers / SECONDS_PER_HOUR
    filler = sum(c.seconds * c.steps.steps * c.rounds.wasted for c in found)
    money = None if rates.price is None else hours * rates.price
    return Total(sum(c.steps.steps for c in found), seconds, hours, money, filler / seconds if seconds else 0.0)
