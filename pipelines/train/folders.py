"""The checkpoints of a run folder from outside: which are whole, which is newest, who may write. No torch here."""

from __future__ import annotations

import json
from typing import Any

from pipelines.samples import storage

FOLDER, MARKER = "checkpoints", "state.json"
LEASE = "lease.json"
SCHEMA = "sama.checkpoint/1"


class SupersededError(Exception):
    """Another job has taken over this run folder: whoever is told this must stop writing."""


def folder_of(run: str, step: int) -> str:
    return storage.join(run, FOLDER, f"step-{step}")


def complete_steps(run: str) -> list[int]:
    """Steps of all whole checkpoints of a run, ascending."""
    names = storage.list_folders(storage.join(run, FOLDER))
    steps = sorted(int(n[5:]) for n in names if n.startswith("step-") and n[5:].isdigit())
    return [s for s in steps if storage.exists(storage.join(folder_of(run, s), MARKER))]


def newest_step(run: str) -> int | None:
    """The step at which a run would go on; None before the first checkpoint."""
    return max(complete_steps(run), default=None)


def read_state(run: str, step: int) -> dict[str, Any]:
    """The scalars of a checkpoint."""
    return json.loads(storage.read_bytes(storage.join(folder_of(run, step), MARKER)))


def take_lease(run: str, holder: str) -> None:
    """Say who may write checkpoints into this run folder from now on."""
    storage.write_bytes(storage.join(run, LEASE), json.dumps({"holder": holder}))


def check_lease(run: str, holder: str | None) -> None:
    """SupersededError when somebody else took the run folder over in the meantime."""
    if holder is None:
        return
    found = json.loads(storage.read_bytes(storage.join(run, LEASE)))["holder"]
    if found != holder:
        raise SupersededError(f"another training job has taken over {run}")


def prune(run: str, keep: int) -> list[int]:
    """Delete all but the newest `keep` checkpoints, and what crashes left; the steps deleted."""
    whole = complete_steps(run)
    kept = whole[-keep:]
    for name in storage.list_folders(storage.join(run, FOLDER)):
        if name not in {f"step-{s}" for s in kept}:
            gone = storage.join(run, FOLDER, name)
            storage.remove(storage.join(gone, MARKER))  # first, so that half a folder is never taken for a whole one
            storage.remove(gone)
    return whole[:-keep]
