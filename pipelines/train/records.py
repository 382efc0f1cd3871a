"""What a run writes down about itself: metrics.jsonl (a row per step) and events.jsonl (what happened when)."""

from __future__ import annotations

import json
import math
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

from pipelines.samples import storage

METRICS, EVENTS = "metrics.jsonl", "events.jsonl"
EVENT_KINDS = (
    "start", "node_lost", "restart", "preemption", "checkpoint", "stopped", "substitute", "stall", "skipped",
    "tracking_outage", "failed",
)  # fmt: skip
_EVENTS_LOCK = threading.Lock()  # a checkpoint's thread has something to say as well


class MetricsFile:
    """metrics.jsonl of a run: one row per step, in order, none missing and none twice.

    A local file grows by one line per step. An object cannot grow: there rows wait in memory until `flush`, which
    rewrites the object, and is called before every checkpoint.
    """

    def __init__(self, run: str, next_step: int) -> None:
        """Open for a run that goes on at `next_step`: rows from there on, and a torn last line, are cut off."""
        self.uri = storage.join(run, METRICS)
        kept = [row for row in read_rows(self.uri) if row["step"] < next_step]
        steps = [row["step"] for row in kept]
        if steps != list(range(next_step)):
            raise RuntimeError(f"{self.uri} has {len(steps)} rows before step {next_step}, it should have {next_step}")
        self._lines = [_line(row) for row in kept]
        storage.write_bytes(self.uri, "".join(self._lines))
        self._local = "://" not in self.uri
        self._file = open(self.uri, "a", encoding="utf-8") if self._local else None  # noqa: SIM115
        if self._local:
            self._lines.clear()

    def append(self, row: Mapping[str, Any]) -> None:
        line = _line(row)
        if self._file is not None:
            self._file.write(line)
            self._file.flush()
        else:
            self._lines.append(line)

    def flush(self) -> None:
        """Make sure that every row so far outlives this machine."""
        if self._file is not None:
            os.fsync(self._file.fileno())
        else:
            storage.write_bytes(self.uri, "".join(self._lines))

    def close(self) -> None:
        self.flush()
        if self._file is not None:
            self._file.close()


def read_rows(uri: str) -> Iterator[dict]:
    """Rows of a jsonl file; a torn last line (a process was killed while writing it) is left out."""
    if not storage.exists(uri):
        return
    lines = storage.read_bytes(uri).decode().split("\n")
    for i, line in enumerate(lines):
        if not line:
            continue
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            if any(lines[i + 1 :]):
                raise RuntimeError(f"{uri}, line {i + 1}: not valid JSON") from None


def add_event(run: str, kind: str, message: str, step: int | None = None, node: str | None = None) -> dict:
    """Append what happened to events.jsonl; the event."""
    if kind not in EVENT_KINDS:
        raise ValueError(f"{kind} is no kind of event; there are {', '.join(EVENT_KINDS)}")
    event = {
        "time": time.time(), "kind": kind, "step": step, "node": node or socket.gethostname(), "message": message
    }  # fmt: skip
    uri = storage.join(run, EVENTS)
    with _EVENTS_LOCK:
        if "://" in uri:  # an object cannot grow; events are rare
            before = storage.read_bytes(uri) if storage.exists(uri) else b""
            storage.write_bytes(uri, before + _line(event).encode())
            return event
        storage.make_folder(run)
        with open(uri, "ab") as file:
            if file.tell() and not _ends_with_newline(uri):
                file.write(b"\n")  # a process was killed while writing the line before
            file.write(_line(event).encode())
    return event


def restarts(events: list[dict]) -> int:
    """How often training began again: starts behind the first one, by Ray or by a new driver."""
    return max(0, sum(1 for e in events if e["kind"] == "start") - 1)


def read_events(run: str) -> list[dict]:
    """Everything that happened to a run, oldest first; a torn line is left out."""
    return whole_lines(storage.join(run, EVENTS))


def whole_lines(uri: str) -> list[dict]:
    """What a jsonl file holds, without the lines that cannot be read; an absent file holds nothing."""
    if not storage.exists(uri):
        return []
    found = []
    for line in storage.read_bytes(uri).decode(errors="replace").splitlines():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found


def _ends_with_newline(path: str) -> bool:
    with open(path, "rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def _line(row: Mapping[str, Any]) -> str:
    clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
    return json.dumps(clean) + "\n"
