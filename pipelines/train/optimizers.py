"""The optimizer of a run, its learning rate, and its moments as a checkpoint keeps them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from pipelines.config import TrainSettings
from sama.errors import InputError

MOMENTS = ("exp_avg", "exp_avg_sq")


def build_optimizer(model: nn.Module, how: TrainSettings) -> torch.optim.Optimizer:
    """AdamW over the parameters that are trained, with float32 moments or, block by block, 8-bit ones (torchao)."""
    trained = [p for p in model.parameters() if p.requires_grad]
    options: dict[str, Any] = {"lr": how.lr, "betas": how.betas, "weight_decay": how.weight_decay}
    if how.optimizer == "adamw":
        return torch.optim.AdamW(trained, fused=True, **options)
    try:
        from torchao.optim import AdamW8bit
    except ImportError:
        raise InputError("train.optimizer = adamw8bit needs torchao: pip install 'sama-pipelines[eightbit]'") from None
    return AdamW8bit(trained, **options)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of all parameters."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def float_moments(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> dict[str, torch.Tensor]:
    """The moments of a parameter as sharded float32 tensors: the state's own, or of 8-bit ones a copy.

    Turning 8 bits into floats and back is not exact the first time. So the state is rounded with the copy: the run
    goes on from what its checkpoint says, and one that is resumed from there does the same steps.
    """
    state = optimizer.state[parameter]
    found = {}
    for name in MOMENTS:
        packed = _packed(state[name])
        if packed is None:
            found[name] = state[name]
            continue
        values = packed.dequantize()
        packed.copy_(values)
        found[name] = _like(values, parameter)
    return found


def put_moments(optimizer: torch.optim.Optimizer, parameter: nn.Parameter, moments: dict[str, torch.Tensor]) -> None:
    """Put what `float_moments` gave, filled from a checkpoint, back into an 8-bit state."""
    for name in MOMENTS:
        packed = _packed(optimizer.state[parameter][name])
        if packed is not None:
            values = moments[name]
            packed.copy_(values.to_local() if isinstance(values, DTensor) else values)


def first_moments(optimizer: Any, parameter: nn.Parameter) -> dict[str, torch.Tensor]:
    """Moments as the optimizer's first step would make them."""
    if hasattr(optimizer, "_new_buffer"):
        return {
            name: optimizer._new_buffer(parameter, signed) for name, signed in zip(MOMENTS, (True, False), strict=True)
        }
    return {name: torch.zeros_like(parameter, memory_format=torch.preserve_format) for name in MOMENTS}


def _packed(moment: Any) -> Any:
    """This rank's 8-bit tensor, None for a moment of floats."""
    inner = moment.to_local() if isinstance(moment, DTensor) else moment
    return inner if hasattr(inner, "dequantize") and hasattr(inner, "codes") else None


def _like(values: torch.Tensor, parameter: Any) -> torch.Tensor:
    if not isinstance(parameter, DTensor):
        return values
    return DTensor.from_local(
        values, parameter.device_mesh, parameter.placements, run_check=False, shape=parameter.shape,
        stride=parameter.stride(),
    )  # fmt: skip


def learning_rate(how: TrainSettings, step: int, steps: int) -> float:
    """The rate of step `step` of `steps`: a linear warm-up to `lr`, then constant, or down to zero at the end."""
    if step + 1 < how.warmup_steps:
        return how.lr * (step + 1) / how.warmup_steps
    if how.schedule == "constant":
        return how.lr
    done = (step + 1 - how.warmup_steps) / max(1, steps - how.warmup_steps)
    left = max(0.0, 1.0 - done)
    return how.lr * (left if how.schedule == "linear" else 0.5 * (1.0 - math.cos(math.pi * left)))
