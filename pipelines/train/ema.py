"""Exponential moving average of the float32 master weights, sharded like them, updated every step."""

from __future__ import annotations

import torch
from torch import nn

from pipelines.train.parallel import local


class Ema:
    """One float32 copy per trained parameter; each rank holds and updates its own shard.

    decay: the paper uses 0.9998 at every iteration (method: section 6).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        self.tensors: dict[str, torch.Tensor] = {n: p.detach().clone() for n, p in named}
        # an update is arithmetic on each rank's own numbers: plain tensors spare the dispatch of distributed ones
        self._average = [local(t) for t in self.tensors.values()]
        self._weights = [local(p) for _, p in named]

    @torch.no_grad()
    def update(self) -> None:
        """average += (1 - decay) * (weights - average)"""
        torch._foreach_lerp_(self._average, self._weights, 1.0 - self.decay)

    @torch.no_grad()
    def restart(self) -> None:
        """Set the average to the weights as they are."""
        torch._foreach_copy_(self._average, self._weights)
