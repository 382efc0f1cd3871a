"""The training loop. One optimizer step trains one global batch of one stream; everything else is a callback.

A global batch is spread over data ranks and micro-steps. Its loss is the sum of the losses of its real slots (a
filler slot weighs 0) over the number of real slots, for any number of ranks, so the curve does not depend on it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch

from pipelines.config import TrainSettings
from pipelines.train import parallel
from pipelines.train.ema import Ema
from pipelines.train.parallel import World
from pipelines.train.speed import PARTS, Clock, forward_flops, peak_flops, tokens_of
from sama.objective import EncodedBatch, Losses, TimestepSampler, losses

if TYPE_CHECKING:
    from pipelines.loading import MicroBatch

MAX_SKIPPED_IN_A_ROW = 10


@dataclass
class Progress:
    """The counters that a checkpoint keeps. step: the next step to do; updates: steps that changed the weights."""

    step: int = 0
    updates: int = 0
    skipped_in_a_row: int = 0
    video_samples: int = 0
    image_samples: int = 0
    tokens: int = 0
    gpu_hours: float = 0.0


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
    """What a step was, for people."""

    stream: str
    bucket: Any
    tokens_per_device: int
    seconds: float
    substituted: list[str]


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
    clock, sums = Clock(world.device), _Sums(parts.tasks)
    parts.optimizer.zero_grad(set_to_none=True)
    micro, micro_steps = 0, 1
    while micro < micro_steps:
        with clock("wait"):
            batch = _expect(next(batches, None), step, micro, world.rank)
        with clock("encode"):
            encoded = parts.encode(batch)
        with clock("forward"):
            found = losses(parts.model, encoded, parts.sampler, settings.semantic_weight)
            loss = (found.total * encoded.weights).sum() / batch.real_global_batch
        with clock("backward"):
            # the reduction averages over the ranks and we want the sum. Every micro-step is reduced: whole float32
            # gradients of a large model, kept until the last one, would not fit
            (loss * (world.size * parts.loss_weight[batch.stream])).backward()
        sums.add(batch, encoded, found, parts.model.config)
        micro, micro_steps = micro + 1, batch.micro_steps

    with clock("optimizer"):
        rate = learning_rate(settings, step)
        norm = parallel.clip(parts.model.parameters(), settings.grad_clip)
        _update(parts, rate, norm)

    seconds, whole = clock.read()
    total = sums.over(world, seconds)
    row = {"step": step, **total.losses(batch.real_global_batch), "train/grad_norm": norm, "train/lr": rate}
    row.update(_account(parts, batch.stream, batch.real_global_batch, total, whole))
    substituted = [s for found in world.gather(sums.substituted) for s in found] if total.substitutions else []
    return row, StepNotes(batch.stream, batch.bucket, sums.padded_tokens, whole, substituted)


def learning_rate(settings: TrainSettings, step: int) -> float:
    """Constant after a linear warm-up."""
    return settings.lr * min(1.0, (step + 1) / max(1, settings.warmup_steps))


def _expect(batch: MicroBatch | None, step: int, micro: int, rank: int) -> MicroBatch:
    found = None if batch is None else (batch.step, batch.micro, batch.rank)
    if batch is None or found != (step, micro, rank):
        raise RuntimeError(f"expected micro-batch (step, micro, rank) = {(step, micro, rank)}, the loader gave {found}")
    return batch


def _update(parts: Parts, rate: float, norm: float) -> None:
    """Change the weights, unless the gradients are not finite: a few such steps are skipped, a row of them is fatal."""
    progress = parts.progress
    if not math.isfinite(norm):
        progress.skipped_in_a_row += 1
        if progress.skipped_in_a_row > MAX_SKIPPED_IN_A_ROW:
            raise RuntimeError(f"the gradients of {progress.skipped_in_a_row} steps in a row are not finite")
    else:
        for group in parts.optimizer.param_groups:
            group["lr"] = rate
        parts.optimizer.step()
        progress.updates, progress.skipped_in_a_row = progress.updates + 1, 0
    parts.ema.update()


def _account(parts: Parts, stream: str, samples: int, total: _Sums, seconds: float) -> dict[str, float]:
    """Advance the counters; the metrics on progress, time and speed."""
    progress, world = parts.progress, parts.world
    if stream == "video":
        progress.video_samples += samples
    else:
        progress.image_samples += samples
    progress.tokens += int(total.tokens)
    row: dict[str, float] = {
        "seen/video_samples": progress.video_samples,
        "seen/image_samples": progress.image_samples,
        "seen/tokens": progress.tokens,
    }
    row.update({f"time/{part}": total.seconds[part] for part in PARTS})
    row["speed/tokens_per_s"] = total.tokens / seconds
    if world.device.type == "cuda":
        progress.gpu_hours += seconds * world.size / 3600
        row["cost/gpu_hours"] = progress.gpu_hours
    peak = peak_flops(world.device)
    if peak is not None:
        # three times the forward FLOPs: the backward pass counts two, recomputation nothing
        work = 3 * total.flops / (peak * world.size)
        row["speed/mfu_model"] = work / (total.seconds["forward"] + total.seconds["backward"])
        row["speed/mfu_step"] = work / seconds
    return row


class _Sums:
    """What a step adds up over micro-steps, then over ranks."""

    def __init__(self, tasks: Sequence[str]) -> None:
        self.tasks = list(tasks)
        self.fm = self.semantic = self.total = self.tokens = self.flops = 0.0
        self.substitutions, self.padded_tokens = 0, 0
        self.by_task = {t: [0.0, 0.0] for t in self.tasks}
        self.substituted: list[str] = []
        self.seconds: dict[str, float] = {}

    def add(self, batch: MicroBatch, encoded: EncodedBatch, found: Losses, config: Any) -> None:
        weights = encoded.weights.detach().cpu().double()
        fm = found.fm.detach().cpu().double()
        self.fm += float((fm * weights).sum())
        self.total += float((found.total.detach().cpu().double() * weights).sum())
        if found.semantic is not None:
            self.semantic += float((found.semantic.detach().cpu().double() * weights).sum())
        for task, loss, weight in zip(batch.tasks, fm.tolist(), weights.tolist(), strict=True):
            self.by_task[task][0] += loss * weight
            self.by_task[task][1] += weight
        anchors = 0 if encoded.semantic is None else encoded.semantic.shape[1]
        length = tokens_of(encoded.latents, encoded.source_latents is not None, anchors, config.patch_size)
        self.tokens += length * float(weights.sum())
        self.padded_tokens += length * len(weights)
        self.flops += forward_flops(config, length, encoded.text_embeds.shape[1]) * float(weights.sum())
        self.substituted += [str(s) for s in batch.substituted]
        self.substitutions = len(self.substituted)

    def over(self, world: World, seconds: Mapping[str, float]) -> _Sums:
        """The sums over all ranks; the seconds are the mean."""
        scalars = [self.fm, self.semantic, self.total, self.tokens, self.flops, float(self.substitutions)]
        tasks = [v for t in self.tasks for v in self.by_task[t]]
        times = [seconds[p] / world.size for p in PARTS]
        summed = world.sum(torch.tensor(scalars + tasks + times, dtype=torch.float64)).tolist()
        out = _Sums(self.tasks)
        out.fm, out.semantic, out.total, out.tokens, out.flops, substitutions = summed[: len(scalars)]
        out.substitutions = int(substitutions)
        rest = summed[len(scalars) :]
        out.by_task = {t: rest[2 * i : 2 * i + 2] for i, t in enumerate(self.tasks)}
        out.seconds = dict(zip(PARTS, rest[2 * len(self.tasks) :], strict=True))
        return out

    def losses(self, samples: int) -> dict[str, float]:
        row = {
            "train/loss": self.total / samples,
            "train/loss_fm": self.fm / samples,
            "train/loss_sem": self.semantic / samples,
        }
        row.update({f"train/loss_fm/{t}": s / n for t, (s, n) in self.by_task.items() if n})
        return row
