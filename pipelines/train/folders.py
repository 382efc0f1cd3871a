"""The checkpoints of a run folder from outside: which are whole, which is newest, who may write. No torch here."""

from __future__ import annotations

import json
from typing import Any

import pyarrow.fs as pafs

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
    return [s for s in steps if is_whole(folder_of(run, s))]


def is_whole(folder: str) -> bool:
    """Whether a checkpoint folder has its marker, and every file that the marker lists in its full size."""
    marker = storage.join(folder, MARKER)
    if not storage.exists(marker):
        return False
    try:
        listed = json.loads(storage.read_bytes(marker)).get("files", {})
    except (ValueError, AttributeError, FileNotFoundError):  # torn by a crash, or pruned just now
        return False
    found = sizes(folder)
    return all(found.get(name) == size for name, size in listed.items())


def sizes(folder: str) -> dict[str, int]:
    """Bytes of each file of a checkpoint folder, the marker left out."""
    fs, path = storage.locate(folder)
    infos = fs.get_file_info(pafs.FileSelector(path, allow_not_found=True))
    return {i.base_name: int(i.size) for i in infos if i.type == pafs.FileType.File and i.base_name != MARKER}


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


def prune(run: str, keep: int, best: int = 0) -> list[int]:
    """Delete what crashes left and all checkpoints but the newest `keep` and the `best` ones with the lowest
    held-out loss; the steps deleted."""
    whole = complete_steps(run)
    kept = {*whole[-keep:], *best_steps(run, whole)[:best]}
    for name in storage.list_folders(storage.join(run, FOLDER)):
        if name not in {f"step-{s}" for s in kept}:
            gone = storage.join(run, FOLDER, name)
            storage.remove(storage.join(gone, MARKER))  # first, so that half a folder is never taken for a whole one
            storage.remove(gone)
    return [s for s in whole if s not in kept]


def best_steps(run: str, steps: list[int]) -> list[int]:
    """Those of some checkpoints that know their held-out loss, the lowest first; of equal ones the newest."""
    losses = {s: read_state(run, s).get("heldout_loss") for s in steps}
    return sorted((s for s in steps if losses[s] is not None), key=lambda s: (losses[s], -s))
