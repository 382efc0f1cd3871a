"""The same training without Ray: one process, or several under torchrun; for debugging and for tests.

    python -m pipelines.train.local CONFIG.yaml --set train.lr=1e-5
    torchrun --nproc-per-node 2 -m pipelines.train.local CONFIG.yaml

Batches come from the in-process reader of the plan. There is no restart: whoever starts it again goes on from the
newest checkpoint. SIGTERM (torchrun, Slurm, Kubernetes send it) finishes the step, saves and ends with exit code 143.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from typing import TYPE_CHECKING

import typer

from pipelines import config
from pipelines.config import Settings
from pipelines.encode.text import NEEDS_RAY, Announcer
from pipelines.train.failures import sentence
from pipelines.train.job import Job
from pipelines.train.notices import STOPPED, Notices, StoppedError, term_stops
from pipelines.train.prefetch import Ahead
from pipelines.train.records import add_event
from pipelines.train.run_folder import Prepared, RunResult, conclude, prepare
from pipelines.train.worker import work
from sama.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipelines.loading import MicroBatch
    from pipelines.mixture import BatchPlan
    from pipelines.train.parallel import World


def train_here(settings: Settings) -> RunResult:
    """Train in this process, with as many ranks as torchrun started; see `launch.train`."""
    from pipelines.loading.reader import read
    from pipelines.train import parallel

    if settings.text.mode == "actors":
        raise InputError(NEEDS_RAY)
    world = parallel.join()
    prepared: Prepared | None = None
    told: object = None
    if world.first:
        try:
            prepared = prepare(settings)
            told = dataclasses.asdict(prepared.job)
        except InputError as error:
            world.agree(str(error))
            raise
    told = world.agree(told)
    if isinstance(told, str):
        raise InputError(told)
    assert isinstance(told, dict)
    job = Job(**told)
    sizes = settings.train.micro_batch
    status = "FAILED"
    ahead: Ahead | None = None
    notices, text = Notices(), Announcer()

    def batches(plan: BatchPlan, world: World, step: int) -> Iterator[MicroBatch]:
        nonlocal ahead
        ahead = Ahead(lambda: text.watch(read(plan, world.data_rank, world.data_size, sizes, step, plan.steps)))
        return ahead

    try:
        with term_stops(notices):
            reached = work(job, batches, notices, text)
        status = "FINISHED"
    except StoppedError as stop:
        status = "KILLED"
        if world.first:
            add_event(job.run, "stopped", str(stop), stop.step)
        raise
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    except Exception as error:
        if world.first:
            add_event(job.run, "failed", sentence(error), getattr(error, "training_step", None))
        raise
    finally:
        if ahead is not None:
            ahead.close()
        result = conclude(prepared, status) if prepared is not None else None
    return result or RunResult(job.run, job.mlflow_run_id, reached)


def main(
    config_file: str = typer.Argument(..., metavar="CONFIG"),
    overrides: list[str] = typer.Option([], "--set", help="A setting as dotted.name=value; may be repeated."),
) -> None:
    """Train without Ray."""
    try:
        result = train_here(config.load(Settings, config.recipe(config_file), overrides))
    except InputError as error:
        print(f"sama: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    except StoppedError as stop:
        print(f"sama: {stop}", file=sys.stderr)
        raise typer.Exit(STOPPED) from None
    if os.environ.get("RANK", "0") == "0":
        print(f"{result.run}: {result.final_step} steps")


if __name__ == "__main__":
    typer.run(main)
