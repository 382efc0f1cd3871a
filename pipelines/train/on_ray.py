"""What runs inside Ray: on its controller (data, deaths) and on the workers. Importing this file imports no torch."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

from pipelines.config import LoaderSettings
from pipelines.train import folders
from pipelines.train.job import Job
from pipelines.train.prefetch import Ahead
from pipelines.train.records import add_event

if TYPE_CHECKING:
    import ray.data

DATA = "plan"  # name of the dataset that the workers share


class Rest:
    """Makes the dataset of all steps behind the newest checkpoint; Ray calls it at every start of the worker group."""

    def __init__(self, run: str, plan: str, ranks: int, micro_batch: dict[str, int], loader: LoaderSettings) -> None:
        self.run, self.plan, self.ranks, self.micro_batch, self.loader = run, plan, ranks, micro_batch, loader

    def __call__(self) -> ray.data.Dataset:
        from pipelines.config import MicroBatch as Sizes
        from pipelines.loading.ray_loader import dataset
        from pipelines.mixture import BatchPlan

        start = folders.newest_step(self.run) or 0
        steps = BatchPlan.open(self.plan).steps
        return dataset(self.plan, self.ranks, Sizes(**self.micro_batch), start, steps, self.loader)


def on_worker(told: dict[str, Any]) -> int:
    """What every training worker runs."""
    import ray.train

    from pipelines.loading.ray_loader import iterate

    shard = ray.train.get_dataset_shard(DATA)
    batches = Ahead(lambda: iterate(shard, told["stall_warning_s"]))  # the loader starts while torch is being imported
    from pipelines.train.worker import work

    try:
        return work(Job(**told["job"]), lambda plan, world, step: batches)
    finally:
        batches.close()


def restart_log(run: str) -> Any:
    """A callback for Ray's controller: every death of a worker becomes an event of the run."""
    import ray.train

    class RestartLog(ray.train.UserCallback):
        def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
            lost = [e for e in worker_exceptions.values() if "node" in type(e).__name__.lower()]
            ranks = ", ".join(str(r) for r in sorted(worker_exceptions))
            real = [e for e in worker_exceptions.values() if not _is_consequence(e)]
            cause = sentence((real or list(worker_exceptions.values()))[0])
            step = folders.newest_step(run) or 0
            message = f"ranks {ranks} failed, going on from step {step}: {cause}"
            add_event(run, "node_lost" if lost else "restart", message, step, socket.gethostname())

    return RestartLog()


def first_error(error: BaseException) -> str:
    """The sentence behind a failed training: what the first worker raised that was not only another one's death."""
    failures = getattr(error, "worker_failures", None)
    if failures:
        ordered = sorted(failures.items())
        real = [(rank, e) for rank, e in ordered if not _is_consequence(e)]
        rank, found = (real or ordered)[0]
        return f"rank {rank}: {sentence(found)}"
    return sentence(getattr(error, "controller_failure", error))


def sentence(error: BaseException) -> str:
    while getattr(error, "cause", None) is not None:  # Ray wraps what a worker raised
        error = error.cause  # type: ignore[attr-defined]
    lines = [line for line in str(error).splitlines() if line.strip()]
    name = type(error).__name__
    # a traceback as text has its error in the last line
    text = lines[-1] if lines and lines[0].startswith(("Traceback", "\x1b", "ray::")) else (lines or [name])[0]
    return text if name in text else f"{name}: {text}"


def _is_consequence(error: BaseException) -> bool:
    """A rank that only noticed that another one is gone."""
    text = str(error).lower()
    return any(sign in text for sign in ("connection closed by peer", "connection reset", "broken pipe", "gloo"))
