"""Pixels and text -> what the transformer reads, and latents -> pixels: the frozen encoders of a preset.

Method: sections 2 and 3. Each part is loaded when first used, from the hub, a local folder or, for preset
`tiny`, from what ships with this package and a fixed seed. Results carry no gradient.
"""

from __future__ import annotations

import functools
import html
import re
from collections.abc import Mapping, Sequence
from typing import Any

import ftfy
import numpy as np
import torch
import torch.nn.functional as F

from sama import fingerprints
from sama.errors import InputError
from sama.latents import to_latents, to_pixels
from sama.presets import Component, Preset, get_preset
from sama.semantic import pool_tokens
from sama.tiny import random_encoder, shipped

Frames = torch.Tensor | np.ndarray


def clean_text(text: str) -> str:
    """Repair broken characters, resolve HTML entities, fold white space; what Wan was trained with."""
    if not (text.isascii() and text.isprintable() and "&" not in text):  # in such text there is nothing to repair
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
        self._digests: dict[str, str] = {}
        self._given: frozenset[str] = frozenset()

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

    @property
    def sources(self) -> dict[str, str]:
        """Hub id or folder of each component that does not come from the preset's own source."""
        return dict(self._sources)

    @classmethod
    def from_parts(
        cls,
        preset: Preset | str,
        parts: Mapping[str, Any],
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Encoders:
        """Encoders of a preset around parts that are loaded already (`vae`, `text_encoder`, `tokenizer`, `vision`)."""
        found = cls.from_preset(preset, device, dtype)
        vars(found).update(parts)
        found._given = frozenset(parts)
        return found

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
        """Forget loaded parts (`vae`, `text_encoder`, `vision`); the next use loads them again. A part that was given
        is not ours to forget: it moves to the CPU."""
        for name in names:
            if name in self._given:
                self.__dict__[name].to("cpu")
            else:
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

    def encode_video(self, frames: Frames) -> torch.Tensor:
        """Clips or images to latents.

        frames: (B, T, H, W, 3) uint8, T = 1 for images or 4k+1; H and W multiples of the preset's sides
        returns (B, C, T', H', W') float32, the mode of the posterior, normalised per channel with the VAE's
        `latents_mean` and `latents_std`. Small clips go together, large ones one at a time, frames of more than
        `latents.TILED_ABOVE` pixels in overlapping tiles.
        """
        pixels = _uint8(frames)
        self.preset.latent_shape(*pixels.shape[1:4])
        return to_latents(self.vae, pixels, self.device)

    def decode_video(self, latents: torch.Tensor) -> torch.Tensor:
        """Normalised latents (B, C, T', H', W') to (B, T, H, W, 3) uint8 on the CPU, T = 4 (T' - 1) + 1."""
        return to_pixels(self.vae, latents, self.device, self.preset.vae_spatial)

    def enable_tiling(self, **options: Any) -> None:
        """Let the VAE work in overlapping tiles from now on, at any size; options as diffusers' `enable_tiling`."""
        self.vae.enable_tiling(**options)

    # -- text -----------------------------------------------------------------

    def encode_text(self, prompts: Sequence[str]) -> torch.Tensor:
        """Prompts to (B, max_length, text_dim) in the encoders' dtype: cleaned, cut, zeros beyond the text."""
        return pad_text(self.encode_prompts(prompts), self.preset.text_max_length)

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> list[torch.Tensor]:
        """Prompts to embeddings of their own length, (tokens, text_dim) each: `encode_text` without the zeros."""
        read = self._read(prompts, padding="longest", return_attention_mask=True, return_tensors="pt")
        ids, mask = read.input_ids.to(self.device), read.attention_mask.to(self.device)
        hidden = self.text_encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        return [h[:n] for h, n in zip(hidden, mask.sum(1).tolist(), strict=True)]

    def text_lengths(self, prompts: Sequence[str]) -> list[int]:
        """Tokens of each prompt as the text encoder would read it; loads the tokenizer alone."""
        return [len(ids) for ids in self._read(prompts).input_ids]

    def _read(self, prompts: Sequence[str], **how: Any) -> Any:
        return self.tokenizer(
            [clean_text(p) for p in prompts],
            truncation=True,
            max_length=self.preset.text_max_length,
            add_special_tokens=True,
            **how,
        )

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

    @property
    def digest(self) -> str:
        """Hex digest of what any encoding depends on."""
        return fingerprints.combine({part: self.digest_of(part) for part in fingerprints.PARTS})

    def digest_of(self, part: str) -> str:
        """Hex digest of what one kind of encoding depends on: `text`, `vae` or `semantic`; keys caches of it.

        Its files, sizes, dtype and version, and nothing of the other kinds. Nothing but the configuration of a hub
        repository is fetched for it.
        """
        if part not in self._digests:
            places = {name: self._place(name) for name in fingerprints.PARTS[part]}
            self._digests[part] = fingerprints.digest(part, self.preset, self.dtype, places)
        return self._digests[part]


def pad_text(embeds: Sequence[torch.Tensor], length: int) -> torch.Tensor:
    """Embeddings of their own lengths, (tokens, dim) each, to (B, length, dim) with zeros behind the text."""
    return torch.stack([F.pad(e, (0, 0, 0, length - len(e))) for e in embeds])


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
