"""Runs real modules on torch's meta device and counts the bytes they would hold and the FLOPs they would do.

The modules are the ones that train, so a count cannot drift from the code. Only attention is replaced: the meta
device has no fused kernel and would count the whole score matrix, which no fused kernel keeps.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class Reading:
    """peak: bytes alive at the worst moment; kept: bytes that what was returned holds on to. Both beyond `before`."""

    peak: int
    kept: int


def memory(run: Callable[[], Any], before: Iterable[torch.Tensor]) -> Reading:
    """Call `run` on meta tensors and read the bytes; `before`: tensors that are there already, not counted."""
    with fused_attention(), _LiveBytes(before) as live:
        kept = run()
        alive = live.alive
        del kept
    return Reading(live.peak, alive)


def flops(run: Callable[[], Any]) -> int:
    """FLOPs of the matrix products and convolutions of `run`; a multiply-add counts two, attention is whole."""
    counter = FlopCounterMode(display=False)
    with fused_attention() as attention, counter:
        run()
    return counter.get_total_flops() + attention[0]


class _LiveBytes(TorchDispatchMode):
    """Follows every storage that is made while it is on, until it dies."""

    def __init__(self, before: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self.alive = self.peak = 0
        self._known: dict[int, weakref.finalize] = {}
        for tensor in before:
            self._follow(tensor, 0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in _tensors((args, kwargs)):
            self._follow(tensor, 0)
        out = func(*args, **(kwargs or {}))
        for tensor in _tensors(out):
            self._follow(tensor, tensor.untyped_storage().nbytes())
        self.peak = max(self.peak, self.alive)
        return out

    def _follow(self, tensor: torch.Tensor, size: int) -> None:
        storage = tensor.untyped_storage()
        name = storage._cdata
        if name not in self._known:
            self.alive += size
            self._known[name] = weakref.finalize(storage, self._died, name, size)

    def _died(self, name: int, size: int) -> None:
        self._known.pop(name, None)
        self.alive -= size


def _tensors(tree: Any) -> Iterator[torch.Tensor]:
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor))


class _Fused(torch.autograd.Function):
    """What a fused attention keeps for its backward pass: query, key, value, output and a float32 per row and head.

    query: (B, heads, L, head dim); key, value: (B, heads, S, head dim). Only shapes are right.
    """

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(query)
        rows = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, out, rows)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, ...]:
        query, key, value, _, _ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


@contextmanager
def fused_attention() -> Iterator[list[int]]:
    """While it is on, attention costs what a fused kernel costs; yields a one-element list of its forward FLOPs."""
    real = nn.functional.scaled_dot_product_attention
    counted = [0]

    def attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        batch, heads, rows, width = query.shape
        counted[0] += 4 * batch * heads * rows * key.shape[-2] * width
        return _Fused.apply(query, key, value)

    nn.functional.scaled_dot_product_attention = attention  # type: ignore[assignment]
    try:
        yield counted
    finally:
        nn.functional.scaled_dot_product_attention = real
