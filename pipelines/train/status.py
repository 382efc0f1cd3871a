"""What a run folder tells about its run."""

from __future__ import annotations

import json
import time
from datetime import datetime

from pipelines.progress import duration
from pipelines.samples import provenance, storage
from pipelines.train import folders
from pipelines.train.records import METRICS, read_events, read_rows
from pipelines.train.run_folder import PLAN, TRACKING
from sama.errors import InputError

QUIET_S = 300.0  # a run without a new row for this long, and ten times its usual step, is said to be quiet
HISTORY = 8


def describe(run: str) -> list[str]:
    """Lines for a person: state, step, loss, checkpoint, restarts, lost steps, last error, latest events."""
    run = storage.absolute(run)
    if not storage.is_folder(run) or not storage.exists(storage.join(run, PLAN)):
        raise InputError(f"{run} is not a run folder")
    plan = json.loads(storage.read_bytes(storage.join(run, PLAN)))
    rows, events = list(read_rows(storage.join(run, METRICS))), read_events(run)
    newest, steps = folders.newest_step(run), plan["steps"]
    lines = [f"{run}: {_state(run, rows, events, newest, steps)}"]
    done = rows[-1]["step"] + 1 if rows else 0
    lines.append(f"step {done} of {steps}" + (f", loss {rows[-1]['train/loss']:.4f}" if rows else ""))
    lines.append("no checkpoint yet" if newest is None else f"newest checkpoint: step {newest}")
    restarts = [e for e in events if e["kind"] in ("restart", "node_lost")]
    starts = [e for e in events if e["kind"] == "start"]
    lines.append(
        f"{len(starts)} starts, {len(restarts)} restarts by Ray, {_lost_minutes(rows, events):.1f} minutes lost"
    )
    errors = [e for e in events if e["kind"] in ("failed", "restart", "node_lost")]
    if errors:
        lines.append(f"last error, {_when(errors[-1]['time'])}: {errors[-1]['message']}")
    if storage.exists(storage.join(run, TRACKING)):
        tracked = json.loads(storage.read_bytes(storage.join(run, TRACKING)))
        lines.append(f"mlflow run {tracked['run_id']} in {tracked['uri'].rpartition('@')[2]}")
    lines += [f"  {_when(e['time'])} {e['kind']}: {e['message']}" for e in events[-HISTORY:]]
    return lines


def _state(run: str, rows: list[dict], events: list[dict], newest: int | None, steps: int) -> str:
    if newest is not None and newest >= steps:
        return "finished"
    ended = (provenance.read(run) or {}).get("counts", {}).get("status")  # empty while a driver is at work
    if ended == "KILLED":
        return "stopped by its user"
    if events and events[-1]["kind"] == "failed":
        return "failed"
    last = max([e["time"] for e in events] + [r["time"] for r in rows[-1:]], default=0.0)
    silent = time.time() - last
    usual = rows[-1].get("seconds", 0.0) if rows else 0.0
    if silent > max(QUIET_S, 10 * usual):
        return f"quiet for {duration(silent)}: killed, or waiting for resources"
    return "running"


def _lost_minutes(rows: list[dict], events: list[dict]) -> float:
    """Minutes without progress: from the last sign of life before each start to the first row after it."""
    times = sorted([r["time"] for r in rows])
    lost = 0.0
    for event in [e for e in events if e["kind"] == "start" and e["step"]]:
        before = [t for t in [*times, *(e["time"] for e in events)] if t < event["time"]]
        after = [t for t in times if t > event["time"]]
        if before and after:
            lost += min(after) - max(before)
    return lost / 60


def _when(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M:%S")
