"""Which steps, runs, checkpoints and exports saw a sample: what an answer to a takedown request needs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import yaml

from pipelines.mixture.plan import BatchPlan
from pipelines.samples import storage
from sama.errors import InputError

SHOWN = 12  # steps listed of each sample; --json has all
DEPTH = 3  # folders that --runs looks into


@dataclass
class Sighting:
    """A sample of a plan and the (step, slot, epoch) that train on it."""

    key: str
    dataset: str
    source_group: int | None
    source_url: str | None
    source_sha256: str | None
    target_sha256: str | None
    steps: list[tuple[int, int, int]]
    held_out: bool = False


@dataclass
class Carrier:
    """A run or an export whose weights may carry a sample."""

    folder: str
    kind: str  # run, export
    steps: int  # that were done, or that the export's weights have behind them
    seen: int = 0  # times in those steps
    first: int | None = None  # the first of those steps
    inherited: str | None = None  # the folder it started from, where that one carries the sample
    checkpoints: list[int] = field(default_factory=list)  # those that carry it
    unknown: str | None = None  # why it cannot be told

    @property
    def carries(self) -> bool:
        return self.first is not None or self.inherited is not None


def in_plan(plan: BatchPlan, wanted: str) -> list[Sighting]:
    """The plan's samples with this key, source_group or source_url, trained and held out."""
    found = [_sighting(plan.sample(row), plan.seen(row)) for row in plan.rows_found(wanted)]
    held = [h.sample for h in plan.heldout if wanted in _names(h.sample)]
    return found + [_sighting(sample, [], held_out=True) for sample in held]


def in_runs(folders: Sequence[str], wanted: str) -> list[Carrier]:
    """What every run and export at or below the folders saw. InputError for a folder without any."""
    known: dict[str, Carrier] = {}
    found = []
    for folder in folders:
        below = list(_below(storage.absolute(folder), DEPTH))
        if not below:
            raise InputError(f"{folder} holds no run and no export")
        found += [_look(place, wanted, known) for place in below]
    return list({c.folder: c for c in found}.values())


def lines(wanted: str, found: Sequence[Sighting], steps: int, carriers: Sequence[Carrier] | None) -> list[str]:
    """What was found, for a terminal."""
    out = []
    for one in found:
        out.append(f"{one.key} ({one.dataset}, source_group {one.source_group}, {one.source_url or 'no source_url'})")
        out += [f"  step {step}, slot {slot}, epoch {epoch}" for step, slot, epoch in one.steps[:SHOWN]]
        if len(one.steps) > SHOWN:
            out.append(f"  and {len(one.steps) - SHOWN} more, the last in step {one.steps[-1][0]}; --json lists them")
        out += ["  held out: losses are measured on it, no step trains on it"] if one.held_out else []
    times = sum(len(one.steps) for one in found)
    if steps:
        out.append(
            f"{wanted}: trained on {times} times in {steps} steps" if times else f"{wanted}: in no step of this plan"
        )
    out += [_line(c) for c in carriers or ()]
    if carriers is not None:
        out.append(
            f"{wanted}: in the weights of {sum(c.carries for c in carriers)} of {len(carriers)} runs and exports"
        )
    return out


def document(found: Sequence[Sighting], carriers: Sequence[Carrier] | None) -> dict[str, Any]:
    """The same as plain values, whole."""
    return {
        "samples": [asdict(s) for s in found],
        "runs": None if carriers is None else [{**asdict(c), "carries": c.carries} for c in carriers],
    }


def _line(carrier: Carrier) -> str:
    if carrier.unknown:
        return f"  {carrier.folder}: cannot be told, {carrier.unknown}"
    head = f"  {carrier.folder}: {carrier.kind} of {carrier.steps} steps"
    if not carrier.carries:
        return f"{head}, never saw it"
    told = [f"saw it {carrier.seen} times, first in step {carrier.first}"] if carrier.first is not None else []
    told += [f"started from {carrier.inherited}, which saw it"] if carrier.inherited else []
    if carrier.kind == "run":
        steps = ", ".join(f"step-{s}" for s in carrier.checkpoints)
        told.append(f"in checkpoints {steps}" if steps else "in no checkpoint that is kept")
    return f"{head}, {'; '.join(told)}"


def _sighting(sample: dict[str, Any], steps: list[tuple[int, int, int]], held_out: bool = False) -> Sighting:
    source, target = (d.hex() if d else None for d in (sample["source_sha256"], sample["target_sha256"]))
    return Sighting(
        sample["key"], sample["dataset"], sample["source_group"], sample["source_url"], source, target, steps, held_out
    )


def _names(sample: dict[str, Any]) -> set[str]:
    return {str(sample[n]) for n in ("key", "source_group", "source_url") if sample[n] is not None}


def _below(folder: str, depth: int) -> list[str]:
    if storage.exists(storage.join(folder, "plan", "plan.json")) or _export_of(folder):
        return [folder]
    if depth == 0:
        return []
    return [f for name in storage.list_folders(folder) for f in _below(storage.join(folder, name), depth - 1)]


def _look(folder: str, wanted: str, known: dict[str, Carrier]) -> Carrier:
    """What a run or export carries; `known` keeps what was looked at, and ends circles."""
    if folder not in known:
        export = _export_of(folder)
        known[folder] = Carrier(folder, "export" if export else "run", 0)
        known[folder] = (
            _look_at_export(folder, export, wanted, known) if export else _look_at_run(folder, wanted, known)
        )
    return known[folder]


def _look_at_run(folder: str, wanted: str, known: dict[str, Carrier]) -> Carrier:
    carrier = Carrier(folder, "run", 0)
    checkpoints = _checkpoints(folder)
    carrier.steps = max([_steps_done(folder), *checkpoints])
    try:
        plan = BatchPlan.open(storage.join(folder, "plan"))
    except InputError as error:
        carrier.unknown = str(error)
        return carrier
    found = in_plan(plan, wanted)
    steps = sorted(step for one in found for step, _, _ in one.steps if step < carrier.steps)
    steps += _as_substitute(folder, {one.key for one in found} | {wanted})
    carrier.seen, carrier.first = len(steps), min(steps, default=None)
    origin = _init_from(folder)
    if origin is not None:
        before = _look(storage.absolute(origin), wanted, known)
        if before.unknown:
            carrier.unknown = f"it started from {origin}: {before.unknown}"
        elif before.checkpoints or (before.carries and not _checkpoints(before.folder)):
            carrier.inherited = origin
    carrier.checkpoints = [s for s in checkpoints if carrier.inherited or (steps and s > min(steps))]
    return carrier


def _look_at_export(folder: str, export: dict[str, Any], wanted: str, known: dict[str, Carrier]) -> Carrier:
    run, step = storage.absolute(export["run"]), int(export["step"])
    source = _look(run, wanted, known)
    carrier = Carrier(folder, "export", step, unknown=source.unknown)
    if source.first is not None and source.first < step:
        carrier.seen, carrier.first = source.seen, source.first
    if source.inherited is not None:
        carrier.inherited = source.inherited
    return carrier


def _export_of(folder: str) -> dict[str, Any] | None:
    """Run and step that an exported folder was made from; None for any other folder."""
    if not storage.exists(storage.join(folder, "data_sources.parquet")):
        return None
    try:
        settings = json.loads(storage.read_bytes(storage.join(folder, "provenance.json")))["settings"]
        return {"run": settings["run"], "step": settings["step"]}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _checkpoints(run: str) -> list[int]:
    """Steps of the whole checkpoints that a run keeps, ascending."""
    place = storage.join(run, "checkpoints")
    names = [n for n in storage.list_folders(place) if storage.exists(storage.join(place, n, "state.json"))]
    return sorted(int(n.removeprefix("step-")) for n in names if n.removeprefix("step-").isdigit())


def _rows(uri: str) -> list[dict[str, Any]]:
    found = []
    for line in storage.read_bytes(uri).decode(errors="replace").splitlines() if storage.exists(uri) else []:
        try:
            row = json.loads(line)
        except ValueError:  # a torn line
            continue
        found += [row] if isinstance(row, dict) else []
    return found


def _steps_done(run: str) -> int:
    return max((int(r["step"]) + 1 for r in _rows(storage.join(run, "metrics.jsonl")) if "step" in r), default=0)


def _as_substitute(run: str, keys: set[str]) -> list[int]:
    """Steps in which a sample stood in for another whose media did not decode."""
    rows = [r for r in _rows(storage.join(run, "events.jsonl")) if r.get("kind") == "substitute"]
    ends = tuple(f"; {key} instead" for key in keys)
    return [int(r["step"]) for r in rows if str(r.get("message", "")).endswith(ends) and r.get("step") is not None]


def _init_from(run: str) -> str | None:
    try:
        settings = yaml.safe_load(storage.read_bytes(storage.join(run, "config.yaml")))
        return settings["train"]["init_from"] or None
    except (OSError, yaml.YAMLError, KeyError, TypeError):
        return None
