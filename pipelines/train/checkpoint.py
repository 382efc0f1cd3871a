"""Checkpoints: torch.distributed.checkpoint, each rank its own shards, onto any file system that Arrow knows.

`RUN/checkpoints/step-N/` holds the tensors when steps 0..N-1 are done. `state.json` in it is written last and alone
makes it a checkpoint: a folder without it is what a crash left, never read, and overwritten. Only tensors go through
DCP, whose metadata is a pickle (see dcp_files.py for how it is read); all else is in state.json.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from pipelines.samples import storage
from pipelines.train.dcp_files import Reader, Writer
from pipelines.train.folders import (
    MARKER,
    SCHEMA,
    SupersededError,
    best_steps,
    check_lease,
    complete_steps,
    folder_of,
    newest_step,
    prune,
    read_state,
    sizes,
    take_lease,
)
from sama.errors import InputError

__all__ = [
    "SupersededError", "best_steps", "check_lease", "complete_steps", "folder_of", "load", "load_ema", "load_tensors",
    "load_weights", "newest_step", "prune", "read_full", "read_state", "save", "take_lease",
]  # fmt: skip


def save(
    run: str,
    step: int,
    tensors: Mapping[str, torch.Tensor],
    state: Mapping[str, Any],
    holder: str | None = None,
    staged: Mapping[str, torch.Tensor] | None = None,
    group: dist.ProcessGroup | None = None,
) -> str:
    """Write a checkpoint; every rank calls it with its shards and the same step, and it is whole when rank 0 returns.

    state: scalars only, JSON. holder: the lease under which this job runs (see `take_lease`). staged: this rank's
    part of each tensor on the CPU, where `tensors` themselves change in the meantime. group: where the ranks talk,
    needed when this is not the only thread that does.
    """
    target = folder_of(run, step)
    first = not dist.is_initialized() or dist.get_rank() == 0
    if first:
        check_lease(run, holder)
        storage.remove(storage.join(target, MARKER))
        storage.remove(target)
        storage.make_folder(target)
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.barrier(group)
    with _quiet():
        dcp.save(
            dict(tensors),
            storage_writer=Writer(target),
            planner=_Planner(staged),
            process_group=group,
            no_dist=not dist.is_initialized(),
        )
    if first:  # DCP has gathered every rank's results: all files are there and synced
        check_lease(run, holder)
        marker = {"schema": SCHEMA, **state, "files": sizes(target)}
        storage.write_bytes(storage.join(target, MARKER), json.dumps(marker, indent=1))
    return target


class _Planner(DefaultSavePlanner):
    """Plans with the distributed tensors, and takes the numbers from their staged copies."""

    def __init__(self, staged: Mapping[str, torch.Tensor] | None) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self._staged = staged

    def lookup_object(self, index: Any) -> Any:
        return super().lookup_object(index) if self._staged is None else self._staged[index.fqn]


def load(run: str, step: int, tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Fill `tensors` in place from a checkpoint, resharding as needed; the state. Every rank calls it."""
    load_tensors(folder_of(run, step), tensors)
    return read_state(run, step)


def load_tensors(uri: str, tensors: Mapping[str, torch.Tensor]) -> None:
    """Fill `tensors` in place from a checkpoint folder. KeyError names a tensor that it lacks."""
    _read_into(uri, tensors, alone=not dist.is_initialized())


def _read_into(uri: str, tensors: Mapping[str, torch.Tensor], alone: bool) -> None:
    with _quiet():
        dcp.load(
            dict(tensors),
            storage_reader=Reader(uri),
            planner=DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False),
            no_dist=alone,
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """DCP warns whenever it works without a process group, which is what we want."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def read_full(uri: str, prefix: str) -> dict[str, torch.Tensor]:
    """All tensors whose name starts with `prefix`, whole, on the CPU, without the prefix; needs no process group."""
    found = Reader(uri).read_metadata().state_dict_metadata
    named = {k: v for k, v in found.items() if k.startswith(prefix) and isinstance(v, TensorStorageMetadata)}
    tensors = {k: torch.empty(v.size, dtype=v.properties.dtype) for k, v in named.items()}
    _read_into(uri, tensors, alone=True)
    return {k.removeprefix(prefix): t for k, t in tensors.items()}


def load_weights(run: str, step: int | None = None, which: str = "ema") -> tuple[dict[str, torch.Tensor], str, dict]:
    """Weights of a run: (state dict of whole float32 tensors, preset name, the checkpoint's state).

    which: `ema` (the averaged weights, what one normally wants) or `raw`. step: None for the newest checkpoint.
    """
    run = storage.absolute(run)
    if not storage.is_folder(run):
        raise InputError(f"there is no run folder {run}")
    steps = complete_steps(run)
    if not steps:
        raise InputError(f"{run} has no checkpoint yet")
    if step is not None and step not in steps:
        raise InputError(f"{run} has no checkpoint of step {step}; there are {', '.join(map(str, steps))}")
    step = steps[-1] if step is None else step
    state = read_state(run, step)
    prefix = {"ema": "ema.", "raw": "model."}[which]
    return read_full(folder_of(run, step), prefix), state["preset"], state


def load_ema(run: str, step: int | None = None) -> tuple[dict[str, torch.Tensor], str, dict]:
    """The averaged weights of a run; see `load_weights`."""
    return load_weights(run, step, "ema")
