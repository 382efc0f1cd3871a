"""The data sets that can be ingested, by name."""

from __future__ import annotations

import difflib
import importlib
from types import ModuleType

from sama.errors import InputError

ADAPTERS = {
    "ditto-1m": "ditto",
    "openve-3m": "openve",
    "reco-data": "reco",
    "nhr-edit": "nhr_edit",
    "koala-36m": "koala",
    "pairs": "pairs",
    "clips": "clips",
}


def adapter(name: str) -> ModuleType:
    """The module with NAME and scan(folder, options). InputError names the known ones."""
    if name not in ADAPTERS:
        close = difflib.get_close_matches(name, ADAPTERS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(ADAPTERS)}"
        raise InputError(f"{name} is not a data set that is known here; {hint}")
    return importlib.import_module(f"pipelines.ingest.{ADAPTERS[name]}")
