"""Batch plan -> micro-batches of uint8 pixels on each data rank: in this process, or through Ray Data."""

from __future__ import annotations

import importlib
from typing import Any

_WHERE = {
    "MicroBatch": "micro_batch", "StorageError": "rows", "build_row": "rows", "read_item": "rows", "read": "reader",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """The public names, imported when first asked for."""
    if name not in _WHERE:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
