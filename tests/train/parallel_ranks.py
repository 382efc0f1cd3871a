"""Gradients of one toy step under many combinations of parallelism: the cases, what one process finds, and the ranks.

As a program, one process per rank: parallel_ranks.py CASES.json OUT RANK RANKS PORT
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import save_file

from pipelines.config import TrainSettings
from pipelines.train import parallel, parallel_model
from pipelines.train.ema import Ema
from pipelines.train.loop import Parts, train_step
from pipelines.train.optimizers import build_optimizer
from pipelines.train.parallel import World
from sama.objective import EncodedBatch, TimestepSampler, losses
from sama.randomness import normal
from sama.transformer import SamaTransformer
from sama.video import Bucket
from tests.train.toy_ranks import ToyBatch

SIZES = {
    "num_attention_heads": 4, "attention_head_dim": 16, "ffn_dim": 96, "num_layers": 2, "text_dim": 16, "freq_dim": 16,
    "semantic_dim": 8, "semantic_hidden_dim": 8, "semantic_tokens_per_anchor": 3,
}  # fmt: skip
FACTORS: dict[str, tuple] = {
    "world": (4, 2),
    "sequence": (2, 1, 4),
    "replicas": (1, 2),
    "recompute": ("none", "block", "selective"),
    "compiled": (False, True),
    "source": (True, False),
    "semantic": (True, False),
    "slots": (5, 4),  # 5 leaves filler slots of weight 0 behind
    "micro_batch": (1, 2),  # 1 accumulates over more micro-steps
}


@dataclass(frozen=True)
class Case:
    """One combination. 18 target tokens, as many source tokens, 3 semantic ones: 39, 36, 21 or 18 in all."""

    world: int
    sequence: int
    replicas: int
    recompute: str
    compiled: bool
    source: bool
    semantic: bool
    slots: int
    micro_batch: int
    precision: str = "float32"

    @property
    def possible(self) -> bool:
        return self.world % (self.sequence * self.replicas) == 0


def pairwise() -> list[Case]:
    """Cases that together hold every possible pair of values, found greedily; always the same."""
    everything = [c for c in (Case(*v) for v in itertools.product(*FACTORS.values())) if c.possible]
    left = set().union(*(_pairs(c) for c in everything))
    found = []
    while left:
        best = max(everything, key=lambda c: len(_pairs(c) & left))
        found.append(best)
        left -= _pairs(best)
    return found


def _pairs(case: Case) -> set:
    return set(itertools.combinations([(f, getattr(case, f)) for f in FACTORS], 2))


def model(dtype: torch.dtype = torch.float32) -> SamaTransformer:
    found = SamaTransformer(**SIZES)
    with torch.no_grad():
        for name, tensor in sorted(found.state_dict().items()):
            tensor.copy_(normal(1, name, tensor.shape) * 0.2)
    return found.train() if dtype == torch.float32 else found.train().to(dtype)


def encode(case: Case, seeds: list[int], weights: list[float]) -> EncodedBatch:
    def draw(purpose: str, *shape: int) -> torch.Tensor:
        return torch.stack([normal(s, purpose, shape) for s in seeds])

    return EncodedBatch(
        draw("latents", 16, 3, 4, 6), draw("source", 16, 3, 4, 6) if case.source else None, draw("text", 5, 16),
        draw("semantic", 3, 8) if case.semantic else None, seeds, torch.tensor(weights),
    )  # fmt: skip


def expected(case: Case, dtype: torch.dtype = torch.float32) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients in one process, without any of our machinery."""
    plain = model(dtype)
    batch = encode(case, list(range(case.slots)), [1.0] * case.slots)
    with _doubled() if dtype == torch.float64 else contextlib.nullcontext():
        loss = losses(plain, batch, TimestepSampler()).total.mean()
        loss.backward()
    return loss.item(), {n: p.grad for n, p in plain.named_parameters() if p.grad is not None}


@contextlib.contextmanager
def _doubled() -> Iterator[None]:
    """Let the places that compute in float32 whatever they get compute in float64."""
    real = torch.Tensor.float
    torch.Tensor.float = torch.Tensor.double  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.Tensor.float = real  # type: ignore[method-assign]


def batches(case: Case, world: World) -> Iterator[ToyBatch]:
    """This data rank's micro-batches of one step: slots in the order (micro-step, data rank), filled with weight 0."""
    micro_steps = -(-case.slots // (world.data_size * case.micro_batch))
    for micro in range(micro_steps):
        first = (micro * world.data_size + world.data_rank) * case.micro_batch
        slots = list(range(first, first + case.micro_batch))
        weights = [float(s < case.slots) for s in slots]
        seeds = [s if s < case.slots else 0 for s in slots]
        tasks = ["edit"] * case.micro_batch
        yield ToyBatch(
            0, micro, world.data_rank, "video", Bucket(9, 32, 48), seeds, tasks, weights, case.slots, micro_steps
        )


def assemble(case: Case, world: World, **settings: Any) -> Parts:
    how = TrainSettings.model_validate(
        {
            "precision": case.precision, "activation_checkpointing": case.recompute, "compile": case.compiled,
            "sequence_parallel": case.sequence, "hsdp_replicas": case.replicas, "grad_clip": 1e9, **settings,
        }
    )  # fmt: skip
    built = parallel_model.parallelize(model(), world, how)
    return Parts(
        "", how, world, built, Ema(built, 0.9), build_optimizer(built, how), TimestepSampler(),
        lambda batch: encode(case, batch.seeds, batch.weights), 1, ["edit"], {"video": 1.0},
    )  # fmt: skip


def main(cases: str, out: str, rank: str, ranks: str, port: str) -> None:
    os.environ.update(RANK=rank, WORLD_SIZE=ranks, MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    torch.set_num_threads(1)
    parallel_model.BACKEND = "eager"  # the same graphs and breaks, without minutes of code generation
    with open(cases) as file:
        todo = [Case(**c) for c in json.load(file)]
    for number, case in enumerate(todo):
        world = parallel.join(torch.device("cpu"), case.replicas, case.sequence)
        torch._dynamo.reset()
        parts = assemble(case, world)
        row, _ = train_step(parts, batches(case, world))
        grads = {n: p.grad.full_tensor() for n, p in parts.model.named_parameters() if p.grad is not None}
        if world.first:
            save_file(grads, os.path.join(out, f"{ranks}-{number}.safetensors"))
            print(json.dumps({"loss": row["train/loss"], "norm": row["train/grad_norm"]}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
