"""Training on Ray: resource check, worker group, data, restarts, and the true end in MLflow."""

from __future__ import annotations

import os
import signal
import threading
from dataclasses import asdict
from types import FrameType

from pipelines import cluster_session
from pipelines.config import Settings
from pipelines.encode import actors as text_actors
from pipelines.planner.layout import check_heads, check_layout
from pipelines.progress import say
from pipelines.samples import storage
from pipelines.train import folders
from pipelines.train.failures import first_error
from pipelines.train.lines import Follower
from pipelines.train.notices import STOP, Notices, StoppedError, ask_to_stop
from pipelines.train.on_ray import DATA, nothing, on_worker, rest_of, restart_log
from pipelines.train.records import add_event
from pipelines.train.run_folder import Prepared, RunResult, conclude, prepare
from sama.errors import InputError
from sama.presets import get_preset

__all__ = ["RunResult", "StoppedError", "TrainingFailedError", "train"]

RAY_FOLDER = "ray"  # Ray Train's own files in the run folder; nothing of ours depends on them
ELASTIC_PATIENCE_S = 30.0  # longer than Ray's 20 s between two counts of the machines
CONTROLLER_FAILURES = 3  # a worker group that does not start is tried this often again, not for ever


class TrainingFailedError(Exception):
    """Training ended before its last step, after all restarts; the message is the first real error."""


def train(settings: Settings) -> RunResult:
    """Train the plan of a mixture to its end and return where it lies.

    The run folder decides where to begin: called again after any kind of death it goes on from the newest complete
    checkpoint, in the same MLflow run. InputError for what is wrong before the start, TrainingFailedError after it,
    StoppedError after SIGTERM: the workers finish their step, save and end.
    """
    prepared = prepare(settings, check=_check_cluster)
    job = prepared.job
    if prepared.done:
        say(f"{job.run} has done all its {prepared.steps} steps")
        return conclude(prepared, "FINISHED")
    local, notices = "://" not in job.run, Notices()
    try:
        if local:  # the driver follows the files and says each step without Ray's prefix
            with Follower(job.run, prepared.steps):
                _fit(prepared, notices, print_lines=False)
        else:
            _fit(prepared, notices, print_lines=True)
        reached = folders.newest_step(job.run) or 0
        if reached < prepared.steps:
            if notices.stop.is_set():
                raise StoppedError(reached)
            raise TrainingFailedError(f"the workers ended at step {reached} of {prepared.steps}")
    except StoppedError as stop:
        add_event(job.run, "stopped", str(stop), stop.step)
        conclude(prepared, "KILLED")
        raise
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
        storage.remove(storage.join(job.run, STOP))
    return conclude(prepared, "FINISHED")


def _check_cluster(settings: Settings) -> None:
    cluster_session.connect(settings.ray)
    check_resources(settings)
    check_loader(settings)


def check_loader(settings: Settings) -> None:
    """InputError with the numbers when the loader's rows do not fit into the object store, or no CPU is left for it."""
    import ray

    from pipelines.loading.room import check_room
    from pipelines.mixture.mixture import load_mixture

    how, total = settings.train, ray.cluster_resources()
    ranks = max(1, how.least_workers // how.sequence_parallel)
    left = total.get("CPU", 0.0) - how.least_workers * how.cpus_per_worker
    mixture = load_mixture(settings.mixture)
    check_room(mixture, how.micro_batch, ranks, settings.loader, total.get("object_store_memory", 0.0), left)


def check_resources(settings: Settings) -> None:
    """InputError with the numbers when workers and loader do not fit: Ray would wait for ever without a word.

    Training workers take their CPUs for good, and come first; the loader's tasks need what is left.
    """
    import ray

    how, total = settings.train, ray.cluster_resources()
    cpus, gpus = total.get("CPU", 0.0), total.get("GPU", 0.0)
    text_cpus, text_gpus, texts = text_actors.needs(settings.text)
    loader = max(1.0, settings.loader.decode_cpus)
    count = how.least_workers
    if how.most_workers > count and (how.sequence_parallel > 1 or how.hsdp_replicas > 1):
        raise InputError(
            f"train.workers from {count} to {how.most_workers}: a number in between may not divide into "
            "train.sequence_parallel groups and train.hsdp_replicas; give one number of workers"
        )
    check_heads(get_preset(settings.preset).transformer["num_attention_heads"], how.sequence_parallel)
    check_layout(count, how.hsdp_replicas, how.sequence_parallel)
    needed = count * how.cpus_per_worker + loader + text_cpus
    workers = f"{count} training worker{'s' if count > 1 else ''}{texts}"
    if needed > cpus:
        raise InputError(
            f"{workers} and 1 dataset need {needed:g} CPUs, this cluster has {cpus:g}: "
            "lower train.workers or train.cpus_per_worker"
        )
    if count * how.gpus_per_worker + text_gpus > gpus:
        raise InputError(
            f"{workers} need {count * how.gpus_per_worker + text_gpus:g} GPUs, this cluster has {gpus:g}: "
            "lower train.workers or train.gpus_per_worker"
        )
    nodes = [n["Resources"] for n in ray.nodes() if n["Alive"]]
    if not any(n.get("CPU", 0) >= how.cpus_per_worker and n.get("GPU", 0) >= how.gpus_per_worker for n in nodes):
        raise InputError(
            f"no node of this cluster has the {how.cpus_per_worker:g} CPUs and {how.gpus_per_worker:g} GPUs "
            "of one training worker"
        )


def _workers(settings: Settings) -> int | tuple[int, int]:
    """For Ray: how many workers, or the least and the most. On CPUs alone no more than leave the loader its own: Ray
    would grow the group until there is none."""
    import ray

    how = settings.train
    if isinstance(how.workers, int):
        return how.workers
    if how.gpus_per_worker > 0:
        return how.workers
    spare = ray.cluster_resources().get("CPU", 0.0) - max(1.0, settings.loader.decode_cpus)
    return how.least_workers, max(how.least_workers, min(how.most_workers, int(spare / how.cpus_per_worker)))


def _fit(prepared: Prepared, notices: Notices, print_lines: bool) -> None:
    patience = prepared.settings.ray.start_timeout_s
    if not isinstance(prepared.settings.train.workers, int):
        # just after a machine died Ray still counts its workers in: it waits for them in vain, then counts again
        patience = min(patience, ELASTIC_PATIENCE_S)
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    settings, job = prepared.settings, prepared.job
    how = settings.train
    use_gpu = how.gpus_per_worker > 0
    resources: dict[str, float] = {"CPU": how.cpus_per_worker}
    if use_gpu:
        resources["GPU"] = how.gpus_per_worker
    # restarts of the worker group find the same actors; they end with the last reference to them
    _actors, names = text_actors.start(settings)
    trainer = TorchTrainer(
        on_worker,
        train_loop_config={
            "job": {**asdict(job), "print_lines": print_lines},
            "stall_warning_s": settings.loader.stall_warning_s,
            "text_actors": names,
        },
        torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if use_gpu else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=_workers(settings), use_gpu=use_gpu, resources_per_worker=resources, placement_strategy="PACK"
        ),
        datasets={DATA: nothing},
        dataset_config=rest_of(job.run, job.plan, how.micro_batch.model_dump(), settings.loader, how.sequence_parallel),
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
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)} if on_main else {}

    def stop(number: int, frame: FrameType | None) -> None:
        say("SIGTERM: the workers finish their step and save; a second one ends at once")
        notices.stop.set()
        signal.signal(signal.SIGTERM, before[signal.SIGTERM])
        ask_to_stop(job.run, job.holder)

    if on_main:
        signal.signal(signal.SIGTERM, stop)
    # told to the controller when it is started; another training of this process has its own
    told = {
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # also how soon a death is noticed
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": str(patience),
    }
    told = {name: value for name, value in told.items() if name not in os.environ}
    os.environ.update(told)
    try:
        trainer.fit()
    finally:
        for name in told:
            del os.environ[name]
        for number, handler in before.items():
            signal.signal(number, handler)
