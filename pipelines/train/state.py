"""The training state as named tensors and scalars: what a checkpoint holds and how it comes back."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from pipelines.train import checkpoint, frozen, optimizers
from pipelines.train.loop import Parts
from sama.lora import is_adapter, plain_name, reset_lora


def training_tensors(parts: Parts) -> dict[str, torch.Tensor]:
    """All tensors of the training state by name, sharded; saving reads them and loading fills them in place."""
    tensors = {f"ema.{name}": tensor for name, tensor in parts.ema.tensors.items()}
    for name, parameter in parts.model.named_parameters():
        if parameter.requires_grad:  # what is frozen is kept once, see frozen.py
            tensors[f"model.{name}"] = parameter.detach()
            moments = optimizer_state(parts.optimizer, parameter)
            tensors[f"adam.mean.{name}"] = moments["exp_avg"]
            tensors[f"adam.square.{name}"] = moments["exp_avg_sq"]
    return tensors


def optimizer_state(optimizer: torch.optim.Optimizer, parameter: torch.nn.Parameter) -> dict[str, torch.Tensor]:
    """AdamW's state of one parameter, made as its first step would make it if there is none yet."""
    if not isinstance(parameter, DTensor):
        raise RuntimeError("a parameter is not sharded at the moment: the optimizer would not know it")
    state = optimizer.state[parameter]
    if not state:
        state["step"] = torch.zeros((), dtype=torch.float32, device=_step_device(optimizer, parameter))
        state.update(optimizers.first_moments(optimizer, parameter))
    return optimizers.float_moments(optimizer, parameter)


def restore(parts: Parts, step: int) -> dict[str, Any]:
    """Fill model, EMA, optimizer and counters from a checkpoint; the checkpoint's state."""
    tensors = training_tensors(parts)
    state = checkpoint.load(parts.run, step, tensors)
    frozen.fill(parts.run, parts.model)
    names = {f.name for f in dataclasses.fields(parts.progress)}
    parts.progress = type(parts.progress)(**{k: v for k, v in state.items() if k in names})
    for name, parameter in parts.model.named_parameters():
        if parameter.requires_grad:
            parts.optimizer.state[parameter]["step"].fill_(parts.progress.updates)
            moments = {"exp_avg": tensors[f"adam.mean.{name}"], "exp_avg_sq": tensors[f"adam.square.{name}"]}
            optimizers.put_moments(parts.optimizer, parameter, moments)
    return state


def start_from_ema(parts: Parts, run: str, step: int) -> None:
    """Model and EMA become another run's EMA; optimizer and counters stay at zero."""
    uri = checkpoint.folder_of(run, step)
    named = {n: p.detach() for n, p in parts.model.named_parameters()}
    checkpoint.load_tensors(uri, {f"ema.{plain_name(n)}": p for n, p in named.items() if not is_adapter(n)})
    reset_lora(parts.model)
    parts.ema.restart()


def _step_device(optimizer: torch.optim.Optimizer, parameter: torch.nn.Parameter) -> torch.device:
    fused = any(group.get("fused") for group in optimizer.param_groups)
    return parameter.device if fused else torch.device("cpu")
