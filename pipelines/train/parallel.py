"""Who this process is among the training processes, and arithmetic over all of them.

The ranks form one grid, replicate x shard x sequence, sequence varying fastest. Parameters are sharded over
shard x sequence and copied over replicate (HSDP); the members of a sequence group train one micro-batch together.
What is put onto the model is in parallel_model.py and parallel_sequence.py.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor

from pipelines.planner.layout import check_layout

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """This process among all. There is always a process group, if only of one.

    mesh: over which parameters are sharded, (shard,) or (replicate, shard). sequence: members of a sequence group,
    which are neighbours in rank; group: theirs, None where each is alone. A data rank is one such group.
    """

    rank: int
    size: int
    device: torch.device
    mesh: DeviceMesh
    replicas: int = 1
    sequence: int = 1
    group: dist.ProcessGroup | None = None

    @property
    def first(self) -> bool:
        return self.rank == 0

    @property
    def data_rank(self) -> int:
        return self.rank // self.sequence

    @property
    def data_size(self) -> int:
        return self.size // self.sequence

    @property
    def member(self) -> int:
        """This process's number in its sequence group."""
        return self.rank % self.sequence

    @property
    def leader(self) -> bool:
        """The member that reads the data and speaks for its group."""
        return self.member == 0

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sum over the ranks, the same bits on each; float64 on the CPU in and out."""
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


def join(device: torch.device | None = None, replicas: int = 1, sequence: int = 1) -> World:
    """Join the process group that Ray or torchrun prepared, or make one of this process alone.

    device: cuda where there is one, else the CPU. replicas: copies of the sharded parameters (HSDP). sequence:
    processes that share one sequence. InputError where the number of processes does not divide so.
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
    rank, size = dist.get_rank(), dist.get_world_size()
    check_layout(size, replicas, sequence)
    if replicas == 1:
        mesh = init_device_mesh(device.type, (size,), mesh_dim_names=("shard",))
    else:
        mesh = init_device_mesh(device.type, (replicas, size // replicas), mesh_dim_names=("replicate", "shard"))
    group = None
    if sequence > 1:
        grid = init_device_mesh(device.type, (size // sequence, sequence), mesh_dim_names=("data", "sequence"))
        group = grid.get_group("sequence")
    return World(rank, size, device, mesh, replicas, sequence, group)


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's own part of a (possibly) distributed tensor; shares its memory."""
    tensor = tensor.detach()
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def square_norm(parameters: Iterable[nn.Parameter], world: World) -> torch.Tensor:
    """This rank's share of the squared norm of all gradients, float64 on the CPU: `world.sum` makes it whole."""
    gradients = [local(p.grad) for p in parameters if p.grad is not None]
    if not gradients:
        return torch.zeros((), dtype=torch.float64)
    norms = torch.stack([n.to(world.device) for n in torch._foreach_norm(gradients)])
    return norms.double().square().sum().cpu() / world.replicas  # every replica holds the same


def clip(parameters: Iterable[nn.Parameter], norm: float, largest: float) -> None:
    """Scale all gradients, whose norm over every shard is `norm`, so that it is at most `largest`."""
    if norm > largest:
        gradients = [local(p.grad) for p in parameters if p.grad is not None]
        torch._foreach_mul_(gradients, largest / (norm + 1e-6))
