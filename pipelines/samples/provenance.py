"""provenance.json: how a folder came to be."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipelines.samples import storage

NAME = "provenance.json"
PACKAGES = (
    "sama-pipelines",
    "ray",
    "torch",
    "pyarrow",
    "av",
    "pillow",
    "numpy",
    "diffusers",
    "transformers",
)


def now() -> str:
    """The time as provenance writes it: UTC, ISO 8601, seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def record(
    folder_uri: str,
    command: str,
    settings: Mapping[str, Any],
    counts: Mapping[str, Any],
    inputs: Mapping[str, Any],
    started: str,
    ended: str | None = None,
) -> dict[str, Any]:
    """Write `provenance.json` into a folder and return it.

    inputs: name -> digest (or facts) of what was read. started, ended: from `now()`; `ended` is None while
    the work goes on, so a killed job is seen for what it is.
    """
    facts = {
        "schema": "sama.provenance/1",
        "command": command,
        "settings": dict(settings),
        "commit": commit(),
        "versions": versions(),
        "inputs": dict(inputs),
        "counts": dict(counts),
        "start": started,
        "end": ended,
    }
    storage.write_bytes(storage.join(folder_uri, NAME), json.dumps(facts, indent=1, ensure_ascii=False) + "\n")
    return facts


def read(folder_uri: str) -> dict[str, Any] | None:
    """The provenance of a folder, None when it has none that can be read."""
    try:
        found = json.loads(storage.read_bytes(storage.join(folder_uri, NAME)))
    except (FileNotFoundError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """The git commit of this project's checkout, with `-dirty` when files were changed; None without git."""
    here = Path(__file__).resolve().parents[2]
    if not (here / ".git").exists():
        return None
    try:
        run = subprocess.run(
            ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return run.stdout.strip() or None
