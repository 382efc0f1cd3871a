"""The frozen weights of a LoRA run: kept once, in RUN/base, and not again in every checkpoint.

A run folder can so be read without the place that its weights came from, and its checkpoints stay small. The names are
the model's own, without peft's additions.
"""

from __future__ import annotations

import json
import warnings
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp

from pipelines.config import LoraSettings
from pipelines.samples import storage
from pipelines.train import checkpoint, folders
from pipelines.train.dcp_files import Writer
from sama.errors import InputError
from sama.lora import Lora, lora_from, merged, plain_name
from sama.transformer import SamaTransformer

FOLDER = "base"
PREFIX = "model."


def apply(model: SamaTransformer, how: LoraSettings | None) -> None:
    """Freeze the model and give it adapters, if the settings say so; before it is sharded."""
    if how is not None:
        from sama.lora import add_lora

        add_lora(model, how.rank, how.alpha, how.targets, how.whole)


def tensors_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The frozen parameters by their names in RUN/base."""
    return {f"{PREFIX}{plain_name(n)}": p.detach() for n, p in model.named_parameters() if not p.requires_grad}


def keep(run: str, model: torch.nn.Module, holder: str | None = None) -> None:
    """Write the frozen parameters; every rank calls it with its shards, before the first checkpoint. None: nothing."""
    tensors = tensors_of(model)
    if not tensors:
        return
    target = storage.join(run, FOLDER)
    first = not dist.is_initialized() or dist.get_rank() == 0
    if first:
        checkpoint.check_lease(run, holder)
        storage.remove(target)
        storage.make_folder(target)
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.barrier()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        dcp.save(
            tensors,
            storage_writer=Writer(target),
            planner=dcp.DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False),
            no_dist=not dist.is_initialized(),
        )
    if first:
        marker = {"schema": folders.SCHEMA, "files": folders.sizes(target)}
        storage.write_bytes(storage.join(target, folders.MARKER), json.dumps(marker, indent=1))


def fill(run: str, model: torch.nn.Module) -> None:
    """Read the frozen parameters back, in place; every rank calls it."""
    tensors = tensors_of(model)
    if tensors:
        checkpoint.load_tensors(_folder(run), tensors)


def whole(run: str, trained: dict[str, torch.Tensor], how: dict[str, Any]) -> tuple[dict[str, torch.Tensor], Lora]:
    """Merged weights of a LoRA run and the LoRA alone. trained: what its checkpoint holds; how: its `train.lora`."""
    lora = lora_from(trained, float(how["alpha"]))
    base = checkpoint.read_full(_folder(run), PREFIX)
    return merged({**base, **lora.whole}, lora, origin=run), lora


def _folder(run: str) -> str:
    folder = storage.join(storage.absolute(run), FOLDER)
    if not folders.is_whole(folder):
        raise InputError(f"{run} lacks its frozen weights: the folder {FOLDER} in it is not there or not whole")
    return folder
