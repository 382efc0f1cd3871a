"""A step of the data's way as a run in MLflow: curate, select and report, on their own or below another run."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import typer

from pipelines import config, tracking_store
from pipelines.progress import say
from pipelines.samples import storage
from pipelines.tracking_store import TrackingError
from sama.errors import InputError

EXPERIMENT = "sama"

# options of the verbs
Uri = Annotated[str | None, typer.Option("--tracking-uri", help="MLflow store to log this to; none without it.")]
Experiment = Annotated[
    str | None, typer.Option(help="MLflow experiment; without it the parent's, or sama. Needs --tracking-uri.")
]
Parent = Annotated[
    str | None, typer.Option("--parent-run", help="Id of an MLflow run to hang this below. Needs --tracking-uri.")
]


@dataclass(frozen=True)
class Place:
    """Where a run is logged."""

    uri: str
    experiment: str = EXPERIMENT
    parent: str | None = None


def place(uri: str | None, experiment: str | None, parent: str | None) -> Place | None:
    """From the options; None when nothing is to be logged. InputError for a store or a parent that is not there."""
    if uri is None:
        if experiment or parent:
            raise InputError(f"--{'parent-run' if parent else 'experiment'} needs --tracking-uri, the store to log to")
        return None
    uri = tracking_store.store_uri(uri, "")
    if parent is None:
        return Place(uri, experiment or EXPERIMENT)
    try:
        found = tracking_store.experiment_of(uri, parent)
    except TrackingError as error:
        raise InputError(f"--parent-run: {error}") from None
    if found is None:
        raise InputError(f"--parent-run: the tracking store knows no run {parent}")
    if experiment not in (None, found):
        raise InputError(f"--parent-run {parent} is of the experiment {found}: leave --experiment out")
    return Place(uri, found, parent)


@dataclass
class StageRun:
    """What a step wants to have logged; it is sent when the step ends."""

    metrics: dict[str, float] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    artifacts: list[str] = field(default_factory=list)  # URIs of files

    def count(self, tree: Mapping[str, Any], prefix: str = "") -> None:
        """The numbers of a tree as metrics with dotted names."""
        for name, value in config.flatten(dict(tree), prefix).items():
            if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
                self.metrics[name] = float(value)


@contextlib.contextmanager
def stage_run(
    where: Place | None, step: str, params: Mapping[str, Any] | None = None, run_id: str | None = None,
    started: Callable[[str], None] | None = None,
) -> Iterator[StageRun]:  # fmt: skip
    """A run around a step: RUNNING while it works, then FINISHED, FAILED (with its error in a tag) or KILLED.

    run_id: an earlier run to go on with, where the store still has it; started: is given the run's id. A store that is
    away is told, and the step goes on without. Without `where` nothing is logged.
    """
    run = StageRun(tags={"sama.step": step})
    known = _start(where, step, params, run_id, started) if where else None
    status = "FAILED"
    try:
        yield run
        status = "FINISHED"
    except BaseException as error:
        status = "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"
        run.tags["sama.error"] = f"{type(error).__name__}: {tracking_store.first_line(error)}"
        raise
    finally:
        if where is not None:
            _end(where, known or _start(where, step, params, None, started), run, status)


def _start(
    where: Place, step: str, params: Mapping[str, Any] | None, run_id: str | None, started: Callable[[str], None] | None
) -> str | None:
    try:
        if run_id is None or not tracking_store.resume_run(where.uri, run_id):
            run_id = tracking_store.start_run(where.uri, where.experiment, step, where.parent, params=params)
    except TrackingError as error:
        say(f"tracking: {error}; going on without")
        return None
    if started is not None:
        started(run_id)
    return run_id


def _end(where: Place, run_id: str | None, run: StageRun, status: str) -> None:
    if run_id is None:
        return
    files = [f for f in run.artifacts if storage.exists(f)]
    try:
        tracking_store.finish(where.uri, run_id, status, run.tags, files, run.metrics)
    except TrackingError as error:
        say(f"tracking: {error}; this step is not in MLflow")
