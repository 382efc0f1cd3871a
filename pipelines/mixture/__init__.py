"""Mixture file -> batch plan: which sample, window, task and seed every slot of every step gets."""

from __future__ import annotations

import importlib
from typing import Any

_WHERE = {
    "BatchPlan": "plan", "GlobalBatch": "batch", "Slot": "batch", "HeldOut": "batch", "Mixture": "mixture",
    "load_mixture": "mixture", "heldout": "plan",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """The public names, imported when first asked for."""
    if name not in _WHERE:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
