"""What a sequence group does with its batch, on real processes: sequence_ranks.py RANK RANKS PORT"""

from __future__ import annotations

import dataclasses
import os
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.train import parallel
from pipelines.train.parallel_batch import KINDS, GroupEncoder, SharedBatches
from pipelines.train.parallel_sequence import gather_tokens, heads_for_tokens, shares, tokens_for_heads


@dataclass
class Batch:
    step: int
    target: np.ndarray
    source: np.ndarray
    prompts: list[str]


class Encoder:
    """Stands for a BatchEncoder: says what it was asked for. cached: prompts whose text needs no encoding."""

    def __init__(self, cached: bool = False) -> None:
        self.asked: list[tuple[str, int]] = []
        self.cached = cached

    def __call__(self, batch: Batch) -> dict[str, torch.Tensor]:
        target, source = torch.from_numpy(batch.target), torch.from_numpy(batch.source)
        text = torch.ones(len(batch.prompts), 2) if self.cached else self.encode_text(batch.prompts)
        return {
            "target": self.encode_target(target), "source": self.encode_source(source).mul(2.0), "text": text,
            "semantic": self.encode_semantic(target[:, :1]),
        }  # fmt: skip

    def encode_target(self, frames: torch.Tensor) -> torch.Tensor:
        self.asked.append(("target", len(frames)))
        return frames.float().mean((2, 3)) + 1.0

    def encode_source(self, frames: torch.Tensor) -> torch.Tensor:
        self.asked.append(("source", len(frames)))
        return frames.float().mean((2, 3)) - 1.0

    def encode_text(self, prompts: list[str]) -> torch.Tensor:
        self.asked.append(("text", len(prompts)))
        return torch.tensor([[float(len(p)), 1.0] for p in prompts], dtype=torch.bfloat16)

    def encode_semantic(self, frames: torch.Tensor) -> torch.Tensor:
        self.asked.append(("semantic", len(frames)))
        return frames.float().flatten(1)[:, :3]


def batches(group: int, rows: int) -> list[Batch]:
    draw = np.random.default_rng(group)
    shape = (rows, 5, 64, 80, 3)
    found = []
    for step in range(2):
        target, source = (draw.integers(0, 256, shape, dtype=np.uint8) for _ in range(2))
        found.append(Batch(step, target, source, [f"{group} {step} " + "x" * row for row in range(rows)]))
    return found


def check_batches(world: parallel.World) -> None:
    want = batches(world.data_rank, 2)
    found = list(SharedBatches(iter(want) if world.leader else None, world))
    assert len(found) == 2
    for ours, theirs in zip(found, want, strict=True):
        for field in dataclasses.fields(Batch):
            assert np.array_equal(getattr(ours, field.name), getattr(theirs, field.name)), field.name

    def failing() -> Any:
        yield want[0]
        raise ValueError("torn file")

    broken = SharedBatches(failing() if world.leader else None, world)
    next(broken)
    with pytest.raises(ValueError if world.leader else RuntimeError, match="torn file"):
        next(broken)


def check_encoding(world: parallel.World) -> None:
    for rows in (1, 3):
        for cached in (False, True):
            batch = batches(world.data_rank, rows)[0]
            want = Encoder(cached)(batch)
            inner = Encoder(cached)
            found = GroupEncoder(inner, world)(batch)
            assert set(found) == set(want)
            for name in want:
                assert found[name].dtype == want[name].dtype
                assert torch.equal(found[name], want[name]), name
            done: list[list] = [[]] * world.sequence
            torch.distributed.all_gather_object(done, inner.asked, group=world.group)
            pieces = sum(n for asked in done for _, n in asked)
            assert pieces == rows * (3 if cached else 4), done  # each piece by one member only
            assert all(asked for asked in done), done  # and none stood idle
            assert not any(kind in vars(inner) for kind in KINDS)


def check_exchange(world: parallel.World) -> None:
    """Uneven shares there and back, values and gradients."""
    for total in (7, 8, 13):
        whole = torch.randn(2, total, 4, 3, generator=torch.Generator().manual_seed(total), dtype=torch.float64)
        own = whole.split(shares(total, world.sequence), dim=1)[world.member].clone().requires_grad_()
        swapped = heads_for_tokens(own, total, world)
        each = 4 // world.sequence
        mine = slice(world.member * each, (world.member + 1) * each)
        assert torch.equal(swapped, whole[:, :, mine])
        back = tokens_for_heads(swapped, total, world)
        assert torch.equal(back, own)
        (back * back).sum().backward()
        assert torch.allclose(own.grad, 2 * own)
        own.grad = None
        (gather_tokens(own.flatten(2), total, world) ** 2).sum().backward()  # the same loss on every member
        assert torch.allclose(own.grad, 2 * own * world.sequence)


def main(rank: str, ranks: str, port: str) -> None:
    os.environ.update(RANK=rank, WORLD_SIZE=ranks, MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    world = parallel.join(torch.device("cpu"), sequence=2)
    assert (world.data_rank, world.member) == divmod(int(rank), 2)
    check_exchange(world)
    check_batches(world)
    check_encoding(world)


if __name__ == "__main__":
    main(*sys.argv[1:])
