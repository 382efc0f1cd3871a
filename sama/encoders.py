"""Pixels and text -> what the transformer reads, and latents -> pixels: the frozen encoders of a preset.

Method: sections 2 and 3. Each part is loaded when first used, from the hub, a local folder or, for preset
`tiny`, from what ships with this package and a fixed seed. Results carry no gradient.
"""

from __future__ import annotations

import functools
import hashlib
import html
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ftfy
import numpy as np
import torch
import torch.nn.functional as F

from sama.errors import InputError
from sama.presets import TINY_SEED, Component, Preset, get_preset
from sama.semantic import pool_tokens
from sama.tiny import random_encoder, shipped

ENCODING_VERSION = 1  # part of `Encoders.digest`: raise it when the same weights give other numbers
PIXELS_AT_ONCE = (
    2**19
)  # frames x height x width that go through the VAE together: 14 clips of 9x64x64, one of 81x480x832
PIXELS_PER_LATENT = 4 * 8 * 8
Frames = torch.Tensor | np.ndarray


def clean_text(text: str) -> str:
    """Repair broken characters, resolve HTML entities, fold white space; what Wan was trained with."""
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return re.sub(r"\s+", " ", text).strip()


class Encoders:
    """VAE, text encoder and semantic encoder of one preset."""

    def __init__(
        self,
        preset: Preset,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        sources: Mapping[str, str] | None = None,
    ) -> None:
        self.preset, self.device, self.dtype = preset, torch.device(device), dtype
        unknown = set(sources or {}) - {*preset.components, "wan"}
        if unknown:
            raise InputError(f"{min(unknown)} is not a component; there are wan, {', '.join(preset.components)}")
        self._sources = dict(sources or {})

    @classmethod
    def from_preset(
        cls,
        preset: Preset | str,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        sources: Mapping[str, str] | None = None,
    ) -> Encoders:
        """Encoders of a preset or its name.

        sources: hub id or local folder per component (`vae`, `text_encoder`, `tokenizer`, `vision`), or `wan`
        for all parts of the backbone's folder; without it the preset's own. Nothing is loaded yet.
        """
        return cls(get_preset(preset), device, dtype, sources)

    # -- parts ----------------------------------------------------------------

    @functools.cached_property
    def vae(self) -> Any:
        from diffusers import AutoencoderKLWan

        repo, subfolder = self._place("vae")
        if repo is None:
            repo, subfolder = str(shipped("vae")), None
        return self._open(AutoencoderKLWan, repo, subfolder)

    @functools.cached_property
    def tokenizer(self) -> Any:
        from transformers import AutoTokenizer, PreTrainedTokenizerFast

        repo, subfolder = self._place("tokenizer")
        if repo is None:
            file = str(shipped("tokenizer") / "tokenizer.json")
            return PreTrainedTokenizerFast(
                tokenizer_file=file, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", padding_side="right"
            )
        return _opened(AutoTokenizer.from_pretrained, repo, subfolder)

    @functools.cached_property
    def text_encoder(self) -> Any:
        from transformers import UMT5Config, UMT5EncoderModel

        repo, subfolder = self._place("text_encoder")
        if repo is not None:
            return self._open(UMT5EncoderModel, repo, subfolder)
        sizes = {"vocab_size": len(self.tokenizer), "feed_forward_proj": "gated-gelu", **self.preset.text_encoder}
        return self._frozen(random_encoder(UMT5EncoderModel, UMT5Config(**sizes), "text encoder").to(self.dtype))

    @functools.cached_property
    def vision(self) -> Any:
        from transformers import SiglipVisionConfig, SiglipVisionModel

        repo, subfolder = self._place("vision")
        if repo is not None:
            return self._open(SiglipVisionModel, repo, subfolder)
        return self._frozen(
            random_encoder(SiglipVisionModel, SiglipVisionConfig(**self.preset.vision), "vision").to(self.dtype)
        )

    def release(self, *names: str) -> None:
        """Forget loaded parts (`vae`, `text_encoder`, `vision`); the next use loads them again."""
        for name in names:
            self.__dict__.pop(name, None)

    def to(self, device: torch.device | str) -> Encoders:
        """Move what is loaded, and load the rest there."""
        self.device = torch.device(device)
        for name in ("vae", "text_encoder", "vision"):
            if name in self.__dict__:
                self.__dict__[name].to(self.device)
        return self

    def _place(self, name: str) -> tuple[str | None, str | None]:
        """Repository or folder of a component and the folder in it."""
        part: Component = self.preset.components[name]
        if name in self._sources:
            return self._sources[name], None
        if "wan" in self._sources and name != "vision":
            return self._sources["wan"], name
        return part.repo, part.subfolder

    def _open(self, cls: Any, repo: str, subfolder: str | None) -> Any:
        key = "torch_dtype" if cls.__module__.startswith("diffusers") else "dtype"
        return self._frozen(_opened(cls.from_pretrained, repo, subfolder, use_safetensors=True, **{key: self.dtype}))

    def _frozen(self, model: Any) -> Any:
        return model.to(self.device).eval().requires_grad_(False)

    # -- video ----------------------------------------------------------------

    @torch.no_grad()
    def encode_video(self, frames: Frames) -> torch.Tensor:
        """Clips or images to latents.

        frames: (B, T, H, W, 3) uint8, T = 1 for images or 4k+1; H and W multiples of the preset's sides
        returns (B, C, T', H', W') float32, the mode of the posterior, normalised per channel with the VAE's
        `latents_mean` and `latents_std`. Small clips go together, large ones one at a time.
        """
        pixels = _uint8(frames)
        _, time, height, width, _ = pixels.shape
        self.preset.latent_shape(time, height, width)
        mean, std = self._statistics()
        out = []
        for clips in pixels.split(max(1, PIXELS_AT_ONCE // (time * height * width))):
            x = clips.to(self.device).permute(0, 4, 1, 2, 3).to(self.dtype) / 127.5 - 1.0
            out.append((self.vae.encode(x).latent_dist.mode().float() - mean) / std)
        return torch.cat(out)

    @torch.no_grad()
    def decode_video(self, latents: torch.Tensor) -> torch.Tensor:
        """Normalised latents (B, C, T', H', W') to (B, T, H, W, 3) uint8 on the CPU, T = 4 (T' - 1) + 1."""
        mean, std = self._statistics()
        out = []
        cells = latents.shape[2] * latents.shape[3] * latents.shape[4] * PIXELS_PER_LATENT
        for some in latents.split(max(1, PIXELS_AT_ONCE // cells)):
            z = some.to(self.device).float() * std + mean
            pixels = self.vae.decode(z.to(self.dtype)).sample.float().clamp(-1.0, 1.0)
            out.append(((pixels + 1.0) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 4, 1).cpu())
        return torch.cat(out)

    def enable_tiling(self, **options: Any) -> None:
        """Let the VAE work on large frames in overlapping tiles; options as diffusers' `enable_tiling`."""
        self.vae.enable_tiling(**options)

    def _statistics(self) -> tuple[torch.Tensor, torch.Tensor]:
        config = self.vae.config
        mean, std = (
            torch.tensor(v, dtype=torch.float32, device=self.device).view(1, -1, 1, 1, 1)
            for v in (config.latents_mean, config.latents_std)
        )
        return mean, std

    # -- text -----------------------------------------------------------------

    @torch.no_grad()
    def encode_text(self, prompts: Sequence[str]) -> torch.Tensor:
        """Prompts to (B, max_length, text_dim) in the encoders' dtype: cleaned, cut, zeros beyond the text."""
        length = self.preset.text_max_length
        read = self.tokenizer(
            [clean_text(p) for p in prompts],
            padding="longest",
            truncation=True,
            max_length=length,
            add_special_tokens=True,
            return_attention_mask=True,
            return_tensors="pt",
        )
        ids, mask = read.input_ids.to(self.device), read.attention_mask.to(self.device)
        hidden = self.text_encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        hidden = hidden * mask[..., None].to(hidden.dtype)
        return F.pad(hidden, (0, 0, 0, length - hidden.shape[1]))

    # -- semantic -------------------------------------------------------------

    @torch.no_grad()
    def encode_semantic(self, frames: Frames) -> torch.Tensor:
        """Anchor frames (B, N, H, W, 3) uint8 to features (B, 65 N, semantic_dim) float32.

        Each frame is squashed to the encoder's square, as SigLIP's own processor does; its patch features
        become 8x8 local tokens and the attention-pooled output the global one, anchor after anchor.
        """
        pixels = _uint8(frames)
        batch, anchors = pixels.shape[:2]
        side = self.vision.config.image_size
        x = pixels.flatten(0, 1).to(self.device).permute(0, 3, 1, 2).float()
        x = F.interpolate(x, size=(side, side), mode="bicubic", antialias=True).round().clamp(0.0, 255.0)
        seen = self.vision(pixel_values=(x / 127.5 - 1.0).to(self.dtype))
        tokens = pool_tokens(seen.last_hidden_state.float(), seen.pooler_output.float(), grid=self.preset.semantic_grid)
        return tokens.reshape(batch, anchors * tokens.shape[1], -1)

    # -- identity -------------------------------------------------------------

    @functools.cached_property
    def digest(self) -> str:
        """Hex digest of what the encodings depend on: parts, sizes, dtype, version; keys caches of them."""
        parts = {}
        for name in ("vae", "tokenizer", "text_encoder", "vision"):
            repo, subfolder = self._place(name)
            if repo is None and name in ("vae", "tokenizer"):
                repo, subfolder = str(shipped(name)), None
            parts[name] = _fingerprint(repo, subfolder)
        identity = {
            "version": ENCODING_VERSION,
            "dtype": str(self.dtype),
            "text_max_length": self.preset.text_max_length,
            "grid": self.preset.semantic_grid,
            "random": [TINY_SEED, self.preset.text_encoder, self.preset.vision] if self.preset.random else None,
            "parts": parts,
        }
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def _uint8(frames: Frames) -> torch.Tensor:
    pixels = torch.as_tensor(frames)
    if pixels.dtype != torch.uint8 or pixels.ndim != 5 or pixels.shape[-1] != 3:
        raise ValueError(f"frames must be (B, T, H, W, 3) uint8, not {tuple(pixels.shape)} {pixels.dtype}")
    return pixels


def _opened(call: Any, repo: str, subfolder: str | None, **options: Any) -> Any:
    """Call a `from_pretrained`; what the library says about a bad place becomes one sentence."""
    where = {"subfolder": subfolder} if subfolder else {}
    try:
        return call(repo, **where, **options)
    except (OSError, ValueError) as error:
        place = f"{repo} ({subfolder})" if subfolder else repo
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise InputError(f"{place} cannot be loaded: {reason}") from None


def _fingerprint(repo: str | None, subfolder: str | None) -> str | None:
    """What identifies a component's files: their digest where they are local, else the hub revision in the cache."""
    if repo is None:
        return None
    folder = Path(repo) / (subfolder or "")
    if not folder.is_dir():
        return f"{repo}@{_cached_revision(repo, subfolder)}:{subfolder or ''}"
    digest = hashlib.sha256()
    for file in sorted(p for p in folder.iterdir() if p.is_file() and p.suffix in (".json", ".safetensors", ".model")):
        size = file.stat().st_size
        digest.update(f"{file.name}:{size}:".encode())
        with file.open("rb") as opened:  # whole small files; both ends of large ones
            digest.update(opened.read(1 << 24))
            opened.seek(max(size - (1 << 20), 0))
            digest.update(opened.read())
    return digest.hexdigest()


def _cached_revision(repo: str, subfolder: str | None) -> str:
    """Commit of a hub repository in the local cache, "" when it is not there yet."""
    from huggingface_hub import try_to_load_from_cache

    for name in ("config.json", "tokenizer_config.json"):
        found = try_to_load_from_cache(repo, f"{subfolder}/{name}" if subfolder else name)
        if isinstance(found, str):
            return Path(found).parents[1 if subfolder else 0].name
    return ""
