"""Activation checkpointing of the blocks, through the function that the model calls them with."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

ATTENTION = frozenset(
    getattr(torch.ops.aten, f"_scaled_dot_product_{kind}").default
    for kind in ("cudnn_attention", "efficient_attention", "flash_attention", "flash_attention_for_cpu")
)


def recompute(model: Any, which: str) -> None:
    """Say what a block keeps for its backward pass.

    none: everything. block: its input; the rest is computed again. selective: also the results of self-attention,
    which for a long sequence takes most of the time and leaves little to keep.
    """
    if which != "none":
        model.enable_gradient_checkpointing(functools.partial(_checkpointed, which == "selective"))


def _checkpointed(selective: bool, block: nn.Module, *args: torch.Tensor) -> Any:
    contexts = functools.partial(_contexts, block, selective)
    # nothing in a block draws random numbers
    return checkpoint(block, *args, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)


def _contexts(block: nn.Module, selective: bool) -> tuple[AbstractContextManager, AbstractContextManager]:
    """What surrounds a block's forward pass, and its repetition."""
    kept: deque = deque()
    first: AbstractContextManager = Keep(kept) if selective else nullcontext()
    return first, _repetition(block, Give(kept) if selective else nullcontext())


@contextmanager
def _repetition(block: nn.Module, inner: AbstractContextManager) -> Iterator[None]:
    """Leave the weights gathered after the repeated forward pass: the backward pass follows at once."""
    sharded = [m for m in block.modules() if isinstance(m, FSDPModule)]
    for module in sharded:
        module.set_reshard_after_forward(False, recurse=False)
    try:
        with inner:
            yield
    finally:
        for module in sharded:
            module.set_reshard_after_forward(True, recurse=False)


class _Attention(TorchDispatchMode):
    """Sees every operation. torch's own selective checkpointing counts them all, FSDP's among them, which differ
    between a forward pass and its repetition."""

    def __init__(self, kept: deque) -> None:
        super().__init__()
        self.kept = kept

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        return True  # compiled code stays compiled

    @staticmethod
    def concerns(operation: Any, args: tuple) -> bool:
        """Self-attention: as many queries as keys."""
        return operation in ATTENTION and args[0].shape[-2] == args[1].shape[-2]


class Keep(_Attention):
    """Notes the results of self-attention."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if self.concerns(func, args):
            self.kept.append(_aliases(found))
        return found


class Give(_Attention):
    """Gives them back in their order instead of computing them again."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if self.concerns(func, args):
            return self.kept.popleft()
        return func(*args, **(kwargs or {}))


def _aliases(found: Any) -> Any:
    """The results as tensors of their own: what autograd hangs onto a result would hold the whole graph."""
    return torch.utils._pytree.tree_map_only(torch.Tensor, torch.Tensor.detach, found)
