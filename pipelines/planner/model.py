"""The modules of a preset on the meta device, and what a step does with them: bytes and FLOPs, no formula."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pipelines.planner import meter
from sama.checkpoints import transformer_config
from sama.lora import add_lora
from sama.presets import Preset
from sama.transformer import SamaTransformer

# the authors' configuration files; the hub cannot be asked while planning
_WAN22_VAE: dict[str, Any] = {
    "base_dim": 160, "decoder_base_dim": 256, "z_dim": 48, "dim_mult": [1, 2, 4, 4], "is_residual": True,
    "in_channels": 12, "out_channels": 12, "patch_size": 2, "scale_factor_spatial": 16,
    "latents_mean": [0.0] * 48, "latents_std": [1.0] * 48,
}  # fmt: skip
_UMT5_XXL = {"vocab_size": 256384, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64}
_SO400M = {
    "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16,
    "image_size": 384, "patch_size": 14,
}  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """One micro-batch of a stream: `samples` clips of frames x height x width pixels, their source beside them."""

    stream: str
    frames: int
    height: int
    width: int
    samples: int = 1
    anchors: int = 1
    source: bool = True

    @property
    def label(self) -> str:
        return f"{self.frames}x{self.height}x{self.width}"

    def tokens(self, preset: Preset) -> int:
        """Length of one sample's sequence."""
        return preset.tokens(self.frames, self.height, self.width, self.source, self.anchors)


@dataclass(frozen=True)
class Lora:
    """Adapters: their rank, ends of the names of the linear layers that get one, and what is trained whole."""

    rank: int
    targets: tuple[str, ...]
    whole: tuple[str, ...]


@dataclass(frozen=True)
class Counts:
    """Parameters: of all, of those that train, of one block, and of one block those that compute in bfloat16."""

    all: int
    trained: int
    block: int
    block_products: int
    blocks: int

    @property
    def rest(self) -> int:
        """Parameters outside the blocks."""
        return self.all - self.block * self.blocks


@dataclass(frozen=True)
class Activations:
    """Bytes of one forward and backward pass of a micro-batch on one device.

    kept: by every block from its forward to its backward. worst: beyond that inside the one block at work. around:
    what embeddings, heads and loss hold meanwhile. apart: what they need at most while no block is at work.
    """

    kept: int
    worst: int
    around: int
    apart: int

    def peak(self, blocks: int) -> int:
        """The worst moment of a model of so many blocks."""
        return blocks * self.kept + max(self.worst + self.around, self.apart)


def transformer(preset: Preset, layers: int | None = None) -> SamaTransformer:
    config = transformer_config(preset)
    with torch.device("meta"):
        return SamaTransformer(**{**config, "num_layers": config["num_layers"] if layers is None else layers})


@functools.lru_cache
def counts(preset_name: str, lora: Lora | None = None) -> Counts:
    """Parameters of a preset, with the adapters that train beside it if there are any."""
    from sama.presets import get_preset

    preset = get_preset(preset_name)
    model = transformer(preset, 1)
    if lora is not None:
        with torch.device("meta"):
            add_lora(model, lora.rank, 1.0, lora.targets, lora.whole)
    layers, block = preset.transformer["num_layers"], model.blocks[0]

    def size(module: nn.Module, trained: bool = False) -> int:
        return sum(p.numel() for p in module.parameters() if p.requires_grad or not trained)

    def whole(trained: bool) -> int:
        return size(model, trained) + (layers - 1) * size(block, trained)

    products = sum(size(m) for m in products_of(transformer(preset, 1).blocks[0]))
    return Counts(whole(False), whole(True), size(block), products, layers)


def products_of(block: nn.Module) -> list[nn.Module]:
    """What computes in bfloat16: matrix products and the norms of queries and keys; see train.parallel."""
    named = block.named_modules()
    return [m for n, m in named if isinstance(m, nn.Linear) or n.rsplit(".", 1)[-1] in {"norm_q", "norm_k"}]


def activations(preset: Preset, shape: Shape, dtype: torch.dtype, checkpointing: str, sequence: int = 1) -> Activations:
    """Measure one block and what surrounds the blocks.

    dtype: of the blocks' products. checkpointing: none, block (a block's input is kept) or selective (and what its
    attentions gave). sequence: over how many devices the tokens are split; outside the blocks they stay whole.
    """
    tokens = math.ceil(shape.tokens(preset) / sequence)
    block = transformer(preset, 1).blocks[0].train()
    dim, head_dim = preset.dim, preset.transformer["attention_head_dim"]
    for module in products_of(block):
        module.to(dtype)
    with torch.device("meta"):
        hidden = torch.empty(shape.samples, tokens, dim, dtype=dtype, requires_grad=True)
        text = torch.empty(shape.samples, preset.text_max_length, dim, dtype=dtype)
        modulation = torch.empty(shape.samples, 6, dim)
        rotary = torch.empty(1, tokens, 1, head_dim), torch.empty(1, tokens, 1, head_dim)
        beyond = torch.empty(shape.samples, tokens, dim, dtype=dtype)
    there = [*block.parameters(), *block.buffers(), hidden, text, modulation, *rotary, beyond]

    def chain(length: int) -> torch.Tensor:
        out = hidden
        for _ in range(length):
            out = block(out, text, modulation, rotary)
        return out

    # what one more block adds: its output may or may not be kept by the next one
    kept = meter.memory(lambda: chain(2), there).kept - meter.memory(lambda: chain(1), there).kept
    gradients = sum(p.numel() * p.element_size() for p in block.parameters())  # counted with the gradients
    peak = meter.memory(lambda: chain(1).backward(beyond), there).peak - gradients
    if checkpointing != "none":
        kept = hidden.numel() * hidden.element_size()
    if checkpointing == "selective":  # self-attention's output, and a float32 per row and head
        kept += kept + 4 * shape.samples * tokens * preset.transformer["num_attention_heads"]
    around, apart = _outside(preset, shape, dtype)
    return Activations(kept, peak if checkpointing != "none" else max(0, peak - kept), around, apart)


def _outside(preset: Preset, shape: Shape, dtype: torch.dtype) -> tuple[int, int]:
    """(bytes held from forward to backward, peak) of a model without blocks: embeddings, rotary tables, heads, loss."""
    model = transformer(preset, 0).train()
    model.compute_dtype = dtype
    with torch.device("meta"):
        latents = torch.empty(shape.samples, *preset.latent_shape(shape.frames, shape.height, shape.width))
        source = torch.empty_like(latents) if shape.source else None
        text = torch.empty(shape.samples, preset.text_max_length, preset.text_dim)
        semantic = torch.empty(shape.samples, shape.anchors * preset.semantic_tokens, preset.semantic_dim)
        timestep = torch.empty(shape.samples)
    there = [*model.parameters(), *model.buffers(), latents, text, semantic, timestep]
    there += [] if source is None else [source]

    def loss() -> torch.Tensor:
        noisy, wanted = latents * 0.5, latents * 1.0  # as the objective holds them
        velocity, features = model(noisy, timestep, text, source_latents=source, semantic_tokens=semantic)
        return (velocity.float() - wanted).square().mean() + (features.float() - semantic).abs().mean()

    gradients = sum(p.numel() * p.element_size() for p in model.parameters())
    whole = meter.memory(lambda: loss().backward(), there).peak
    return meter.memory(loss, there).kept, max(0, whole - gradients)


def encoder_sizes(preset: Preset) -> dict[str, int]:
    """Parameters of the frozen encoders by name."""
    return {name: sum(p.numel() for p in _encoder(preset.name, name).parameters()) for name in ENCODERS}


ENCODERS = ("vae", "text_encoder", "vision")


@functools.lru_cache
def vae_encode(preset_name: str, frames: int, height: int, width: int, dtype: torch.dtype) -> tuple[int, int]:
    """(peak bytes, FLOPs) of encoding one clip with the VAE of a preset."""
    vae = _encoder(preset_name, "vae")
    for parameter in vae.parameters():
        parameter.data = parameter.data.to(dtype)
    clip = torch.empty(1, 3, frames, height, width, device="meta", dtype=dtype)

    def once() -> torch.Tensor:
        with torch.no_grad():
            return vae.encode(clip).latent_dist.mode()  # type: ignore[operator]

    pixels = clip.numel() * (4 + clip.element_size())  # the clip as float32 while it is scaled, then as it goes in
    return meter.memory(once, [*vae.parameters(), *vae.buffers(), clip]).peak + pixels, meter.flops(once)


@functools.lru_cache
def _encoder(preset_name: str, name: str) -> nn.Module:
    from sama.presets import get_preset

    preset = get_preset(preset_name)
    with torch.device("meta"):
        if name == "vae":
            from diffusers import AutoencoderKLWan

            if preset.random:
                from sama.tiny import shipped

                config = AutoencoderKLWan.load_config(str(shipped("vae")))
                return AutoencoderKLWan.from_config(config).eval().requires_grad_(False)
            kind = _WAN22_VAE if preset.latent_channels == 48 else {}
            return AutoencoderKLWan(**kind).eval().requires_grad_(False)
        if name == "vision":
            from transformers import SiglipVisionConfig, SiglipVisionModel

            return SiglipVisionModel(SiglipVisionConfig(**(preset.vision or _SO400M)))
        from transformers import UMT5Config, UMT5EncoderModel

        sizes = {**_UMT5_XXL, **({"vocab_size": 512} if preset.text_encoder else {}), **preset.text_encoder}
        return UMT5EncoderModel(UMT5Config(feed_forward_proj="gated-gelu", **sizes))
