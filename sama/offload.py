"""A transformer that is larger than its device: each block is there only while it computes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch

Lent = list[tuple[dict[str, Any], str, torch.Tensor]]  # table of a module, name in it, what was there


@contextlib.contextmanager
def blocks_on(model: Any, device: torch.device) -> Iterator[None]:
    """Run `model`, which has `blocks` and lives on the CPU, on `device`: the blocks one at a time, the rest throughout.

    The weights are read only: nothing is copied back. Every forward moves all blocks once.
    """
    inside = {m for block in model.blocks for m in block.modules()}
    lent: dict[Any, Lent] = {}

    def lend(owner: Any, modules: Iterable[torch.nn.Module]) -> None:
        _lend(modules, device, lent.setdefault(owner, []))

    def fetch(block: Any, _: Any) -> None:
        lend(block, block.modules())

    def give_back(block: Any, *_: Any) -> None:
        _return(lent.pop(block))

    hooks = [b.register_forward_pre_hook(fetch) for b in model.blocks]
    hooks += [b.register_forward_hook(give_back, always_call=True) for b in model.blocks]
    try:
        lend(model, (m for m in model.modules() if m not in inside))
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for tensors in lent.values():
            _return(tensors)


def _lend(modules: Iterable[torch.nn.Module], device: torch.device, lent: Lent) -> None:
    """Put copies on a device in the place of the modules' own tensors; `lent` notes where those belong."""
    for module in modules:
        tables: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for table in tables:
            for name, tensor in table.items():
                if tensor is not None:
                    copy = tensor.detach().to(device)
                    lent.append((table, name, tensor))
                    table[name] = copy if table is module._buffers else torch.nn.Parameter(copy, requires_grad=False)


def _return(lent: Lent) -> None:
    for table, name, tensor in lent:
        table[name] = tensor
