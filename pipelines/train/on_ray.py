"""What runs inside Ray: on its controller (data, deaths) and on the workers. Importing this file imports no torch."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from pipelines.config import LoaderSettings
from pipelines.samples import storage
from pipelines.train import folders
from pipelines.train.failures import Failures, GivenUpError
from pipelines.train.job import Job
from pipelines.train.notices import Notices, StoppedError
from pipelines.train.prefetch import Ahead
from pipelines.train.records import METRICS, add_event, whole_lines

if TYPE_CHECKING:
    import ray.data
    import ray.train

DATA = "plan"  # name of the dataset that the workers share


def nothing() -> ray.data.Dataset:
    """Stands where Ray wants a dataset before it knows how many workers there will be."""
    import ray.data

    return ray.data.range(1)


def rest_of(
    run: str, plan: str, micro_batch: dict[str, int], loader: LoaderSettings, sequence: int = 1
) -> ray.train.DataConfig:
    """Gives the workers all steps behind the newest checkpoint, at every start of the worker group, for as many
    workers as it then has. sequence: workers that share one micro-batch."""
    from pipelines.loading.ray_loader import PlanSplit

    class Rest(PlanSplit):
        def configure(self, datasets: Any, world_size: int, *args: Any, **kwargs: Any) -> list[dict]:
            from pipelines.config import MicroBatch as Sizes
            from pipelines.loading.ray_loader import dataset
            from pipelines.mixture import BatchPlan

            start, steps = folders.newest_step(run) or 0, BatchPlan.open(plan).steps
            rows = dataset(plan, world_size // sequence, Sizes(**micro_batch), start, steps, loader)
            return super().configure({DATA: rows}, world_size, *args, **kwargs)

    return Rest(sequence)


def on_worker(told: dict[str, Any]) -> int:
    """What every training worker runs."""
    import ray.train

    from pipelines.encode.text import Announcer
    from pipelines.loading.ray_loader import iterate

    text = Announcer([ray.get_actor(name) for name in told["text_actors"]])
    shard = ray.train.get_dataset_shard(DATA)
    # the loader starts while torch is being imported
    rows: Iterator = iter(())  # only leaders of a group read
    if shard is not None:
        rows = iterate(shard, told["stall_warning_s"], stall_log(told["job"]["run"]))
    batches = Ahead(lambda: text.watch(rows))
    from pipelines.train.worker import work

    try:
        return work(Job(**told["job"]), lambda plan, world, step: batches, Notices(leaving=leaving), text)
    except StoppedError as stopped:  # an end in good order: nothing to try again
        return stopped.step
    finally:
        batches.close()


def stall_log(run: str) -> Callable[[str, str], None]:
    """Writes what the loader's watchdog found to the run folder: the sentence as an event, the rest as a file."""

    def write(sentence: str, dump: str) -> None:
        name = f"loader-stall-{time.time():.0f}-{socket.gethostname()}-{os.getpid()}.txt"
        storage.write_bytes(storage.join(run, name), dump)
        add_event(run, "stall", f"{sentence} ({name})")

    return write


def leaving() -> str | None:
    """The machines of this worker group that Ray knows will be taken away; every rank calls it."""
    import ray.train

    info = ray.train.get_preemption_info()
    if info is None:
        return None
    ranks = ", ".join(str(r) for r in info.preempted_ranks)
    return f"the machine of rank{'s' if len(info.preempted_ranks) > 1 else ''} {ranks}"


def restart_log(run: str) -> Any:
    """A callback for Ray's controller: every death of a worker becomes an event of the run, and ends it when it makes
    no sense to try again."""
    import ray.train

    class RestartLog(ray.train.UserCallback):
        def __init__(self) -> None:
            self.failures = Failures()

        def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
            rows = whole_lines(f"{run}/{METRICS}")
            cause, again = self.failures.judge(worker_exceptions, rows[-1]["step"] + 1 if rows else 0)
            if not again:  # raised here, it ends the run: Ray would count it as one failure of several
                raise GivenUpError(cause)
            lost = [e for e in worker_exceptions.values() if "node" in type(e).__name__.lower()]
            ranks = ", ".join(str(r) for r in sorted(worker_exceptions))
            step = folders.newest_step(run) or 0
            message = f"ranks {ranks} failed, going on from step {step}: {cause}"
            add_event(run, "node_lost" if lost else "restart", message, step, socket.gethostname())

    return RestartLog()
