"""Exponential moving average of the float32 master weights, sharded like them, updated with every change of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from pipelines.train.parallel import local


class Ema:
    """One float32 copy per trained parameter; each rank holds and updates its own shard.

    decay: the paper uses 0.9998 at every iteration (method: section 6). device: where the copies lie, None for where
    the weights do; "cpu" saves four bytes per parameter on the device and sends the weights over once a step.
    """

    def __init__(self, model: nn.Module, decay: float, device: str | None = None) -> None:
        self.decay = decay
        named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        self.tensors: dict[str, torch.Tensor] = {n: _copy(p.detach(), device) for n, p in named}
        # an update is arithmetic on each rank's own numbers: plain tensors spare the dispatch of distributed ones
        self._average = [local(t) for t in self.tensors.values()]
        self._weights = [local(p) for _, p in named]
        self._elsewhere = any(a.device != w.device for a, w in zip(self._average, self._weights, strict=True))
        self._received: list[torch.Tensor] = []

    @torch.no_grad()
    def update(self) -> None:
        """average += (1 - decay) * (weights - average)"""
        torch._foreach_lerp_(self._average, self._here(), 1.0 - self.decay)

    @torch.no_grad()
    def restart(self) -> None:
        """Set the average to the weights as they are."""
        torch._foreach_copy_(self._average, self._weights)

    def _here(self) -> list[torch.Tensor]:
        """The weights where the average is."""
        if not self._elsewhere:
            return self._weights
        if not self._received:  # pinned, and kept: all copies are on their way at once
            pin = self._weights[0].is_cuda
            self._received = [torch.empty_like(a, pin_memory=pin) for a in self._average]
        for received, weights in zip(self._received, self._weights, strict=True):
            received.copy_(weights, non_blocking=True)
        if self._weights[0].is_cuda:
            torch.cuda.current_stream(self._weights[0].device).synchronize()
        return self._received


def _copy(weights: Any, device: str | None) -> torch.Tensor:
    return weights.clone() if device is None else weights.to(device, copy=True)
