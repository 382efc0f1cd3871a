"""What Ray knows of a loader that stands still: free resources, Ray Data's statistics and the end of its logs."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path
from typing import Any

import ray
import ray.data

from pipelines.loading.clock import PREFIX
from pipelines.loading.watching import State

ANSWER_S = 10.0  # whoever is stuck may not answer at all
LOG_FILES, LOG_BYTES = 3, 8000


def ask(handle: Any) -> State | None:
    """The clock's state. Without a handle the only clock of the cluster is asked; None when none answers."""
    try:
        if handle is None:
            names = [n for n in ray.util.list_named_actors() if n.startswith(PREFIX)]
            if len(names) != 1:
                return None
            handle = ray.get_actor(names[0])
        return ray.get(handle.state.remote(), timeout=ANSWER_S)
    except Exception:  # the watchdog must speak whatever is broken
        return None


def dump(shard: ray.data.DataIterator) -> str:
    """As much as can be had in a few seconds."""
    parts = [f"cluster: {_numbers(ray.cluster_resources())}", f"free: {_numbers(ray.available_resources())}"]
    parts.append(f"Ray Data:\n{_statistics(shard)}")
    for path in _logs():
        with contextlib.suppress(OSError):
            parts.append(f"end of {path.name}:\n{path.read_bytes()[-LOG_BYTES:].decode(errors='replace')}")
    return "\n\n".join(parts) + "\n"


def _numbers(resources: dict[str, float]) -> str:
    return ", ".join(f"{k} {v:g}" for k, v in sorted(resources.items()) if not k.startswith("node:"))


def _statistics(shard: ray.data.DataIterator) -> str:
    found: list[str] = []

    def look() -> None:
        try:
            found.append(shard.stats())
        except Exception as error:
            found.append(f"no statistics: {error}")

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    thread.join(ANSWER_S)
    return found[0] if found else f"the coordinator of the split did not answer within {ANSWER_S:.0f} s"


def _logs() -> list[Path]:
    """The newest logs that Ray Data wrote on this node."""
    try:
        from ray.data._internal.logging import get_log_directory

        files = [p for p in Path(get_log_directory() or "").glob("*.log") if p.is_file()]
        return sorted(files, key=lambda p: p.stat().st_mtime)[-LOG_FILES:]
    except Exception:  # an internal of Ray that may move
        return []
