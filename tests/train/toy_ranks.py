"""Toy training without data: batches and encodings made from seeds, for one process or several.

As a program (one process per rank): toy_ranks.py RUN STEPS RANK RANKS PORT PRECISION RESUME|- REPLICAS SEQUENCE
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from pipelines.config import TrainSettings
from pipelines.train import parallel, parallel_model, state
from pipelines.train.callbacks import Book, Checkpoints
from pipelines.train.ema import Ema
from pipelines.train.loop import Parts, train
from pipelines.train.optimizers import build_optimizer
from pipelines.train.parallel import World
from sama.objective import EncodedBatch, TimestepSampler
from sama.randomness import normal
from sama.transformer import SamaTransformer
from sama.video import Bucket

GLOBAL = 5  # no number of ranks divides it: filler slots
SIZES = {
    "num_attention_heads": 2, "attention_head_dim": 12, "ffn_dim": 32, "num_layers": 2, "text_dim": 16, "freq_dim": 16,
    "semantic_dim": 8, "semantic_hidden_dim": 8, "semantic_tokens_per_anchor": 3,
}  # fmt: skip


@dataclass
class ToyBatch:
    """The fields of a MicroBatch that the loop reads."""

    step: int
    micro: int
    rank: int
    stream: str
    bucket: Bucket
    seeds: list[int]
    tasks: list[str]
    weights: list[float]
    real_global_batch: int
    micro_steps: int
    substituted: list[str] = field(default_factory=list)
    timings: dict[str, float] = field(default_factory=dict)
    fetched_bytes: int = 0
    frames: int = 0
    rows_ahead: int = 0
    bytes_ahead: int = 0


def batches(world: World, step: int, steps: int, micro_batch: int = 1) -> Iterator[ToyBatch]:
    """This rank's micro-batches: slots in the order (micro-step, rank), filled up with weight 0."""
    micro_steps = -(-GLOBAL // (world.data_size * micro_batch))
    for at in range(step, steps):
        for micro in range(micro_steps):
            first = (micro * world.data_size + world.data_rank) * micro_batch
            slots = list(range(first, first + micro_batch))
            real = [s < GLOBAL for s in slots]
            slots = [s if r else 0 for s, r in zip(slots, real, strict=True)]
            yield ToyBatch(
                at, micro, world.data_rank, ("image", "video")[at % 2], Bucket(1, 8, 8),
                [1000 * at + s for s in slots], [("edit", "speed")[s % 2] for s in slots],
                [float(r) for r in real], GLOBAL, micro_steps,
            )  # fmt: skip


def encode(batch: Any) -> EncodedBatch:
    def draw(purpose: str, *shape: int) -> torch.Tensor:
        return torch.stack([normal(s, purpose, shape) for s in batch.seeds])

    return EncodedBatch(
        draw("latents", 16, 1, 4, 4), draw("source", 16, 1, 4, 4), draw("text", 3, 16), draw("semantic", 3, 8),
        batch.seeds, torch.tensor(batch.weights),
    )  # fmt: skip


def model() -> SamaTransformer:
    found = SamaTransformer(**SIZES)
    with torch.no_grad():
        for name, tensor in sorted(found.state_dict().items()):
            tensor.copy_(normal(1, name, tensor.shape) * 0.2)
    return found


def assemble(run: str, world: World, steps: int, **settings: Any) -> Parts:
    how = TrainSettings(**{"lr": 1e-3, "warmup_steps": 2, "ema_decay": 0.9, "precision": "float32", **settings})
    built = model()
    parallel_model.parallelize(built, world, how)
    optimizer = build_optimizer(built, how)
    return Parts(
        run, how, world, built, Ema(built, how.ema_decay), optimizer, TimestepSampler(), encode, steps,
        ["edit", "speed"], {"image": 1.0, "video": 0.5},
    )  # fmt: skip


def run_to(run: str, world: World, steps: int, resume: int | None = None, **settings: Any) -> Parts:
    """Train from the start or a checkpoint to `steps`, with metrics and checkpoints."""
    parts = assemble(run, world, steps, **settings)
    if resume is not None:
        state.restore(parts, resume)
    book = Book(run, parts.progress.step, None, False) if world.first else None
    checkpoints = Checkpoints(book, {"preset": "toy"}, None, parts)
    train(parts, batches(world, parts.progress.step, steps), [*([book] if book else []), checkpoints])
    checkpoints.close()
    return parts


if __name__ == "__main__":
    folder, upto, rank, ranks, port, precision, begin, replicas, sequence = sys.argv[1:]
    os.environ.update(RANK=rank, WORLD_SIZE=ranks, MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    torch.set_num_threads(1)
    joined = parallel.join(torch.device("cpu"), int(replicas), int(sequence))
    how = {"precision": precision, "hsdp_replicas": int(replicas), "sequence_parallel": int(sequence)}
    done = run_to(folder, joined, int(upto), None if begin == "-" else int(begin), checkpoint_every=2, **how)
    print(json.dumps({"rank": joined.rank, "local": sum(p.to_local().numel() for p in done.model.parameters())}))
