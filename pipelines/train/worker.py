"""One training worker: builds model, optimizer and callbacks, goes on from the newest checkpoint, runs the loop.

The same function runs under Ray Train, under torchrun and in one process; only where batches come from differs. It may
run on a thread that is not the main one and in another working directory: all paths are absolute.
"""

from __future__ import annotations

import contextlib
import functools
import os
import socket
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch

from pipelines import config
from pipelines.config import Settings, TrainSettings
from pipelines.encode.parts import precision, sources
from pipelines.samples import storage
from pipelines.train import checkpoint, frozen, parallel, parallel_model, state
from pipelines.train.callbacks import Book, Checkpoints, Substitutes
from pipelines.train.ema import Ema
from pipelines.train.encode import BatchEncoder, build_encoder
from pipelines.train.heldout import HeldoutLoss, readable
from pipelines.train.job import Job
from pipelines.train.loop import Callback, Parts, train
from pipelines.train.machines import Machines
from pipelines.train.notices import Notices, StoppedError, Watcher
from pipelines.train.optimizers import build_optimizer
from pipelines.train.parallel import World
from pipelines.train.parallel_batch import GroupEncoder, SharedBatches
from pipelines.train.records import METRICS, add_event, read_rows
from pipelines.train.run_folder import TRACKER_GRACE_S
from pipelines.train.strips import Strips
from sama.checkpoints import from_t2v, transformer_config
from sama.encoders import Encoders
from sama.objective import TimestepSampler
from sama.presets import get_preset
from sama.transformer import SamaTransformer

if TYPE_CHECKING:
    from pipelines.encode.text import Announcer
    from pipelines.loading import MicroBatch
    from pipelines.mixture import BatchPlan
    from pipelines.tracking import Tracker

FAILED_GRACE_S = 5.0  # as run_folder.TRACKER_GRACE_S, when a step has failed
SAVE_GRACE_S = 120.0  # for a checkpoint that is being written when a step fails


def work(
    job: Job,
    batches_of: Callable[[BatchPlan, World, int], Iterator[MicroBatch]],
    notices: Notices | None = None,
    text: Announcer | None = None,
) -> int:
    """Train until the plan's end; the number of steps done in all. Every rank calls it.

    batches_of(plan, world, step) gives this data rank's micro-batches from `step` on; only leaders of a sequence group
    call it. text: announces coming prompts. StoppedError where `notices` asked
    for an early end. Any other error carries the step that it happened in as `training_step`.
    """
    from pipelines.mixture import BatchPlan

    settings = config.validate(Settings, job.settings, "the settings")
    torch.set_num_threads(settings.train.threads_per_worker)
    world = parallel.join(replicas=settings.train.hsdp_replicas, sequence=settings.train.sequence_parallel)
    checkpoint.check_lease(job.run, job.holder)
    plan = BatchPlan.open(job.plan)
    newest = world.agree(checkpoint.newest_step(job.run) if world.first else None)
    batches = SharedBatches(batches_of(plan, world, newest or 0) if world.leader else None, world)
    parts, encoders = assemble(settings, plan, world, newest is None, text)
    if newest is not None:
        _check_state(state.restore(parts, newest), job)
    elif settings.train.init_from:
        origin = storage.absolute(settings.train.init_from)
        state.start_from_ema(parts, origin, world.agree(checkpoint.newest_step(origin) or 0))
    if newest is None:
        frozen.keep(job.run, parts.model, job.holder)
    _tell_start(job, parts, newest)

    notices = notices or Notices()
    with contextlib.ExitStack() as at_end:  # closed in the opposite order, also after an error
        tracker = _tracker(job, parts) if world.first else None
        if tracker is not None:
            at_end.push(functools.partial(_close_tracker, tracker))
        book = Book(job.run, parts.progress.step, tracker, job.print_lines) if world.first else None
        if book is not None:
            at_end.callback(book.file.close)
        if world.first:
            at_end.callback(Watcher(job.run, job.holder, notices).close)
        callbacks = _callbacks(job, settings, plan, parts, encoders, book, tracker, notices)
        try:
            train(parts, batches, callbacks)
        except StoppedError:
            pass
        except BaseException as error:
            error.training_step = parts.progress.step  # type: ignore[attr-defined]
            callbacks[-1].abandon(SAVE_GRACE_S)  # type: ignore[attr-defined]
            raise
        for callback in callbacks:
            if isinstance(callback, Strips | Checkpoints):
                callback.close()
    world.barrier()
    if parts.progress.step < parts.steps:
        raise StoppedError(parts.progress.step)
    return parts.progress.step


def _close_tracker(tracker: Tracker, kind: type | None, *_: object) -> None:
    tracker.close(TRACKER_GRACE_S if kind is None else FAILED_GRACE_S)


def _callbacks(
    job: Job,
    settings: Settings,
    plan: BatchPlan,
    parts: Parts,
    encoders: Encoders,
    book: Book | None,
    tracker: Tracker | None,
    notices: Notices,
) -> list[Callback]:
    """What happens after every step, in this order."""
    facts: dict[str, Any] = {
        "preset": settings.preset,
        "plan_digest": job.plan_digest,
        "mlflow_run_id": job.mlflow_run_id,
    }
    if settings.train.lora is not None:
        facts["lora"] = settings.train.lora.model_dump()
    items = readable(plan, settings.train.heldout_samples, parts.world)
    return [
        HeldoutLoss(plan, items, settings),
        Strips(plan, items, settings, encoders, tracker),
        Machines(settings.tracking.system_seconds),
        *([book] if book else []),
        Substitutes(parts),
        Checkpoints(book, facts, job.holder, parts, notices),
    ]


def assemble(
    settings: Settings, plan: BatchPlan, world: World, fresh: bool, text: Announcer | None = None
) -> tuple[Parts, Encoders]:
    """Model (sharded), EMA, optimizer, encoders and counters at zero. fresh: with start weights, else to be filled."""
    how = settings.train
    model = build_model(settings, world, fresh and not how.init_from)
    optimizer = build_optimizer(model, how)
    dtype = precision(how.precision, world.device.type)
    encoders = Encoders.from_preset(settings.preset, world.device, dtype, sources=sources(settings.weights))
    mixture = plan.mixture
    encode: BatchEncoder = build_encoder(settings, encoders, mixture.anchors.n, world, text)
    parts = Parts(
        run=storage.absolute(settings.run),
        settings=how,
        world=world,
        model=model,
        ema=Ema(model, how.ema_decay, "cpu" if how.ema_device == "cpu" else None),
        optimizer=optimizer,
        sampler=TimestepSampler(how.timesteps, how.shift),
        encode=GroupEncoder(encode, world) if world.sequence > 1 else encode,
        steps=plan.steps,
        tasks=task_names(mixture),
        loss_weight=mixture.loss_weight.model_dump(),
    )
    return parts, encoders


def build_model(settings: Settings, world: World, fresh: bool) -> SamaTransformer:
    """The transformer, sharded. Without start weights (a checkpoint will fill it) no rank ever holds it whole."""
    how: TrainSettings = settings.train
    preset = get_preset(settings.preset)
    if fresh:
        model = from_t2v(preset, settings.weights)
    else:
        with torch.device("meta"):
            model = SamaTransformer(**transformer_config(preset))
    with contextlib.nullcontext() if fresh else torch.device("meta"):
        frozen.apply(model, how.lora)
    model.train()
    parallel_model.parallelize(model, world, how)
    if not fresh:
        model.to_empty(device="cpu" if how.cpu_offload else world.device)
        model.reset_buffers(world.device)
    return model


def task_names(mixture: Any) -> list[str]:
    """All tasks that a slot of this mixture may have, in a fixed order."""
    from pipelines.mixture.mixture import EDIT

    video = mixture.streams.video
    return list(dict.fromkeys([EDIT, "none", *(sorted(video.pretext) if video is not None else [])]))


def _check_state(found: dict[str, Any], job: Job) -> None:
    if found["plan_digest"] != job.plan_digest:
        raise RuntimeError(f"the checkpoint in {job.run} belongs to plan {found['plan_digest']}, not {job.plan_digest}")


def _tell_start(job: Job, parts: Parts, newest: int | None) -> None:
    world = parts.world
    who = world.gather(f"{socket.gethostname()} pid {os.getpid()}")
    if world.first:
        begun = "from the start" if newest is None else f"from the checkpoint of step {newest}"
        places = ", ".join(f"rank {i} on {w}" for i, w in enumerate(who))
        add_event(
            job.run, "start", f"{begun}, {world.size} ranks on {world.device.type}: {places}", parts.progress.step
        )


def _tracker(job: Job, parts: Parts) -> Any:
    if job.tracking_uri is None or job.mlflow_run_id is None:
        return None
    from pipelines.tracking import Tracker

    # what a killed job did not send; rows from `next` on come from the loop
    rows = [r for r in read_rows(storage.join(job.run, METRICS)) if r["step"] < parts.progress.step]
    return Tracker(
        job.tracking_uri,
        job.mlflow_run_id,
        job.run,
        rows_after=lambda step: [r for r in rows if r["step"] > step],
        on_outage=lambda message: add_event(job.run, "tracking_outage", message),
    )
