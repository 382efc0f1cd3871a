"""What a step adds up over its micro-steps and then over the ranks: losses, tokens, FLOPs, seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from pipelines.loading import watching
from pipelines.planner.devices import forward_flops
from pipelines.train.parallel import World
from pipelines.train.speed import PARTS, peak_flops, tokens_of
from sama.objective import EncodedBatch, Losses

if TYPE_CHECKING:
    from pipelines.loading import MicroBatch


class Sums:
    """The sums of one rank; `over` gives those of all. tokens_per_device: of a step, filler slots included."""

    def __init__(self, tasks: Sequence[str]) -> None:
        self.tasks = list(tasks)
        self.fm = self.semantic = self.total = self.tokens = self.flops = 0.0
        self.substitutions, self.padded_tokens = 0, 0
        self.by_task = {t: [0.0, 0.0] for t in self.tasks}
        self.substituted: list[str] = []
        self.loader = [0.0] * len(watching.SUMMED)
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
        self.loader = [a + b for a, b in zip(self.loader, watching.measures(batch), strict=True)]
        self.substitutions = len(self.substituted)

    def over(self, world: World, seconds: Mapping[str, float]) -> Sums:
        """The sums over all data ranks; the seconds are the mean over all ranks."""
        scalars = [self.fm, self.semantic, self.total, self.tokens, self.flops, float(self.substitutions)]
        found = scalars + self.loader + [v for t in self.tasks for v in self.by_task[t]]
        if not world.leader:  # the members of a group saw the same samples
            found = [0.0] * len(found)
        times = [seconds[p] / world.size for p in PARTS]
        summed = world.sum(torch.tensor(found + times, dtype=torch.float64)).tolist()
        out = Sums(self.tasks)
        out.fm, out.semantic, out.total, out.tokens, out.flops, substitutions = summed[: len(scalars)]
        out.substitutions = int(substitutions)
        rest = summed[len(scalars) :]
        out.loader, rest = rest[: len(self.loader)], rest[len(self.loader) :]
        out.by_task = {t: rest[2 * i : 2 * i + 2] for i, t in enumerate(self.tasks)}
        out.seconds = dict(zip(PARTS, rest[2 * len(self.tasks) :], strict=True))
        return out

    def losses(self, samples: int) -> dict[str, float]:
        """The losses as metrics."""
        row = {
            "train/loss": self.total / samples,
            "train/loss_fm": self.fm / samples,
            "train/loss_sem": self.semantic / samples,
        }
        row.update({f"train/loss_fm/{t}": s / n for t, (s, n) in self.by_task.items() if n})
        return row

    def speed(self, world: World, seconds: float) -> dict[str, float]:
        """Time and speed as metrics, of sums over all ranks. seconds: of the whole step."""
        row = {f"time/{part}": self.seconds[part] for part in PARTS}
        row["speed/tokens_per_s"] = self.tokens / seconds
        row.update(watching.metrics(self.loader, seconds))
        peak = peak_flops(world.device)
        if peak is not None:
            # three times the forward FLOPs: the backward pass counts two, recomputation nothing
            work = 3 * self.flops / (peak * world.size)
            row["speed/mfu_model"] = work / (self.seconds["forward"] + self.seconds["backward"])
            row["speed/mfu_step"] = work / seconds
        return row
