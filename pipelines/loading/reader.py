"""The plan read in this process: the reference that the Ray loader is tested against, and what torchrun uses."""

from __future__ import annotations

from collections.abc import Iterator

from pipelines import config
from pipelines.loading.micro_batch import MicroBatch
from pipelines.loading.rows import build_row, micro_steps
from pipelines.mixture.plan import BatchPlan


def read(
    plan: BatchPlan, rank: int, ranks: int, micro_batch: config.MicroBatch, start_step: int, stop_step: int
) -> Iterator[MicroBatch]:
    """One rank's micro-batches of the steps start_step..stop_step-1, in order, made when they are asked for."""
    for step in range(start_step, stop_step):
        for micro in range(micro_steps(plan, plan.place(step)[0], ranks, micro_batch)):
            yield build_row(plan, step, micro, rank, ranks, micro_batch)
