"""Named model sizes: what each is built from, where its parts come from and under which licence.

Sizes are those of the backbones' own configuration files; method: section 2. Imports nothing heavy.
"""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass, field
from typing import Any

from sama.errors import InputError

TINY_SEED = 20260319  # the one seed of everything that is random in preset `tiny`


@dataclass(frozen=True)
class Component:
    """Where one part comes from: a hub repository (None: built from configuration or shipped) and its folder."""

    repo: str | None
    subfolder: str | None
    licence: str


@dataclass(frozen=True)
class Preset:
    """One model size.

    transformer: keyword arguments of `SamaTransformer`. components: vae, text_encoder, tokenizer,
    transformer (the text-to-video backbone that Stage 0 starts from) and vision (SigLIP).
    area: pixels of a frame that the resolution buckets aim at; multiple: what their sides divide by.
    """

    name: str
    transformer: dict[str, Any]
    text_max_length: int
    components: dict[str, Component]
    vae_temporal: int = 4
    vae_spatial: int = 8
    area: int = 832 * 480
    multiple: int = 32
    semantic_grid: int = 8
    text_encoder: dict[str, Any] = field(default_factory=dict)
    vision: dict[str, Any] = field(default_factory=dict)

    @property
    def dim(self) -> int:
        """Width of the transformer."""
        return self.transformer["num_attention_heads"] * self.transformer["attention_head_dim"]

    @property
    def latent_channels(self) -> int:
        return self.transformer["in_channels"]

    @property
    def text_dim(self) -> int:
        return self.transformer["text_dim"]

    @property
    def semantic_dim(self) -> int:
        """Width of the semantic encoder's features."""
        return self.transformer["semantic_dim"]

    @property
    def semantic_tokens(self) -> int:
        """Tokens of one anchor frame: the local grid and one global token; 65 in the paper."""
        return self.semantic_grid**2 + 1

    @property
    def random(self) -> bool:
        """Whether the preset needs no download: its parts are shipped or made from a fixed seed."""
        return all(c.repo is None for c in self.components.values())

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """(C, T, H, W) of the latents of a clip of `frames` (4k+1) frames of height x width pixels."""
        if frames < 1 or (frames - 1) % self.vae_temporal:
            raise InputError(f"a clip of {frames} frames cannot be encoded: its length must be {self.vae_temporal}k+1")
        side = self.vae_spatial * self.transformer["patch_size"][1]
        if height % side or width % side:
            raise InputError(f"a frame of {height}x{width} cannot be encoded: its sides must be multiples of {side}")
        time = (frames - 1) // self.vae_temporal + 1
        return self.latent_channels, time, height // self.vae_spatial, width // self.vae_spatial

    def tokens(self, frames: int, height: int, width: int, source: bool = True, anchors: int = 1) -> int:
        """Length of the transformer's sequence for one sample."""
        _, *sizes = self.latent_shape(frames, height, width)
        video = math.prod(s // p for s, p in zip(sizes, self.transformer["patch_size"], strict=True))
        return video * (2 if source else 1) + anchors * self.semantic_tokens


def _transformer(heads: int, layers: int, ffn: int, channels: int = 16, **other: Any) -> dict[str, Any]:
    return {
        "patch_size": (1, 2, 2),
        "num_attention_heads": heads,
        "attention_head_dim": 128,
        "in_channels": channels,
        "out_channels": channels,
        "text_dim": 4096,
        "freq_dim": 256,
        "ffn_dim": ffn,
        "num_layers": layers,
        "semantic_dim": 1152,
        "semantic_hidden_dim": 1024,
        **other,
    }


def _wan(repo: str) -> dict[str, Component]:
    parts = {p: Component(repo, p, "apache-2.0") for p in ("vae", "text_encoder", "tokenizer", "transformer")}
    return {**parts, "vision": Component("google/siglip-so400m-patch14-384", None, "apache-2.0")}


_OURS = Component(None, None, "apache-2.0")

_TINY = Preset(
    name="tiny",
    transformer=_transformer(
        4, 4, 512, attention_head_dim=32, text_dim=64, freq_dim=64, semantic_dim=48, semantic_hidden_dim=64
    ),
    text_max_length=128,
    components=dict.fromkeys(("vae", "text_encoder", "tokenizer", "transformer", "vision"), _OURS),
    area=64 * 64,
    multiple=16,
    text_encoder={"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4},
    vision={
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 126,
        "patch_size": 14,
    },
)

PRESETS: dict[str, Preset] = {
    p.name: p
    for p in (
        _TINY,
        Preset(
            name="wan2.1-t2v-1.3b",
            transformer=_transformer(12, 30, 8960),
            text_max_length=512,
            components=_wan("Wan-AI/Wan2.1-T2V-1.3B-Diffusers"),
        ),
        Preset(
            name="wan2.2-ti2v-5b",
            transformer=_transformer(24, 30, 14336, channels=48),
            text_max_length=512,
            components=_wan("Wan-AI/Wan2.2-TI2V-5B-Diffusers"),
            vae_spatial=16,
        ),
        Preset(
            name="wan2.1-t2v-14b",
            transformer=_transformer(40, 40, 13824),
            text_max_length=512,
            components=_wan("Wan-AI/Wan2.1-T2V-14B-Diffusers"),
        ),
    )
}


def get_preset(name: str | Preset) -> Preset:
    """The preset of that name; a preset is passed through. InputError names the known ones."""
    if isinstance(name, Preset):
        return name
    if name in PRESETS:
        return PRESETS[name]
    close = difflib.get_close_matches(str(name), PRESETS, n=1)
    hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(PRESETS)}"
    raise InputError(f"{name} is not a preset; {hint}")
