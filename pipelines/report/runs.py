"""What a run folder says about a training run: plan, settings, metrics, events, strips."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import yaml

from pipelines.samples import storage
from pipelines.train.records import whole_lines
from sama.errors import InputError

TIMES = ("wait", "encode", "forward", "backward", "optimizer")


@dataclass
class Curve:
    """One metric: steps (n,) ascending, values (n,); not finite where the run wrote null."""

    steps: np.ndarray
    values: np.ndarray

    @property
    def last(self) -> float | None:
        finite = self.values[np.isfinite(self.values)]
        return float(finite[-1]) if len(finite) else None


@dataclass
class Run:
    """One stage of training as its folder tells it."""

    uri: str
    name: str
    plan: dict[str, Any]
    config: dict[str, Any]
    curves: dict[str, Curve]
    rows: list[dict[str, Any]]
    events: list[dict[str, Any]]
    strips: list[str]
    edits: list[str] = field(default_factory=list)

    @property
    def steps(self) -> int:
        return len(self.rows)

    @property
    def planned(self) -> int | None:
        for place in (self.plan, self.plan.get("mixture") or {}, self.plan.get("summary") or {}):
            if isinstance(place, dict) and isinstance(place.get("steps"), int):
                return place["steps"]
        return None

    @property
    def seconds(self) -> float:
        """Seconds in steps: the sum of all parts of all steps."""
        return sum(float(np.nansum(c.values)) for n, c in self.curves.items() if n.startswith("time/"))

    @property
    def world_size(self) -> int:
        """Devices of the run, as its settings say; 1 when they do not."""
        workers = (self.config.get("train") or {}).get("workers", 1)
        return int(max(workers) if isinstance(workers, list) else workers)

    def count(self, kind: str) -> int:
        return sum(e.get("kind") == kind for e in self.events)

    def loss(self) -> float | None:
        """Mean of the last tenth of train/loss: one step's loss says little, its timesteps are drawn anew."""
        curve = self.curves.get("train/loss")
        if curve is None:
            return None
        tail = curve.values[-max(1, len(curve.values) // 10) :]
        return float(np.nanmean(tail)) if np.isfinite(tail).any() else None


def read_run(uri: str) -> Run:
    """Read a run folder. InputError when it is none."""
    if not storage.is_folder(uri):
        raise InputError(f"{uri} is not a run folder: there is no such folder")
    plan = read_json(storage.join(uri, "plan.json"))
    metrics = storage.join(uri, "metrics.jsonl")
    if plan is None and not storage.exists(metrics):
        raise InputError(f"{uri} is not a run folder: it has neither plan.json nor metrics.jsonl")
    rows = _rows(metrics)
    return Run(
        uri=storage.absolute(uri),
        name=storage.absolute(uri).rstrip("/").rsplit("/", 1)[-1],
        plan=plan or {},
        config=_config(storage.join(uri, "config.yaml")),
        curves=_curves(rows),
        rows=rows,
        events=[e for e in whole_lines(storage.join(uri, "events.jsonl")) if isinstance(e, dict)],
        strips=[f for f in storage.list_files(storage.join(uri, "samples"), recursive=True) if f.endswith(".png")],
    )


def read_json(uri: str) -> dict[str, Any] | None:
    """A JSON object, or None when there is no such file. InputError when it is not one."""
    if not storage.exists(uri):
        return None
    try:
        found = json.loads(storage.read_bytes(uri))
    except (ValueError, UnicodeDecodeError):
        raise InputError(f"{uri} is not valid JSON") from None
    if not isinstance(found, dict):
        raise InputError(f"{uri} should hold a JSON object")
    return found


def _config(uri: str) -> dict[str, Any]:
    if not storage.exists(uri):
        return {}
    try:
        found = yaml.safe_load(storage.read_bytes(uri))
    except yaml.YAMLError:
        raise InputError(f"{uri} is not valid YAML") from None
    return found if isinstance(found, dict) else {}


def _rows(uri: str) -> list[dict[str, Any]]:
    """Metric rows by step; a step that was done again after a restart counts once, as it was done last."""
    by_step = {r["step"]: r for r in whole_lines(uri) if isinstance(r, dict) and isinstance(r.get("step"), int)}
    return [by_step[s] for s in sorted(by_step)]


def _curves(rows: list[dict[str, Any]]) -> dict[str, Curve]:
    names = dict.fromkeys(n for r in rows for n, v in r.items() if "/" in n and (v is None or _is_number(v)))
    curves = {}
    for name in names:
        points = [(r["step"], r[name]) for r in rows if name in r and (r[name] is None or _is_number(r[name]))]
        steps = np.array([s for s, _ in points], dtype=np.float64)
        curves[name] = Curve(steps, np.array([np.nan if v is None else v for _, v in points], dtype=np.float64))
    return curves


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
