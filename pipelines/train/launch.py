"""Training on Ray: resource check, worker group, data, restarts, and the true end in MLflow."""

from __future__ import annotations

import os
import signal
import threading
from dataclasses import asdict

from pipelines import cluster_session
from pipelines.config import Settings
from pipelines.progress import say
from pipelines.samples import storage
from pipelines.train import folders
from pipelines.train.lines import Follower
from pipelines.train.on_ray import DATA, Rest, first_error, on_worker, restart_log
from pipelines.train.records import add_event
from pipelines.train.run_folder import Prepared, RunResult, conclude, prepare
from sama.errors import InputError

__all__ = ["RunResult", "TrainingFailedError", "train"]

RAY_FOLDER = "ray"  # Ray Train's own files in the run folder; nothing of ours depends on them
CONTROLLER_FAILURES = 3  # a worker group that does not start is tried this often again, not for ever


class TrainingFailedError(Exception):
    """Training ended before its last step, after all restarts; the message is the first real error."""


def train(settings: Settings) -> RunResult:
    """Train the plan of a mixture to its end and return where it lies.

    The run folder decides where to begin: called again after any kind of death it goes on from the newest complete
    checkpoint, in the same MLflow run. InputError for what is wrong before the start, TrainingFailedError after it.
    """
    prepared = prepare(settings, check=_check_cluster)
    job = prepared.job
    if prepared.done:
        say(f"{job.run} has done all its {prepared.steps} steps")
        return conclude(prepared, "FINISHED")
    local = "://" not in job.run
    try:
        if local:  # the driver follows the files and says each step without Ray's prefix
            with Follower(job.run, prepared.steps):
                _fit(prepared, print_lines=False)
        else:
            _fit(prepared, print_lines=True)
        reached = folders.newest_step(job.run) or 0
        if reached < prepared.steps:
            raise TrainingFailedError(f"the workers ended at step {reached} of {prepared.steps}")
    except (KeyboardInterrupt, SystemExit):  # Ray turns Ctrl-C into SystemExit(0)
        stopped = conclude(prepared, "KILLED")
        say(f"stopped; the same command goes on from the checkpoint of step {stopped.final_step}")
        raise KeyboardInterrupt from None
    except Exception as error:
        message = first_error(error)
        add_event(job.run, "failed", message, folders.newest_step(job.run))
        conclude(prepared, "FAILED")
        if isinstance(error, TrainingFailedError):
            raise
        raise TrainingFailedError(message) from error
    finally:
        storage.remove(storage.join(job.run, RAY_FOLDER))
    return conclude(prepared, "FINISHED")


def _check_cluster(settings: Settings) -> None:
    cluster_session.connect(settings.ray)
    check_resources(settings)


def check_resources(settings: Settings) -> None:
    """InputError with the numbers when workers and loader do not fit: Ray would wait for ever without a word.

    Training workers take their CPUs for good, and come first; the loader's tasks need what is left.
    """
    import ray

    how, total = settings.train, ray.cluster_resources()
    cpus, gpus = total.get("CPU", 0.0), total.get("GPU", 0.0)
    loader = max(1.0, settings.loader.decode_cpus)
    needed = how.workers * how.cpus_per_worker + loader
    workers = f"{how.workers} training worker{'s' if how.workers > 1 else ''}"
    if needed > cpus:
        raise InputError(
            f"{workers} and 1 dataset need {needed:g} CPUs, this cluster has {cpus:g}: "
            "lower train.workers or train.cpus_per_worker"
        )
    if how.workers * how.gpus_per_worker > gpus:
        raise InputError(
            f"{workers} need {how.workers * how.gpus_per_worker:g} GPUs, this cluster has {gpus:g}: "
            "lower train.workers or train.gpus_per_worker"
        )
    nodes = [n["Resources"] for n in ray.nodes() if n["Alive"]]
    if not any(n.get("CPU", 0) >= how.cpus_per_worker and n.get("GPU", 0) >= how.gpus_per_worker for n in nodes):
        raise InputError(
            f"no node of this cluster has the {how.cpus_per_worker:g} CPUs and {how.gpus_per_worker:g} GPUs "
            "of one training worker"
        )


def _fit(prepared: Prepared, print_lines: bool) -> None:
    for name, value in {
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # also how soon a death is noticed
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": str(prepared.settings.ray.start_timeout_s),
    }.items():
        os.environ.setdefault(name, value)
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    from pipelines.loading.ray_loader import PlanSplit

    settings, job = prepared.settings, prepared.job
    how = settings.train
    use_gpu = how.gpus_per_worker > 0
    resources: dict[str, float] = {"CPU": how.cpus_per_worker}
    if use_gpu:
        resources["GPU"] = how.gpus_per_worker
    trainer = TorchTrainer(
        on_worker,
        train_loop_config={
            "job": {**asdict(job), "print_lines": print_lines},
            "stall_warning_s": settings.loader.stall_warning_s,
        },
        torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if use_gpu else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=how.workers, use_gpu=use_gpu, resources_per_worker=resources, placement_strategy="PACK"
        ),
        datasets={DATA: Rest(job.run, job.plan, how.workers, how.micro_batch.model_dump(), settings.loader)},
        dataset_config=PlanSplit(),
        run_config=ray.train.RunConfig(
            # a new name each time: Ray's own record of checkpoints is not used, the run folder's is
            name=job.holder,
            storage_path=storage.join(job.run, RAY_FOLDER),
            failure_config=ray.train.FailureConfig(
                max_failures=how.max_restarts, controller_failure_limit=CONTROLLER_FAILURES
            ),
            callbacks=[restart_log(job.run)],
            worker_runtime_env={"env_vars": {"OMP_NUM_THREADS": str(how.threads_per_worker)}},
        ),
    )
    on_main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGINT) if on_main else None
    try:
        trainer.fit()
    finally:
        if on_main:
            signal.signal(signal.SIGINT, before)
