"""Safetensors files: one, or the shards of a model; read whole or refused, written whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from sama.errors import InputError


def read_safetensors(path: str | os.PathLike, device: str = "cpu") -> dict[str, torch.Tensor]:
    """All tensors of a safetensors file, or of the shards of one model: a folder, or its `*.index.json`."""
    place = Path(path)
    index = _index_of(place)
    wanted: dict[str, str] = _weight_map(index) if index else {}
    if index:
        files = [index.parent / name for name in sorted(set(wanted.values()))]
    else:
        files = sorted(place.glob("*.safetensors")) if place.is_dir() else [place]
    if not files:
        raise InputError(f"{path} holds no safetensors file")
    state: dict[str, torch.Tensor] = {}
    for file in files:
        if not file.is_file():
            first = next((k for k, name in wanted.items() if name == file.name), None)
            raise InputError(f"{file} does not exist" + (f"; {first} is in it" if first else ""))
        try:
            with safe_open(file, framework="pt", device=device) as opened:
                for key in opened.keys():  # noqa: SIM118 - not a dict
                    if key in state:
                        raise InputError(f"{place} has {key} in two files, {file.name} and an earlier one")
                    state[key] = opened.get_tensor(key)
        except (SafetensorError, OSError, ValueError) as error:
            raise InputError(f"{file} is not a complete safetensors file: {error}") from None
    for key, name in wanted.items():
        if key not in state:
            raise InputError(f"{index} says that {key} is in {name}, and it is not")
    return state


def _index_of(place: Path) -> Path | None:
    """The index of a sharded model: the file itself, or the one in the folder."""
    if place.name.endswith(".json"):
        return place
    found = sorted(place.glob("*.safetensors.index.json")) if place.is_dir() else []
    if len(found) > 1:
        raise InputError(f"{place} holds several models, {found[0].name} and {found[1].name}; name one of them")
    return found[0] if found else None


def _weight_map(index: Path) -> dict[str, str]:
    try:
        found = json.loads(index.read_text())["weight_map"]
        if not found or any(Path(name).name != name for name in found.values()):
            raise ValueError
        return dict(found)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{index} is not the index of a sharded safetensors model") from None


def write_safetensors(state: Mapping[str, torch.Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write one safetensors file, complete or not at all; metadata: strings for its header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        tensors = {k: v.detach().to("cpu").contiguous() for k, v in state.items()}
        save_file(tensors, temporary, metadata={"format": "pt", **(metadata or {})})
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)
