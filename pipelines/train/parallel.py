"""Parallelism put onto the model from outside: FSDP2 per block, and its precision policy."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """This process among the data ranks. There is always a process group, if only of one."""

    rank: int
    size: int
    device: torch.device
    mesh: DeviceMesh

    @property
    def first(self) -> bool:
        return self.rank == 0

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sum over the ranks; float64 on the CPU in and out."""
        if self.size == 1:
            return values
        moved = values.to(self.device)
        dist.all_reduce(moved)
        return moved.cpu()

    def gather(self, value: object) -> list:
        """One small object from every rank, on every rank."""
        if self.size == 1:
            return [value]
        found: list = [None] * self.size
        dist.all_gather_object(found, value)
        return found

    def agree(self, value: T) -> T:
        """Rank 0's small object, on every rank."""
        box: list[Any] = [value]
        if self.size > 1:
            dist.broadcast_object_list(box, src=0)
        return box[0]

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()


def join(device: torch.device | None = None) -> World:
    """Join the process group that Ray or torchrun prepared, or make one of this process alone.

    device: cuda where there is one, else the CPU.
    """
    if device is None:
        device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    if not dist.is_initialized():
        backend = "gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl"
        if "RANK" in os.environ and "MASTER_ADDR" in os.environ:  # torchrun
            if device.type == "cuda":
                device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
                torch.cuda.set_device(device)
            dist.init_process_group(backend)
        else:
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    mesh = init_device_mesh(device.type, (dist.get_world_size(),), mesh_dim_names=("data",))
    return World(dist.get_rank(), dist.get_world_size(), device, mesh)


def shard(model: nn.Module, blocks: Iterable[nn.Module], world: World, precision: str = "float32") -> nn.Module:
    """Apply `fully_shard` to each block and to the rest, in place; parameters become float32 shards.

    bfloat16: only the weights of the blocks' matrix products (and the query and key norms, whose outputs meet the
    values in attention) are gathered and used in bfloat16. Modulation tables, layer norms, time embedding, RoPE and
    heads stay float32, and so do masters and gradient reduction: a bfloat16 timestep has steps of 4 above 512.
    Nothing is cast on the way in: the model hands its blocks what they need, told by `compute_dtype`.
    """
    whole = MixedPrecisionPolicy(param_dtype=torch.float32, reduce_dtype=torch.float32, cast_forward_inputs=False)
    half = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)
    # the objective takes its outputs as they are and changes none in place, which is what FSDP2 warns of at every step
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module")
    if precision == "bfloat16":
        model.compute_dtype = torch.bfloat16  # type: ignore[assignment]
    for block in blocks:
        if precision == "bfloat16":
            fully_shard(list(_products(block)), mesh=world.mesh, mp_policy=half)
        fully_shard(block, mesh=world.mesh, mp_policy=whole)
    # by default the outermost group stays gathered until the next backward: after a forward without one (held-out
    # loss, samples) the model would hold whole parameters that neither optimizer nor checkpoint knows
    fully_shard(model, mesh=world.mesh, mp_policy=whole, reshard_after_forward=True)
    return model


def _products(block: nn.Module) -> Iterator[nn.Module]:
    for name, module in block.named_modules():
        if isinstance(module, nn.Linear) or name.rsplit(".", 1)[-1] in {"norm_q", "norm_k"}:
            yield module


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's own part of a (possibly) distributed tensor; shares its memory."""
    tensor = tensor.detach()
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def clip(parameters: Iterable[nn.Parameter], largest: float) -> float:
    """Scale all gradients so that their norm over every shard is at most `largest`; the norm before."""
    norm = nn.utils.clip_grad_norm_(list(parameters), largest)
    return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)
