"""LoRA: small trained matrices beside a frozen model, put on through peft and merged. Files: lora_files.py.

A linear layer W becomes W + alpha / rank * B A with A (rank, in) and B (out, rank), B zeros at the start. The modules
that a text-to-video backbone lacks are small and start without knowledge, so they are trained whole by default.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor

from sama.errors import InputError
from sama.lora_files import NAMINGS, Lora, Pair, load_lora, save_lora, sort_keys
from sama.names import official_key
from sama.randomness import generator

__all__ = [
    "NAMINGS", "TARGETS", "WHOLE", "Lora", "Pair", "add_lora", "count", "is_adapter", "load_lora", "lora_from",
    "lora_state", "merge_lora", "merged", "plain_name", "reset_lora", "save_lora", "sort_keys",
]  # fmt: skip

Model = TypeVar("Model", bound=nn.Module)
TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2")
WHOLE = ("segment_embedding", "siglip_feat_mlp", "semantic_head")


def add_lora(
    model: Model,
    rank: int = 16,
    alpha: float = 16.0,
    targets: Sequence[str] = TARGETS,
    whole: Sequence[str] = WHOLE,
    seed: int = 0,
) -> Model:
    """Freeze `model` and give it adapters, in place: the only parameters that are trained, beside `whole`.

    targets: ends of names of linear layers, in diffusers' naming. whole: modules or parameters trained themselves;
    one that this model lacks (no type embedding) is passed over. The start values depend on seed and names alone.
    Do this before sharding. InputError for a rank below 1 and a target that fits no linear layer.
    """
    from peft import LoraConfig, inject_adapter_in_model

    if rank < 1 or alpha <= 0:
        raise InputError(f"a LoRA needs a rank and an alpha above 0, not {rank} and {alpha}")
    linear = [n for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    for target in targets:
        if not any(_ends(name, target) for name in linear):
            raise InputError(f"{target} is the name of no linear layer of the model; there are {', '.join(TARGETS)}")
    if not targets:
        raise InputError("a LoRA needs at least one target")
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(targets), lora_dropout=0.0, bias="none")
    inject_adapter_in_model(config, model)
    for name, parameter in model.named_parameters():
        trained = any(name == w or name.startswith(f"{w}.") for w in whole)
        parameter.requires_grad_(trained or is_adapter(name))
    if not any(p.is_meta for p in model.parameters()):
        reset_lora(model, seed)
    return model


@torch.no_grad()
def reset_lora(model: nn.Module, seed: int = 0) -> None:
    """Start values of all adapters: A uniform within 1/sqrt(in), as peft draws it, B zeros. Sharded or not."""
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            parameter.zero_()
        elif ".lora_A." in name:
            bound = parameter.shape[1] ** -0.5
            values = torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator(seed, plain_name(name)))
            values = values.to(parameter.device, parameter.dtype)
            if isinstance(parameter, DTensor):
                values = distribute_tensor(values, parameter.device_mesh, parameter.placements)
            parameter.copy_(values)


def count(lora: Lora) -> int:
    """How many numbers it holds."""
    pairs = sum(p.down.numel() + p.up.numel() for p in lora.pairs.values())
    return pairs + sum(t.numel() for part in (lora.whole, lora.added) for t in part.values())


def is_adapter(name: str) -> bool:
    """Whether a parameter of that name belongs to an adapter."""
    return ".lora_A." in name or ".lora_B." in name


def plain_name(name: str) -> str:
    """The name that a parameter has, or that its adapter is filed under, without peft's additions."""
    return name.replace(".base_layer.", ".").replace(".default.", ".")


def lora_from(tensors: Mapping[str, torch.Tensor], alpha: float) -> Lora:
    """Sort named tensors of a model with adapters - those that were trained - into a `Lora`."""
    named = {plain_name(k): v.detach() for k, v in tensors.items()}
    modules = [k.removesuffix(".lora_A.weight") for k in named if k.endswith(".lora_A.weight")]
    pairs = {m: Pair(named[f"{m}.lora_A.weight"], named[f"{m}.lora_B.weight"], alpha) for m in modules}
    return Lora(pairs, {k: v for k, v in named.items() if not is_adapter(k)})


def lora_state(model: nn.Module) -> Lora:
    """What was trained of a model with adapters (see `add_lora`), whole tensors; shares memory where it can."""
    adapted: list[Any] = [m for m in model.modules() if hasattr(m, "lora_alpha")]
    scales = {m.lora_alpha["default"] for m in adapted}
    if len(scales) != 1:
        raise InputError("the model has no adapters")
    trained = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
    full = {n: p.full_tensor() if isinstance(p, DTensor) else p for n, p in trained.items()}
    return lora_from(full, float(scales.pop()))


def merged(
    state: Mapping[str, torch.Tensor], lora: Lora, scale: float = 1.0, *, origin: str = "the LoRA"
) -> dict[str, torch.Tensor]:
    """A model's state dict (our names) with a LoRA in it: W + scale * alpha / rank * B A.

    Computed in float32 and kept in each weight's dtype; tensors that do not change are passed on. Whole parameters
    move by `scale` of the way. InputError names the first key that does not fit.
    """
    out = dict(state)
    for name, pair in lora.pairs.items():
        key = f"{name}.weight"
        _check(out, key, (pair.up.shape[0], pair.down.shape[1]), origin)
        out[key] = _plus(out[key], pair.change(), scale)
    for key, tensor in lora.added.items():
        _check(out, key, tuple(tensor.shape), origin)
        out[key] = _plus(out[key], tensor, scale)
    for key, tensor in lora.whole.items():
        _check(out, key, tuple(tensor.shape), origin)
        old = out[key]
        moved = tensor if scale == 1.0 else torch.lerp(old.float(), tensor.to(old.device).float(), scale)
        out[key] = moved.to(old.device, old.dtype)
    return out


@torch.no_grad()
def merge_lora(model: Model, lora: Lora, scale: float = 1.0, *, origin: str = "the LoRA") -> Model:
    """`merged` on a model without adapters, in place."""
    state = model.state_dict()
    for name, tensor in merged(state, lora, scale, origin=origin).items():
        if tensor is not state[name]:
            state[name].copy_(tensor)
    return model


def _check(state: Mapping[str, torch.Tensor], key: str, shape: tuple[int, ...], origin: str) -> None:
    if key not in state:
        raise InputError(f"{origin} changes {official_key(key)}, which the model lacks")
    if tuple(state[key].shape) != shape:
        raise InputError(f"{origin}: {official_key(key)} would be {shape} instead of {tuple(state[key].shape)}")


def _plus(old: torch.Tensor, change: torch.Tensor, scale: float) -> torch.Tensor:
    return (old.float() + scale * change.to(old.device).float()).to(old.dtype)


def _ends(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")
