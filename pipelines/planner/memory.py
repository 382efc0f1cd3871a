"""Bytes per device of a training run, part by part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pipelines.planner import model
from pipelines.planner.layout import Layout
from pipelines.planner.model import Counts, Shape
from sama.presets import Preset

RUNTIME = {"cuda": 2.0e9, "cpu": 0.6e9}  # context, libraries, communication buffers; an allowance, not a count
FRAGMENTATION = 0.04  # of what a caching allocator holds; an allowance too
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True)
class Part:
    """A line of the estimate. bytes: on one device; note: what it is made of."""

    name: str
    bytes: float
    note: str = ""
    allowance: bool = False


def parts(
    preset: Preset, layout: Layout, shapes: Sequence[Shape], device: str = "cuda", accumulates: bool = True
) -> list[Part]:
    """What one device holds at the worst moment of a step.

    shapes: the micro-batches that occur. accumulates: whether a step has several, so that gradients are there already
    when the last one's forward pass begins; else they grow while activations are given back.
    """
    counted = model.counts(preset.name, layout.lora)
    states = [] if layout.offload else _states(counted, layout)
    states.append(Part("gathered weights", _gathered(counted, layout), "two blocks on the way, one block's gradient"))
    encoders = Part("encoders", _encoders(preset, layout, device), _encoder_note(layout))
    later = 0.0 if accumulates or layout.offload else 4 * counted.trained / layout.shards
    worst = max((_step(preset, layout, shape, device, later) for shape in shapes), key=lambda s: s[0])
    step = Part(worst[1], worst[0], worst[2])
    held = sum(p.bytes for p in (*states, encoders, step))
    found = [*states, encoders, step, Part("runtime", RUNTIME[device], "libraries, communication", True)]
    if device == "cuda":
        found.append(Part("fragmentation", FRAGMENTATION * held, "of the allocator", True))
    return found


def host_staging(preset: Preset, layout: Layout) -> float:
    """Bytes of host memory per node: a checkpoint's copy, and what lives on the host anyway."""
    counted = model.counts(preset.name, layout.lora)
    here = min(layout.per_node, layout.workers) / layout.shards
    offloaded = (4 * counted.all + 12 * counted.trained) if layout.offload else 0
    averaged = 4 * counted.trained if layout.ema_on_cpu and not layout.offload else 0
    return here * (checkpoint_bytes(counted) + offloaded + averaged)


def checkpoint_bytes(counted: Counts) -> float:
    """Of each parameter that trains the weight, the average and both moments, float32; frozen ones are kept once."""
    return 16.0 * counted.trained


def _states(counted: Counts, layout: Layout) -> list[Part]:
    shards, trained = layout.shards, counted.trained
    moments = 2 * (1 + 4 / 256) if layout.eight_bit else 8  # 8 bit: a float32 scale per 256 numbers
    found = [
        Part("weights", 4 * counted.all / shards, "float32 masters"),
        Part("gradients", 4 * trained / shards, "float32"),
        Part("optimizer", moments * trained / shards, "both moments, 8 bit" if layout.eight_bit else "both moments"),
    ]
    if not layout.ema_on_cpu:
        found.append(Part("average", 4 * trained / shards, "float32 EMA"))
    return found


def _gathered(counted: Counts, layout: Layout) -> float:
    """Weights that FSDP gathers: the block at work and the next one, a block's gradient and its reduction."""
    half = layout.precision == "bfloat16"
    block = (2 if half else 4) * counted.block_products + 4 * (counted.block - counted.block_products)
    reduced = 0 if layout.lora else block + 4 * counted.block
    return 2 * block + reduced + 4 * counted.rest


def _encoders(preset: Preset, layout: Layout, device: str) -> float:
    """Frozen weights that stay on the device."""
    width = _encoder_width(layout, device)
    sizes = model.encoder_sizes(preset)
    return width * sum(n for name, n in sizes.items() if layout.text_live or name != "text_encoder")


def _encoder_note(layout: Layout) -> str:
    return "VAE, SigLIP, text encoder" if layout.text_live else "VAE, SigLIP; text from the cache"


def _encoder_width(layout: Layout, device: str) -> int:
    return 2 if layout.precision == "bfloat16" and device == "cuda" else 4


def _step(preset: Preset, layout: Layout, shape: Shape, device: str, later: float) -> tuple[float, str, str]:
    """(bytes, name, note) of the worse of encoding and of forward and backward for one micro-batch.

    later: bytes of the gradients where they are not there yet when activations are at their peak.
    """
    dtype = DTYPES[layout.precision]
    seen = model.activations(preset, shape, dtype, layout.checkpointing, layout.sequence)
    activations = max(seen.peak(preset.transformer["num_layers"]) - later, seen.peak(1))
    encoded = 4 * shape.samples * _latent_numbers(preset, shape) * (6 if shape.source else 3)
    peak, _ = model.vae_encode(
        preset.name, shape.frames, shape.height, shape.width, torch.bfloat16 if device == "cuda" else torch.float32
    )
    pixels = shape.samples * 3 * shape.frames * shape.height * shape.width * (2 if shape.source else 1)
    if peak > activations:
        return peak + encoded + pixels, "encoding", f"VAE on {shape.label}"
    tokens = f"{shape.samples} x {shape.tokens(preset)} tokens"
    note = f"{shape.stream} {shape.label}, {tokens}" + (f" over {layout.sequence}" if layout.sequence > 1 else "")
    return activations + encoded + pixels, "activations", note


def _latent_numbers(preset: Preset, shape: Shape) -> int:
    channels, time, height, width = preset.latent_shape(shape.frames, shape.height, shape.width)
    return channels * time * height * width
