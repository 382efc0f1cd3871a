"""What identifies an encoder: the digest that keys everything computed with it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from sama.errors import InputError
from sama.presets import TINY_SEED, Preset
from sama.tiny import shipped

if TYPE_CHECKING:
    import torch

# kind of encoding -> the components whose files it depends on
PARTS = {"text": ("tokenizer", "text_encoder"), "vae": ("vae",), "semantic": ("vision",)}
VERSIONS = {"text": 1, "vae": 1, "semantic": 1}  # raise one when the same weights give other numbers
_WHOLE, _END = 1 << 24, 1 << 20  # bytes read of a file's head and tail


def digest(part: str, preset: Preset, dtype: torch.dtype, places: Mapping[str, tuple[str | None, str | None]]) -> str:
    """Hex digest of one kind of encoding (see PARTS). places: repository or folder of each component, and its folder.

    InputError when a hub repository cannot be asked for its revision.
    """
    settings = {
        "text": {"max_length": preset.text_max_length, "random": preset.text_encoder},
        "vae": {},
        "semantic": {"grid": preset.semantic_grid, "random": preset.vision},
    }[part]
    files = {name: fingerprint(name, *place) for name, place in places.items()}
    return combine(
        {
            "version": VERSIONS[part], "dtype": str(dtype), "files": files, **settings,
            **({"seed": TINY_SEED} if None in files.values() else {}),
        }
    )  # fmt: skip


def combine(facts: Mapping[str, object]) -> str:
    """sha256 (hex) of plain values."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def fingerprint(name: str, repo: str | None, subfolder: str | None) -> str | None:
    """The digest of local or shipped files, else the hub revision; None for weights that come from the seed."""
    if repo is None:
        return files_digest(shipped(name)) if name in ("vae", "tokenizer") else None
    folder = Path(repo) / (subfolder or "")
    if folder.is_dir():
        return files_digest(folder)
    return f"{repo}@{revision(repo, subfolder)}:{subfolder or ''}"


def files_digest(folder: Path) -> str:
    """Digest of a folder's configuration and weights: whole small files, both ends of large ones."""
    found = hashlib.sha256()
    for file in sorted(p for p in folder.iterdir() if p.is_file() and p.suffix in (".json", ".safetensors", ".model")):
        size = file.stat().st_size
        found.update(f"{file.name}:{size}:".encode())
        with file.open("rb") as opened:
            found.update(opened.read(_WHOLE))
            opened.seek(max(size - _END, 0))
            found.update(opened.read())
    return found.hexdigest()


def revision(repo: str, subfolder: str | None) -> str:
    """Commit of a hub repository: the cached one, else today's, whose small configuration is fetched to fix it."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError

    names = [f"{subfolder}/{n}" if subfolder else n for n in ("config.json", "tokenizer_config.json")]
    for name in names:
        found = try_to_load_from_cache(repo, name)
        if isinstance(found, str):
            return _commit(found, name)
    for name in names:
        try:
            return _commit(hf_hub_download(repo, name), name)
        except EntryNotFoundError:
            continue
        except Exception as error:  # the hub's client raises its own, its HTTP library's and the system's errors
            reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise InputError(f"{repo} cannot be loaded: {reason}") from None
    raise InputError(f"{repo} cannot be loaded: it has none of {', '.join(names)}")


def _commit(file: str, name: str) -> str:
    """The commit in snapshots/<commit>/<name>."""
    return Path(file).parents[name.count("/")].name
