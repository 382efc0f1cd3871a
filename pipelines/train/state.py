"""The training state as named tensors and scalars: what a checkpoint holds and how it comes back."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from pipelines.train import checkpoint
from pipelines.train.loop import Parts


def training_tensors(parts: Parts) -> dict[str, torch.Tensor]:
    """All tensors of the training state by name, sharded; saving reads them and loading fills them in place."""
    tensors = {f"ema.{name}": tensor for name, tensor in parts.ema.tensors.items()}
    for name, parameter in parts.model.named_parameters():
        tensors[f"model.{name}"] = parameter.detach()
        if parameter.requires_grad:
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
        state["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        state["exp_avg_sq"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
    return state


def restore(parts: Parts, step: int) -> dict[str, Any]:
    """Fill model, EMA, optimizer and counters from a checkpoint; the checkpoint's state."""
    state = checkpoint.load(parts.run, step, training_tensors(parts))
    names = {f.name for f in dataclasses.fields(parts.progress)}
    parts.progress = type(parts.progress)(**{k: v for k, v in state.items() if k in names})
    for parameter in parts.model.parameters():
        if parameter.requires_grad:
            parts.optimizer.state[parameter]["step"].fill_(parts.progress.updates)
    return state


def start_from_ema(parts: Parts, run: str, step: int) -> None:
    """Model and EMA become another run's EMA; optimizer and counters stay at zero."""
    uri = checkpoint.folder_of(run, step)
    checkpoint.load_tensors(uri, {f"ema.{n}": p.detach() for n, p in parts.model.named_parameters()})
    parts.ema.restart()


def _step_device(optimizer: torch.optim.Optimizer, parameter: torch.nn.Parameter) -> torch.device:
    fused = any(group.get("fused") for group in optimizer.param_groups)
    return parameter.device if fused else torch.device("cpu")
