"""The training loop. One optimizer step trains one global batch of one stream; everything else is a callback.

A global batch is spread over data ranks and micro-steps. Its loss is the sum of the losses of its real slots (a
filler slot weighs 0) over the number of real slots, for any number of ranks, so the curve does not depend on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch

from pipelines.config import TrainSettings
from pipelines.train import guard, parallel
from pipelines.train.ema import Ema
from pipelines.train.optimizers import learning_rate, set_rate
from pipelines.train.parallel import World
from pipelines.train.speed import Clock
from pipelines.train.sums import Sums
from sama.objective import EncodedBatch, TimestepSampler, losses

if TYPE_CHECKING:
    from pipelines.loading import MicroBatch


@dataclass
class Progress:
    """What a checkpoint keeps beside the tensors. step: the next step to do; updates: steps that changed the weights;
    history: what guard.py looks back on."""

    step: int = 0
    updates: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    video_samples: int = 0
    image_samples: int = 0
    tokens: int = 0
    gpu_hours: float = 0.0
    history: guard.History = field(default_factory=dict)


@dataclass
class Parts:
    """All that a step needs. steps: how many the plan has; tasks: all that a slot may be; loss_weight: by stream."""

    run: str
    settings: TrainSettings
    world: World
    model: Any
    ema: Ema
    optimizer: torch.optim.Optimizer
    sampler: TimestepSampler
    encode: Callable[[MicroBatch], EncodedBatch]
    steps: int
    tasks: Sequence[str]
    loss_weight: Mapping[str, float]
    progress: Progress = field(default_factory=Progress)


class Callback(Protocol):
    """Called on every rank after every step, in order, `progress.step` being the next step already.

    `row` is the step's row of metrics.jsonl; a callback may add to it. `notes` is what is no metric.
    """

    def __call__(self, parts: Parts, row: dict[str, Any], notes: StepNotes) -> None: ...


@dataclass
class StepNotes:
    """What a step was, for people. skipped: why its update was not done."""

    stream: str
    bucket: Any
    tokens_per_device: int
    seconds: float
    substituted: list[str]
    skipped: str | None = None


def train(parts: Parts, batches: Iterator[MicroBatch], callbacks: Sequence[Callback]) -> None:
    """Do all steps that are left. `batches` yields this rank's micro-batches in the plan's order from there on."""
    while parts.progress.step < parts.steps:
        row, notes = train_step(parts, batches)
        parts.progress.step += 1
        for callback in callbacks:
            callback(parts, row, notes)


def train_step(parts: Parts, batches: Iterator[MicroBatch]) -> tuple[dict[str, Any], StepNotes]:
    """One global batch: forward and backward of each micro-batch, one clipped update, one EMA update."""
    settings, world, step = parts.settings, parts.world, parts.progress.step
    clock, sums = Clock(world.device), Sums(parts.tasks)
    parts.optimizer.zero_grad(set_to_none=True)
    micro, micro_steps = 0, 1
    while micro < micro_steps:
        with clock("wait"):
            batch = _expect(next(batches, None), step, micro, world.data_rank)
        with clock("encode"):
            encoded = parts.encode(batch)
        with clock("forward"):
            found = losses(parts.model, encoded, parts.sampler, settings.semantic_weight)
            loss = (found.total * encoded.weights).sum() / batch.real_global_batch
        with clock("backward"):
            # the reduction averages over all ranks and we want the sum over data ranks. Every micro-step is reduced:
            # whole float32 gradients of a large model, kept until the last one, would not fit
            (loss * (world.data_size * parts.loss_weight[batch.stream])).backward()
        sums.add(batch, encoded, found, parts.model.config)
        micro, micro_steps = micro + 1, batch.micro_steps

    with clock("optimizer"):
        rate = learning_rate(settings, step, parts.steps)
        norm, skipped = _update(parts, rate, batch.stream, sums.total / batch.real_global_batch)

    seconds, whole = clock.read()
    total = sums.over(world, seconds)
    row = {"step": step, **total.losses(batch.real_global_batch), "train/grad_norm": norm, "train/lr": rate}
    row.update(_count(parts, batch.stream, batch.real_global_batch, total, whole))
    row.update(total.speed(world, whole))
    said = sums.substituted if world.leader else []
    substituted = [s for found in world.gather(said) for s in found] if total.substitutions else []
    return row, StepNotes(batch.stream, batch.bucket, sums.padded_tokens // world.sequence, whole, substituted, skipped)


def _expect(batch: MicroBatch | None, step: int, micro: int, rank: int) -> MicroBatch:
    found = None if batch is None else (batch.step, batch.micro, batch.rank)
    if batch is None or found != (step, micro, rank):
        raise RuntimeError(f"expected micro-batch (step, micro, rank) = {(step, micro, rank)}, the loader gave {found}")
    return batch


def _update(parts: Parts, rate: float, stream: str, loss: float) -> tuple[float, str | None]:
    """Clip, change the weights, follow them with the average; the gradient norm, and why nothing was changed.

    loss: this rank's part of the step's loss. A few steps may be skipped (see guard.py), a row of them is fatal.
    """
    settings, world, progress = parts.settings, parts.world, parts.progress
    parameters = [p for p in parts.model.parameters() if p.requires_grad]
    mine = parallel.square_norm(parameters, world), torch.tensor(loss if world.leader else 0.0, dtype=torch.float64)
    square, loss = world.sum(torch.stack(mine)).tolist()
    norm = square**0.5
    skipped = guard.objection(settings, progress.history, stream, loss, norm)
    if skipped is not None:
        progress.skipped, progress.skipped_in_a_row = progress.skipped + 1, progress.skipped_in_a_row + 1
        if progress.skipped_in_a_row > settings.max_skipped:
            raise guard.TrainingDivergedError(
                f"{progress.skipped_in_a_row} steps in a row were skipped; in step {progress.step} {skipped}"
            )
        return norm, skipped
    parallel.clip(parameters, norm, settings.grad_clip)
    set_rate(parts.optimizer, rate)
    parts.optimizer.step()
    parts.ema.update()
    progress.updates, progress.skipped_in_a_row = progress.updates + 1, 0
    guard.remember(settings, progress.history, stream, loss, norm)
    return norm, None


def _count(parts: Parts, stream: str, samples: int, total: Sums, seconds: float) -> dict[str, float]:
    """Advance the counters, and give them as metrics."""
    progress, world = parts.progress, parts.world
    if stream == "video":
        progress.video_samples += samples
    else:
        progress.image_samples += samples
    progress.tokens += int(total.tokens)
    row: dict[str, float] = {
        "train/skipped": progress.skipped,
        "seen/video_samples": progress.video_samples,
        "seen/image_samples": progress.image_samples,
        "seen/tokens": progress.tokens,
    }
    if world.device.type == "cuda":
        progress.gpu_hours += seconds * world.size / 3600
        row["cost/gpu_hours"] = progress.gpu_hours
    return row
