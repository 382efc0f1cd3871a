"""LoRA files in the namings that are in use, and what they hold.

`official` (ComfyUI, DiffSynth-Studio: `diffusion_model.blocks.0.self_attn.q.lora_A.weight`), `diffusers`
(`transformer.blocks.0.attn1.to_q.lora_A.weight`) and, for reading, kohya's
(`lora_unet_blocks_0_self_attn_q.lora_down.weight`).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open

from sama.errors import InputError
from sama.names import official_key, our_key
from sama.tensor_files import read_safetensors, write_safetensors

NAMINGS = ("official", "diffusers")
METADATA = "lora_adapter_metadata"  # where diffusers keeps alpha, in a file's header

_PART = re.compile(r"(?P<module>.+)\.(?P<side>lora_A|lora_B|lora_down|lora_up)(\.[A-Za-z_]\w*)?\.weight")
_KOHYA = re.compile(r"lora_unet_blocks_(\d+)_(self_attn|cross_attn|ffn)_(\w+)")


class Pair(NamedTuple):
    """One adapter: down A (rank, in), up B (out, rank), and alpha."""

    down: torch.Tensor
    up: torch.Tensor
    alpha: float

    def change(self) -> torch.Tensor:
        """What it adds to the weight, (out, in) float32."""
        return (self.alpha / self.down.shape[0]) * (self.up.float() @ self.down.float())


@dataclass(frozen=True)
class Lora:
    """What a LoRA file holds, in our names.

    pairs: by module (`blocks.0.attn1.to_q`). whole: parameters that take the place of the model's. added: whole
    differences (`.diff`, `.diff_b` of some public files).
    """

    pairs: dict[str, Pair]
    whole: dict[str, torch.Tensor] = field(default_factory=dict)
    added: dict[str, torch.Tensor] = field(default_factory=dict)


def save_lora(lora: Lora, path: str | os.PathLike, naming: str = "official") -> None:
    """Write one safetensors file; it appears complete or not at all.

    official: with an `alpha` beside each pair. diffusers: alpha stands in the header, so there is one for all.
    """
    if naming not in NAMINGS:
        raise InputError(f"{naming} is not a naming of LoRA files; there are {', '.join(NAMINGS)}")
    if naming == "diffusers":
        _save_diffusers(lora, Path(path))
        return
    state: dict[str, torch.Tensor] = {}
    for name, pair in lora.pairs.items():
        module = f"diffusion_model.{_official_module(name)}"
        state[f"{module}.lora_A.weight"], state[f"{module}.lora_B.weight"] = pair.down, pair.up
        state[f"{module}.alpha"] = torch.tensor(float(pair.alpha))
    for key, tensor in lora.added.items():
        module, _, leaf = official_key(key).rpartition(".")
        state[f"diffusion_model.{module}.{'diff' if leaf == 'weight' else 'diff_b'}"] = tensor
    state |= {f"diffusion_model.{official_key(k)}": v for k, v in lora.whole.items()}
    write_safetensors(state, Path(path))


def _save_diffusers(lora: Lora, path: Path) -> None:
    alphas, ranks = {p.alpha for p in lora.pairs.values()}, {p.down.shape[0] for p in lora.pairs.values()}
    if len(alphas) != 1 or len(ranks) != 1 or lora.added:
        raise InputError("diffusers' naming holds one rank and one alpha and no plain differences; write `official`")
    state = {f"transformer.{k}": v for k, v in lora.whole.items()}
    for name, pair in lora.pairs.items():
        state[f"transformer.{name}.lora_A.weight"] = pair.down
        state[f"transformer.{name}.lora_B.weight"] = pair.up
    about = {
        "transformer.r": ranks.pop(),
        "transformer.lora_alpha": alphas.pop(),
        "transformer.target_modules": sorted(lora.pairs),
    }
    write_safetensors(state, path, {METADATA: json.dumps(about, indent=2, sort_keys=True)})


def load_lora(path: str | os.PathLike) -> Lora:
    """Read a LoRA file in any of the namings. Without an alpha the scale is 1, as everywhere.

    InputError for a file that is not there or cut short, that holds no LoRA, or half of a pair.
    """
    return sort_keys(read_safetensors(path), _header_alpha(path), str(path))


def sort_keys(state: Mapping[str, torch.Tensor], alpha: float | None = None, origin: str = "the state dict") -> Lora:
    """A LoRA from the keys of a file. alpha: of pairs that have none of their own; None is their rank."""
    sides: dict[str, dict[str, torch.Tensor]] = {}
    alphas: dict[str, float] = {}
    whole, added = {}, {}
    for key, tensor in state.items():
        part = _PART.fullmatch(key)
        if part:
            side = "down" if part["side"] in ("lora_A", "lora_down") else "up"
            sides.setdefault(_our_module(part["module"]), {})[side] = tensor
        elif key.endswith(".alpha"):
            alphas[_our_module(key.removesuffix(".alpha"))] = float(tensor)
        elif key.endswith(".diff"):
            added[f"{_our_module(key.removesuffix('.diff'))}.weight"] = tensor
        elif key.endswith(".diff_b"):
            added[f"{_our_module(key.removesuffix('.diff_b'))}.bias"] = tensor
        else:
            whole[our_key(key)] = tensor
    for module, found in sides.items():
        if len(found) != 2:
            raise InputError(f"{origin} has only one half of the LoRA of {official_key(module + '.weight')}")
        if found["down"].ndim != 2 or found["up"].ndim != 2 or found["down"].shape[0] != found["up"].shape[1]:
            shapes = " and ".join(str(tuple(found[s].shape)) for s in ("down", "up"))
            raise InputError(f"{origin}: the two halves of {official_key(module + '.weight')} do not fit: {shapes}")
    if not sides and not added:
        raise InputError(f"{origin} holds no LoRA: no key ends in lora_A.weight or lora_down.weight")

    def alpha_of(module: str) -> float:
        return alphas.get(module, float(sides[module]["down"].shape[0]) if alpha is None else alpha)

    pairs = {m: Pair(found["down"], found["up"], alpha_of(m)) for m, found in sides.items()}
    return Lora(pairs, whole, added)


def _header_alpha(path: str | os.PathLike) -> float | None:
    try:
        with safe_open(path, framework="pt") as file:
            about: dict[str, Any] = json.loads((file.metadata() or {}).get(METADATA, "{}"))
        found = about.get("transformer.lora_alpha")
        return None if found is None else float(found)
    except (SafetensorError, OSError, ValueError, TypeError):
        return None


def _our_module(module: str) -> str:
    kohya = _KOHYA.fullmatch(module)
    if kohya:
        module = f"blocks.{kohya[1]}.{kohya[2]}.{kohya[3]}"
    return our_key(f"{module}.weight").removesuffix(".weight")


def _official_module(module: str) -> str:
    return official_key(f"{module}.weight").removesuffix(".weight")
