"""A run folder before and after training: what is checked, what is written, which MLflow run it belongs to."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipelines import config, tracking
from pipelines.config import Settings
from pipelines.encode import preflight
from pipelines.progress import say
from pipelines.samples import provenance, storage
from pipelines.train import folders
from pipelines.train.job import Job
from pipelines.train.records import METRICS, add_event, read_events, read_rows, restarts
from sama.errors import InputError
from sama.presets import get_preset

if TYPE_CHECKING:
    from pipelines.mixture import BatchPlan

TRACKER_GRACE_S = 60.0  # for what was not sent yet: the buffer on disk has it too
PLAN, CONFIG, TRACKING, PLAN_FOLDER = "plan.json", "config.yaml", "tracking.json", "plan"
LORA = tuple(f"train.lora{leaf}" for leaf in ("", ".rank", ".alpha", ".targets", ".whole"))
# settings that a run folder keeps for life; its data are fixed by the plan
FIXED = ("preset", "train.init_from", *LORA)


@dataclass(frozen=True)
class Prepared:
    """A run folder ready to train. done: all steps are in its newest checkpoint already."""

    job: Job
    settings: Settings
    steps: int
    started: str
    done: bool


@dataclass(frozen=True)
class RunResult:
    """What a finished training left. run: the folder; final_step: steps done in all."""

    run: str
    mlflow_run_id: str | None
    final_step: int


def prepare(settings: Settings, check: Callable[[Settings], None] | None = None) -> Prepared:
    """Check everything that can be checked without a worker, write the run folder, create or continue the MLflow run.

    check: one more check (of the cluster, say), made last and only if there are steps to do.
    InputError: unknown preset, a run folder that belongs to another plan (names what differs), a missing init_from,
    or what `check` says. Nothing is written then.
    """
    from pipelines.mixture import BatchPlan

    started = provenance.now()
    settings = resolve(settings)
    get_preset(settings.preset)
    parent_run = _check_init(settings)
    plan = BatchPlan.from_file(settings.mixture, data=settings.data)
    description = describe(plan)
    _check_same(settings, description)

    run = settings.run
    done = (folders.newest_step(run) or 0) >= plan.steps
    if not done:
        preflight.check(settings, plan)
        if check is not None:
            check(settings)
    storage.make_folder(run)
    if not storage.exists(storage.join(run, PLAN)):
        plan.save(storage.join(run, PLAN_FOLDER))
        storage.write_bytes(storage.join(run, PLAN), json.dumps(description, indent=1))
    _tell_changes(settings)
    storage.write_bytes(storage.join(run, CONFIG), config.dump(settings))
    holder = uuid.uuid4().hex
    folders.take_lease(run, holder)
    uri, run_id = _tracked(settings, plan, parent_run, done)
    job = Job(
        run=run,
        plan=storage.join(run, PLAN_FOLDER),
        plan_digest=plan.digest,
        settings=settings.model_dump(mode="json"),
        holder=holder,
        tracking_uri=uri,
        mlflow_run_id=run_id,
    )
    _record(job, {}, started, None)
    return Prepared(job, settings, plan.steps, started, done)


def conclude(prepared: Prepared, status: str) -> RunResult:
    """End the MLflow run with its true status, write provenance. status: FINISHED, FAILED or KILLED."""
    job = prepared.job
    step = folders.newest_step(job.run) or 0
    again = restarts(read_events(job.run))
    counts = {"steps": step, "restarts": again, "status": status}
    _record(job, counts, prepared.started, provenance.now())
    if job.tracking_uri and job.mlflow_run_id:
        files = [storage.join(job.run, name) for name in (CONFIG, PLAN)]
        try:
            _send_rest(prepared)
            tracking.finish(job.tracking_uri, job.mlflow_run_id, status, {"sama.restarts": str(again)}, files)
            if status == "FINISHED" and prepared.settings.tracking.register_as:
                _register(prepared)
        except tracking.TrackingError as error:
            _outage(job.run, str(error))
    return RunResult(job.run, job.mlflow_run_id, step)


def _send_rest(prepared: Prepared) -> None:
    """Send what the workers could not, because the store was away until they ended. TrackingError when it still is."""
    job = prepared.job
    if not (prepared.done or storage.exists(storage.join(job.run, tracking.BUFFER))):
        return
    assert job.tracking_uri is not None
    assert job.mlflow_run_id is not None
    rows = list(read_rows(storage.join(job.run, METRICS)))
    rest = tracking.Tracker(
        job.tracking_uri, job.mlflow_run_id, job.run, lambda step: [r for r in rows if r["step"] > step]
    )
    if not rest.close(TRACKER_GRACE_S):
        raise tracking.TrackingError("the tracking store does not answer; the same command sends what waits for it")


def _register(prepared: Prepared) -> None:
    """The final checkpoint and the best one become versions of the registered model, once."""
    job, how = prepared.job, prepared.settings.tracking
    assert job.tracking_uri is not None
    assert job.mlflow_run_id is not None
    assert how.register_as is not None
    steps = folders.complete_steps(job.run)
    roles: dict[int, list[str]] = {steps[-1]: ["final"]}
    for step in folders.best_steps(job.run, steps)[:1]:
        roles.setdefault(step, []).append("best")
    summary = json.loads(storage.read_bytes(storage.join(job.run, PLAN)))["summary"]
    init = prepared.settings.train.init_from
    for step, names in sorted(roles.items()):
        state = folders.read_state(job.run, step)
        tags = {
            "sama.step": str(step),
            "sama.plan_digest": job.plan_digest,
            "sama.preset": state["preset"],
            "sama.datasets": json.dumps(sorted(shares_of(summary))),
            "sama.heldout_loss": str(state.get("heldout_loss")),
            "sama.init_run": init or "",
            "sama.init_run_id": ((_read_tracking(init) or {}).get("run_id") if init else "") or "",
        }
        source = folders.folder_of(job.run, step)
        tracking.register(job.tracking_uri, job.mlflow_run_id, how.register_as, source, tags, names)


def _record(job: Job, counts: dict[str, Any], started: str, ended: str | None) -> None:
    provenance.record(job.run, "train", job.settings, counts, {"plan": job.plan_digest}, started, ended)


def resolve(settings: Settings) -> Settings:
    """Every path absolute: workers have other working directories."""
    train = settings.train
    if train.init_from:
        train = train.model_copy(update={"init_from": storage.absolute(train.init_from)})
    weights = settings.weights
    if weights and storage.is_folder(weights):
        weights = storage.absolute(weights)
    text, latents = (
        part.model_copy(update={"cache": storage.absolute(part.cache)}) if part.cache else part
        for part in (settings.text, settings.latents)
    )
    return settings.model_copy(
        update={
            "text": text,
            "latents": latents,
            "run": storage.absolute(settings.run),
            "data": storage.absolute(settings.data),
            "mixture": config.recipe(settings.mixture),
            "weights": weights,
            "train": train,
        }
    )


def describe(plan: BatchPlan) -> dict[str, Any]:
    """plan.json: what a run folder was made for, and its counts."""
    facts = {k: v for k, v in plan.facts.items() if k not in ("groups", "group_counts")}  # in the plan's folder
    return {**facts, "steps": plan.steps, "summary": plan.summary()}


def _check_same(settings: Settings, description: dict[str, Any]) -> None:
    run = settings.run
    if storage.exists(run) and not storage.is_folder(run):
        raise InputError(f"{run} is a file, not a run folder")
    if storage.exists(storage.join(run, PLAN)):
        from pipelines.mixture.saved import difference

        found = difference(json.loads(storage.read_bytes(storage.join(run, PLAN))), description)
        if found:
            raise InputError(f"{run} belongs to another plan: {found}; choose another run folder")
    before = _config_before(run)
    now = config.flatten(settings.model_dump(mode="json"))
    for key in FIXED:
        if before and before.get(key) != now.get(key):
            raise InputError(
                f"{run} was made with {key} {before.get(key)}, now it is {now.get(key)}; choose another run folder"
            )


def _tell_changes(settings: Settings) -> None:
    """A run may go on with other settings, but not silently."""
    before, now = _config_before(settings.run), config.flatten(settings.model_dump(mode="json"))
    changes = [f"{k} {before[k]} -> {v}" for k, v in now.items() if before and k in before and before[k] != v]
    if changes:
        say(f"settings that changed since the last start: {', '.join(changes)}")


def _config_before(run: str) -> dict[str, Any]:
    uri = storage.join(run, CONFIG)
    if not storage.exists(uri):
        return {}
    import yaml

    return config.flatten(yaml.safe_load(storage.read_bytes(uri)))


def _check_init(settings: Settings) -> str | None:
    """The MLflow run behind init_from. InputError when it has no checkpoint or another preset."""
    origin = settings.train.init_from
    if not origin:
        return None
    if not storage.is_folder(origin):
        raise InputError(f"train.init_from: there is no run folder {origin}")
    newest = folders.newest_step(origin)
    if newest is None:
        raise InputError(f"train.init_from: {origin} has no checkpoint yet")
    state = folders.read_state(origin, newest)
    if state.get("lora"):
        raise InputError(
            f"train.init_from: {origin} was trained as LoRA; export it (sama export RUN --to official) and name the "
            "file as weights"
        )
    preset = state["preset"]
    if preset != settings.preset:
        raise InputError(f"train.init_from: {origin} has preset {preset}, this run has {settings.preset}")
    return (_read_tracking(origin) or {}).get("run_id")


def _tracked(settings: Settings, plan: BatchPlan, init_run: str | None, done: bool) -> tuple[str | None, str | None]:
    """(store, run id): the MLflow run of this folder, continued or new. Never fails for a store that is away."""
    how, run = settings.tracking, settings.run
    if not how.enabled:
        return None, None
    uri = tracking.store_uri(how.uri, run)
    before = _read_tracking(run)
    try:
        if before and before["uri"] == uri and (done or tracking.resume_run(uri, before["run_id"])):
            return uri, before["run_id"]
        tree = settings.model_dump(mode="json")
        shares = {f"mixture.share.{k}": round(v, 6) for k, v in shares_of(plan.summary()).items()}
        mixture = {f"mixture.{k}": v for k, v in config.flatten(plan.mixture.tree()).items()}
        tags = {
            "sama.stage": str(plan.mixture.stage),
            "sama.plan_digest": plan.digest,
            "sama.mixture_digest": plan.mixture.digest,
            "sama.selection_digests": json.dumps(plan.facts["selections"]),
            "sama.restarts": "0",
            **({"sama.init_run_id": init_run} if init_run else {}),
        }
        run_id = tracking.start_run(
            uri,
            how.experiment,
            run.rstrip("/").rsplit("/", 1)[-1],
            parent=how.parent_run,
            tags=tags,
            params={**config.flatten(tree), **shares, **mixture},
            datasets=dict.fromkeys(shares_of(plan.summary()), plan.digest),
        )
    except tracking.TrackingError as error:
        _outage(run, str(error))
        return uri, before["run_id"] if before and before["uri"] == uri else None
    storage.write_bytes(storage.join(run, TRACKING), json.dumps({"uri": uri, "run_id": run_id}))
    return uri, run_id


def shares_of(summary: Mapping[str, Any]) -> dict[str, float]:
    """Share of each dataset among the samples that a plan trains on."""
    seen = summary["dataset"]
    return {name: count / max(1, sum(seen.values())) for name, count in seen.items()}


def _read_tracking(run: str) -> dict[str, Any] | None:
    uri = storage.join(run, TRACKING)
    return json.loads(storage.read_bytes(uri)) if storage.exists(uri) else None


def _outage(run: str, message: str) -> None:
    say(f"tracking: {message}; training goes on without, metrics.jsonl has everything")
    add_event(run, "tracking_outage", message)
