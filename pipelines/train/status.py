"""What a run folder tells about its run."""

from __future__ import annotations

import json
import time
from datetime import datetime

from pipelines.progress import duration
from pipelines.samples import provenance, storage
from pipelines.tracking import BUFFER
from pipelines.train import folders
from pipelines.train.records import METRICS, read_events, read_rows, restarts
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
    lines.append(_newest(run, events, newest))
    by_ray = sum(1 for e in events if e["kind"] in ("restart", "node_lost"))
    lines.append(f"{restarts(events)} restarts ({by_ray} by Ray), {lost_minutes(rows, events):.1f} minutes lost")
    errors = [e for e in events if e["kind"] in ("failed", "restart", "node_lost")]
    if errors:
        lines.append(f"last error, {_when(errors[-1]['time'])}: {errors[-1]['message']}")
    if storage.exists(storage.join(run, TRACKING)):
        tracked = json.loads(storage.read_bytes(storage.join(run, TRACKING)))
        lines.append(f"mlflow run {tracked['run_id']} in {tracked['uri'].rpartition('@')[2]}")
        if storage.exists(storage.join(run, BUFFER)):
            lines.append(
                f"{BUFFER} waits for the tracking store" + ("" if done < steps else ": the same command sends it")
            )
    lines += [f"  {_when(e['time'])} {e['kind']}: {e['message']}" for e in events[-HISTORY:]]
    return lines


def _newest(run: str, events: list[dict], newest: int | None) -> str:
    if newest is None:
        return "no checkpoint yet"
    written = [e["time"] for e in events if e["kind"] == "checkpoint" and e["step"] == newest]
    age = f", {duration(time.time() - written[-1])} old" if written else ""
    best = [s for s in folders.best_steps(run, folders.complete_steps(run))[:1] if s != newest]
    return f"newest checkpoint: step {newest}{age}" + (f"; best held-out loss: step {best[0]}" if best else "")


def _state(run: str, rows: list[dict], events: list[dict], newest: int | None, steps: int) -> str:
    if newest is not None and newest >= steps:
        return "finished"
    if events and events[-1]["kind"] in ("failed", "stopped"):
        return {"failed": "failed", "stopped": "stopped, as asked"}[events[-1]["kind"]]
    ended = (provenance.read(run) or {}).get("counts", {}).get("status")  # empty while a driver is at work
    if ended == "KILLED":
        return "stopped by its user"
    last = max([e["time"] for e in events] + [r["time"] for r in rows[-1:]], default=0.0)
    silent = time.time() - last
    usual = rows[-1].get("seconds", 0.0) if rows else 0.0
    if silent > max(QUIET_S, 10 * usual):
        return f"quiet for {duration(silent)}: killed, or waiting for resources"
    return "running"


def lost_minutes(rows: list[dict], events: list[dict]) -> float:
    """Minutes without lasting progress: from the last row that was kept at each restart to where the next one began.

    What was computed again is in it, because rows behind the checkpoint are written again.
    """
    starts, of_step = [e for e in events if e["kind"] == "start"], {r["step"]: r for r in rows}
    lost = 0.0
    for step in {e["step"] or 0 for e in starts[1:]}:
        kept, again = of_step.get(step - 1), of_step.get(step)
        before = kept["time"] if kept else starts[0]["time"]
        after = again["time"] - again.get("seconds", 0.0) if again else events[-1]["time"]
        lost += max(0.0, after - before)
    return lost / 60


def _when(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M:%S")
