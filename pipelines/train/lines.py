"""One line per step that tells everything, and the driver's view of a run that works elsewhere."""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.progress import duration, say
from pipelines.samples import storage
from pipelines.train.records import EVENTS, METRICS

POLL_S = 0.3


def step_line(row: Mapping[str, Any], steps: int, seconds_left: float | None = None) -> str:
    """A row of metrics.jsonl for people: what was trained, losses, rate, gradient, time split, speed, time left."""

    def value(name: str, form: str) -> str:
        found = row.get(name)
        return "nan" if found is None else format(found, form)

    losses = (
        f"loss {value('train/loss', '.4f')} fm {value('train/loss_fm', '.4f')} sem {value('train/loss_sem', '.4f')}"
    )
    prefix = "train/loss_fm/"
    tasks = "".join(f" {k[len(prefix) :]} {value(k, '.4f')}" for k in sorted(row) if k.startswith(prefix))
    split = " ".join(f"{k[5:]} {value(k, '.2f')}" for k in row if k.startswith("time/") and k != "time/wait_share")
    speed = f"{row.get('tokens_per_device', 0)} tokens/device {value('speed/tokens_per_s', '.0f')} tokens/s"
    if "speed/mfu_step" in row:
        speed += f" mfu {value('speed/mfu_model', '.1%')} (step {value('speed/mfu_step', '.1%')})"
    parts = [
        f"step {row['step'] + 1}/{steps} {row.get('stream', '')} {row.get('bucket', '')}".rstrip(),
        losses + (f" |{tasks}" if tasks else ""),
        f"lr {value('train/lr', '.2e')} grad {value('train/grad_norm', '.3f')}",
        f"{split} s",
        speed,
    ]
    heldout = [v for k, v in row.items() if k.startswith("heldout/") and v is not None]
    if heldout:
        parts.append(f"held-out fm {sum(heldout) / len(heldout):.4f}")
    if seconds_left is not None:
        parts.append(f"{duration(seconds_left)} left")
    return " | ".join(parts)


class Pace:
    """Seconds that the steps to come will take, from when the last ones ended: all that lies between them counts."""

    def __init__(self) -> None:
        self._ends: deque[float] = deque(maxlen=51)

    def left(self, now: float, steps: int) -> float | None:
        """A step ended `now`, `steps` are to come; None after the first one, which alone says little."""
        self._ends.append(now)
        if len(self._ends) == 1:
            return None
        return (self._ends[-1] - self._ends[0]) / (len(self._ends) - 1) * steps


class Follower:
    """Says each new line of a local run's metrics.jsonl and events.jsonl, from a thread: `with Follower(run, steps):`.

    Worker processes would print their lines with Ray's prefix, and late.
    """

    def __init__(self, run: str, steps: int) -> None:
        self.steps = steps
        self._metrics = Path(storage.join(run, METRICS))
        self._events = Path(storage.join(run, EVENTS))
        self._shown = max((row["step"] for row in _whole_lines(self._metrics)), default=-1)
        self._told = len(_whole_lines(self._events))
        self._pace, self._stop = Pace(), threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> Follower:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._look()

    def _follow(self) -> None:
        while not self._stop.wait(POLL_S):
            self._look()

    def _look(self) -> None:
        events = _whole_lines(self._events)
        for event in events[self._told :]:
            say(f"{event['kind'].replace('_', ' ')}: {event['message']}")
        self._told = len(events)
        for row in _tail(self._metrics, self._shown):
            # after a restart recomputed steps come again: they equal those that were shown
            self._shown = row["step"]
            say(step_line(row, self.steps, self._pace.left(row["time"], self.steps - row["step"] - 1)))


def _tail(path: Path, after: int) -> list[dict]:
    """Rows of steps behind `after`, reading only the end of the file."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - 2**18))
            text = file.read().decode(errors="replace")
    except FileNotFoundError:
        return []
    return [row for row in _parse(text) if row.get("step", -1) > after]


def _whole_lines(path: Path) -> list[dict]:
    return _parse(path.read_text()) if path.exists() else []


def _parse(text: str) -> list[dict]:
    rows = []
    for line in text.split("\n")[:-1]:  # a line without its end is still being written
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows
