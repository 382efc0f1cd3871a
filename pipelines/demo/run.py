"""The demo's steps, in the data's order. Each can be killed and run again; finished work is kept.

world or clips -> ingest -> curate -> select -> Stage 0 -> Stage 1 -> edit -> report
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from pipelines import config, tracking, tracking_stage
from pipelines.config import Settings, TrackingSettings
from pipelines.demo.settings import DemoSettings
from pipelines.progress import duration, say
from pipelines.samples import storage
from sama.errors import InputError
from sama.presets import get_preset

T = TypeVar("T")
SELECTION = "demo"
EXPERIMENT = "sama-demo"
STAGES = ("stage0", "stage1")


@dataclass(frozen=True)
class Places:
    """Where the demo keeps things below its folder."""

    out: Path

    @property
    def world(self) -> Path:
        return self.out / "world"

    @property
    def root(self) -> Path:
        return self.out / "data"

    @property
    def edits(self) -> Path:
        return self.out / "edits"

    @property
    def report(self) -> Path:
        return self.out / "report.html"

    @property
    def state(self) -> Path:
        return self.out / "demo.json"

    @property
    def store(self) -> str:
        return f"sqlite:///{self.out / 'mlflow.db'}"

    def run(self, stage: str) -> Path:
        return self.out / "runs" / stage


def run_demo(out: str, clips: str | None, settings: DemoSettings) -> None:
    """All steps. InputError when `out` belongs to a demo with other settings."""
    from pipelines.cluster_session import connect

    began = time.monotonic()
    get_preset(settings.preset)
    places = Places(Path(storage.absolute(out)))
    if clips is not None and not storage.exists(storage.join(clips, "manifest.jsonl")):
        raise InputError(f"{clips} holds no manifest.jsonl: --clips wants a folder with one row per pair or clip")
    parent = _open_folder(places, clips, settings)
    status = "FAILED"
    try:
        clock = Clock(places.out / "timings.jsonl")
        clock.step("start Ray", lambda: connect(settings.ray))
        sources = clock.step("make the world", lambda: _sources(places, clips, settings))
        clock.step("ingest", lambda: _ingest(places, sources, settings))
        clock.step("curate", lambda: _curate(places, parent))
        clock.step("select", lambda: _select(places, parent))
        for stage in STAGES:
            clock.step(f"train {stage}", partial(_train, places, stage, clips, settings, parent))
        clock.step("edit", lambda: _edit(places, settings))
        clock.step("report", lambda: _report(places, parent))
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        _finish(places, parent, status)
    _say_where(places, time.monotonic() - began)


class Clock:
    """Says what begins, and writes how long each step took: a line per step in timings.jsonl."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.file.write_text("")

    def step(self, name: str, work: Callable[[], T]) -> T:
        say(f"== {name}")
        began = time.monotonic()
        result = work()
        seconds = time.monotonic() - began
        with self.file.open("a") as lines:
            lines.write(json.dumps({"step": name, "seconds": round(seconds, 2)}) + "\n")
        say(f"   {name} took {duration(seconds)}")
        return result


def _open_folder(places: Places, clips: str | None, settings: DemoSettings) -> str | None:
    """Make the folder or recognise our own; the id of its parent run in MLflow (None when tracking is away)."""
    wanted = {"clips": storage.absolute(clips) if clips else None, "settings": settings.model_dump(mode="json")}
    state: dict[str, Any] = {}
    if places.state.exists():
        state = json.loads(places.state.read_text())
        changed = [k for k in wanted if state.get(k) != wanted[k]]
        if changed:
            raise InputError(f"{places.out} holds a demo with other {' and '.join(changed)}: choose another --out")
    elif places.out.exists() and any(places.out.iterdir()):
        raise InputError(f"{places.out} is not empty and not a demo's folder: choose another --out")
    places.out.mkdir(parents=True, exist_ok=True)
    run_id = state.get("mlflow_run_id")
    try:
        if run_id is None or not tracking.resume_run(places.store, run_id):
            params = config.flatten(settings.model_dump(mode="json"))
            run_id = tracking.start_run(places.store, EXPERIMENT, places.out.name, params=params)
    except tracking.TrackingError as error:
        say(f"tracking: {error}; going on without")
    found = {"mlflow_run_id": run_id, "children": state.get("children", {})}
    storage.write_bytes(places.state, json.dumps({**wanted, **found}, indent=1))
    return run_id


def _sources(places: Places, clips: str | None, settings: DemoSettings) -> list[tuple[str, str]]:
    """(dataset, folder) of everything to ingest."""
    if clips is not None:
        return [("clips", storage.absolute(clips))]
    from pipelines.demo.datasets import Sizes, write_world

    counts = settings.world.model_dump()
    seed = counts.pop("seed")
    return [(name, made["folder"]) for name, made in write_world(str(places.world), seed, Sizes(**counts)).items()]


def _ingest(places: Places, sources: list[tuple[str, str]], settings: DemoSettings) -> None:
    from pipelines.ingest.ingest import ingest

    for dataset, folder in sources:
        ingest(dataset, folder, str(places.root), heldout_share=settings.heldout_share)


def _curate(places: Places, parent: str | None) -> None:
    from pipelines.curate import tracked
    from pipelines.curate.curate import curate

    with _child(places, "curate", parent) as log:
        tracked.curation(log, str(places.root), curate(str(places.root)))


def _select(places: Places, parent: str | None) -> None:
    from pipelines.curate import tracked
    from pipelines.curate.select import select
    from pipelines.curate.summary import funnel

    with _child(places, "select", parent) as log:
        summary = select(str(places.root), SELECTION)
        say(funnel(summary))
        tracked.selection(log, str(places.root), SELECTION, summary)


def _train(places: Places, stage: str, clips: str | None, settings: DemoSettings, parent: str | None) -> None:
    from pipelines.mixture.mixture import load_mixture
    from pipelines.train.launch import train

    steps = settings.stage0_steps if stage == "stage0" else settings.stage1_steps
    recipe = config.recipe(f"demo-{'clips-' if clips else ''}{stage}.yaml")
    mixture = places.out / "mixtures" / f"{stage}.yaml"
    storage.write_bytes(mixture, config.dump(load_mixture(recipe, [f"steps={steps}"])))
    first = {} if stage == "stage0" else {"init_from": str(places.run("stage0"))}
    train(
        Settings(
            run=str(places.run(stage)),
            data=str(places.root),
            mixture=str(mixture),
            preset=settings.preset,
            train=settings.train.model_copy(update=first),
            loader=settings.loader,
            ray=settings.ray,
            tracking=TrackingSettings(uri=places.store, experiment=EXPERIMENT, parent_run=parent),
        )
    )


def _edit(places: Places, settings: DemoSettings) -> None:
    """Edit held-out clips with Stage 1's EMA weights; finished edits are kept."""
    from pipelines.edit.load import load_pipeline
    from pipelines.edit.run import edit_clip
    from sama.editing import EditSettings

    rows = held_out_edits(places, settings.edit.clips)
    if not rows:
        say("   no held-out video edit was kept: nothing to edit")
        return
    run = str(places.run("stage1"))
    loaded = load_pipeline(run=run)
    how = EditSettings(steps=settings.edit.steps, guidance=settings.edit.guidance, seed=settings.edit.seed)
    for row in rows:
        out = places.edits / f"{row['key']}.mp4"
        if out.with_suffix(".json").exists():
            continue
        clip = places.edits / "sources" / f"{row['key']}.mp4"
        storage.write_bytes(clip, storage.read_range(row["source_uri"], row["source_offset"], row["source_size"]))
        facts = {"key": row["key"], "category": row["category"], "run": run}
        edit_clip(loaded, str(clip), [row["instruction"]], str(out), how, max_frames=loaded.window, facts=facts)


def held_out_edits(places: Places, count: int) -> list[dict[str, Any]]:
    """Up to `count` held-out video edits that the selection kept, of as many categories as there are."""
    from pipelines.curate.select import read_selection
    from pipelines.samples.index import read_index

    kept = {
        key
        for key, decision in zip(
            *(read_selection(str(places.root), SELECTION).column(c).to_pylist() for c in ("key", "decision")),
            strict=True,
        )
        if decision == "kept"
    }
    columns = ["key", "kind", "category", "split", "instruction", "source_uri", "source_offset", "source_size"]
    rows = [
        row
        for row in sorted(read_index(str(places.root), columns=columns).to_pylist(), key=lambda r: r["key"])
        if row["key"] in kept and row["split"] == "heldout" and row["kind"] == "video_edit"
    ]
    seen: dict[str, int] = {}
    for row in rows:  # the first of every category, then the second of every category, ...
        seen[row["category"]] = row["turn"] = seen.get(row["category"], 0) + 1
    return sorted(rows, key=lambda r: (r["turn"], r["key"]))[:count]


def _report(places: Places, parent: str | None) -> None:
    from pipelines.curate import tracked
    from pipelines.report.build import build

    runs = [str(places.run(stage)) for stage in STAGES]
    edits = str(places.edits) if places.edits.exists() else None
    with _child(places, "report", parent) as log:
        page = build(str(places.root), runs, str(places.report), SELECTION, edits_folder=edits, title="SAMA demo")
        log.artifacts.append(page)
        tracked.book(log, str(places.root))


def _child(places: Places, name: str, parent: str | None) -> contextlib.AbstractContextManager[tracking_stage.StageRun]:
    """A child run in MLflow around a step; the same run when it is done again."""
    if parent is None:
        return tracking_stage.stage_run(None, name)

    def remember(run_id: str) -> None:
        state = json.loads(places.state.read_text())
        state["children"][name] = run_id
        storage.write_bytes(places.state, json.dumps(state, indent=1))

    known = json.loads(places.state.read_text())["children"].get(name)
    where = tracking_stage.Place(places.store, EXPERIMENT, parent)
    return tracking_stage.stage_run(where, name, {"root": str(places.root)}, known, remember)


def _finish(places: Places, parent: str | None, status: str) -> None:
    if parent is None:
        return
    kept = [str(p) for p in (places.report, places.out / "timings.jsonl") if p.exists()]
    edits = sorted(str(p) for p in places.edits.glob("*") if p.suffix in (".mp4", ".png", ".json"))
    try:
        tracking.finish(places.store, parent, status, artifacts=[*kept, *edits])
    except tracking.TrackingError as error:
        say(f"tracking: {error}")


def _say_where(places: Places, seconds: float) -> None:
    edits = sorted(places.edits.glob("*.mp4"))
    say(f"\nThe whole way took {duration(seconds)}.")
    say(f"report        {places.report}")
    for edit in edits:
        say(f"edited clip   {edit}")
    say(f"MLflow store  {places.store}")
    say(f"look at it    {Path(sys.executable).with_name('mlflow')} ui --backend-store-uri {places.store}")
