"""Held-out loss at fixed noise levels: what can be compared between steps, runs and numbers of workers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from pipelines.config import Settings
from pipelines.train.callbacks import due
from pipelines.train.loop import Parts, StepNotes
from pipelines.train.parallel import World
from sama.media import MediaError
from sama.objective import EncodedBatch, losses

if TYPE_CHECKING:
    from pipelines.mixture import BatchPlan
    from pipelines.mixture.batch import HeldOut

SIGMAS = (0.3, 0.6, 0.9)  # one for detail, one between, one for layout
PREFIX = "heldout/loss_fm/"


@dataclass
class _Case:
    """One held-out sample, encoded, on the CPU. weight: 0 where it fills up so that all ranks do as many forwards."""

    label: str
    weight: float
    encoded: EncodedBatch


def label_of(item: HeldOut) -> str:
    """Under which name a sample counts: its pretext task, or its edit category."""
    from pipelines.mixture.mixture import EDIT

    return item.slot.task if item.slot.task != EDIT else str(item.sample["category"] or "other")


def readable(plan: BatchPlan, count: int, world: World) -> list[HeldOut]:
    """The plan's first `count` held-out samples whose media decode; rank 0 tries, and all ranks get the same."""
    from pipelines.loading import read_item

    numbers: list[int] = []
    if world.first:
        for number, item in enumerate(plan.heldout):
            if len(numbers) == count:
                break
            try:
                read_item(plan, item)
            except MediaError:
                continue
            numbers.append(number)
    return [plan.heldout[n] for n in world.agree(numbers)]


class HeldoutLoss:
    """Adds `heldout/loss_fm/<task or category>` to the row, every `heldout_every` steps: mean squared error between
    predicted and true velocity, over the samples of that name and the noise levels in SIGMAS, with the raw weights.

    The ranks share the samples out. Each does the same number of forward passes, as sharded weights need it, and
    noise comes from each sample's own seed. Samples are encoded once.
    """

    def __init__(self, plan: BatchPlan, items: list[HeldOut], settings: Settings) -> None:
        self.every, self.plan, self.items = settings.train.heldout_every, plan, items
        self.labels = sorted({label_of(item) for item in self.items})
        self._cases: list[_Case] | None = None

    def __call__(self, parts: Parts, row: dict[str, Any], notes: StepNotes) -> None:
        if self.items and due(parts.progress.step, self.every, parts.steps):
            row.update(self.measure(parts))

    @torch.no_grad()
    def measure(self, parts: Parts) -> dict[str, float]:
        """The metrics at the weights as they are; every rank calls it."""
        if self._cases is None:
            self._cases = self._encode(parts)
        sums = torch.zeros(len(self.labels), 2, dtype=torch.float64)
        for case in self._cases:
            batch = _moved(case.encoded, parts.world.device)
            for sigma in SIGMAS:
                found = losses(parts.model, batch, parts.sampler, fixed_sigma=sigma)
                at = self.labels.index(case.label)
                if case.weight:
                    sums[at] += torch.tensor([float(found.mse.sum()), len(found.mse)], dtype=torch.float64)
        total = parts.world.sum(sums)
        return {
            f"{PREFIX}{label}": float(s / n) for label, (s, n) in zip(self.labels, total.tolist(), strict=True) if n
        }

    def _encode(self, parts: Parts) -> list[_Case]:
        from pipelines.loading import read_item

        return [
            _Case(label_of(item), weight, _moved(parts.encode(read_item(self.plan, item)), torch.device("cpu")))
            for item, weight in share(self.items, parts.world.data_rank, parts.world.data_size)
        ]


def share(items: Sequence[Any], rank: int, ranks: int) -> list[tuple[Any, float]]:
    """One rank's items with weight 1, filled up with weight 0 to the number of every other rank."""
    if not items:
        return []
    mine = [(item, 1.0) for item in items[rank::ranks]]
    return mine + [(items[0], 0.0)] * (-(-len(items) // ranks) - len(mine))


def _moved(batch: EncodedBatch, device: torch.device) -> EncodedBatch:
    def move(tensor: torch.Tensor | None) -> torch.Tensor | None:
        return None if tensor is None else tensor.to(device)

    latents, text, weights = (t.to(device) for t in (batch.latents, batch.text_embeds, batch.weights))
    return EncodedBatch(latents, move(batch.source_latents), text, move(batch.semantic), batch.seeds, weights)
