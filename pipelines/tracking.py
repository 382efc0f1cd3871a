"""MLflow without its moods: a background thread sends, a file keeps what the server did not take.

The driver creates or continues a run with the plain functions; the training worker sends through `Tracker`, which
never blocks the step and never raises. MLflow is imported where it is used: a worker pays for it in the background.
"""

from __future__ import annotations

import json
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from pipelines import tracking_store
from pipelines.samples import storage
from pipelines.tracking_registry import register
from pipelines.tracking_store import TrackingError, finish, first_line, resume_run, start_run, store_uri

__all__ = ["BUFFER", "Tracker", "TrackingError", "finish", "register", "resume_run", "start_run", "store_uri"]

BUFFER = "tracking_buffer.jsonl"
MARKER = "train/loss"  # every row has it: its newest step says what the server already knows
FIRST_PAUSE_S, LONGEST_PAUSE_S, SPILL_EVERY_S = 1.0, 60.0, 5.0
# trying these again would never help, and would hold up everything behind them
HOPELESS = {"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS", "PERMISSION_DENIED"}


class Tracker:
    """Sends metrics, files and tags of one run in order, from a thread of its own.

    While the server is away everything waits in memory and in `tracking_buffer.jsonl` of the run folder, and is sent
    in order when it is back, in this process or the next. `rows_after(step)` gives the rows of metrics.jsonl behind
    that step: with it a restarted job sends what the killed one had not, and nothing twice.
    """

    def __init__(
        self,
        uri: str,
        run_id: str,
        folder: str,
        rows_after: Callable[[int], list[dict]] | None = None,
        on_outage: Callable[[str], object] | None = None,
        first_pause_s: float = FIRST_PAUSE_S,
    ) -> None:
        self.uri, self.run_id, self.folder = uri, run_id, folder
        self._rows_after, self._on_outage = rows_after, on_outage
        self._first_pause = first_pause_s
        self._items: deque[dict] = deque()
        self._changed = threading.Condition()
        self._deadline: float | None = None  # set by close()
        self._known = -1  # newest step that the server has
        self._spilled_at, self._spilled = 0.0, False
        self._others: list[dict] = []  # what waits in the same file for other runs
        self._thread = threading.Thread(target=self._guard, name="tracker", daemon=True)
        self._thread.start()

    def metrics(self, step: int, values: Mapping[str, float], time_s: float | None = None) -> None:
        """Values of one step by metric name; what is not finite is left out."""
        good = {k: float(v) for k, v in values.items() if v is not None and math.isfinite(v)}
        self._put({"kind": "metrics", "step": step, "time": time_s or time.time(), "values": good})

    def artifact(self, file: str, folder: str | None = None) -> None:
        """A file (URI) to be copied to the run's artifacts under `folder`."""
        self._put({"kind": "artifact", "file": file, "folder": folder})

    def tag(self, key: str, value: str) -> None:
        self._put({"kind": "tag", "key": key, "value": value})

    def close(self, timeout_s: float = 30.0) -> bool:
        """Send what waits, at most this long; True when the server has everything."""
        with self._changed:
            self._deadline = time.monotonic() + timeout_s
            self._changed.notify()
        self._thread.join(timeout_s + 2.0)
        return not self._items and not self._thread.is_alive()

    def _put(self, item: dict) -> None:
        with self._changed:
            self._items.append({"run_id": self.run_id, **item})
            self._changed.notify()

    def _guard(self) -> None:
        try:
            self._run()
        except Exception as error:  # a broken tracker must not look like a broken training
            logging.getLogger(__name__).warning("tracking stopped: %s", first_line(error))

    def _run(self) -> None:
        client, pause, away = None, self._first_pause, False
        self._take_left()
        while True:
            with self._changed:
                while not self._items and client is not None and self._deadline is None:
                    self._changed.wait()
                if not self._items and (client is not None or self._deadline is not None):
                    break
            try:
                if client is None:
                    client = self._connect()
                if self._items:
                    self._send(client, self._items[0])
                    self._items.popleft()
                if not self._items:
                    away, pause = False, self._first_pause
                    self._forget_spilled()
            except Exception as error:
                if client is not None and _hopeless(error):
                    dropped = self._items.popleft()
                    self._report(f"dropped {dropped['kind']}: {first_line(error)}")
                    continue
                if not away:
                    away = True
                    self._report(f"the tracking store does not answer, keeping everything: {first_line(error)}")
                self._spill(force=self._closing())
                if self._closing():
                    return
                with self._changed:
                    self._changed.wait_for(self._closing, timeout=pause)
                pause = min(2 * pause, LONGEST_PAUSE_S)
            if self._deadline is not None and time.monotonic() > self._deadline and self._items:
                self._spill(force=True)
                return

    def _take_left(self) -> None:
        """Put in front of the queue what an earlier process could not send."""
        found = _read_buffer(storage.join(self.folder, BUFFER))
        left = [item for item in found if item["run_id"] == self.run_id]
        self._others = [item for item in found if item["run_id"] != self.run_id]
        self._spilled = bool(left)
        if self._rows_after is not None:  # metrics.jsonl has them all
            left = [item for item in left if item["kind"] != "metrics"]
        with self._changed:
            self._items.extendleft(reversed(left))

    def _forget_spilled(self) -> None:
        if self._spilled:
            self._write_buffer(self._others)
            self._spilled = False

    def _closing(self) -> bool:
        return self._deadline is not None

    def _connect(self) -> Any:
        """A client; with it comes what the server lacks of the rows on disk."""
        client = tracking_store.open_client(self.uri)
        if self._rows_after is not None:
            history = client.get_metric_history(self.run_id, MARKER)
            self._known = max((m.step for m in history), default=-1)
            rows = [_row_item(row) for row in self._rows_after(self._known)]
            with self._changed:
                self._items.extendleft(reversed(rows))
        return client

    def _send(self, client: Any, item: dict) -> None:
        if item["kind"] == "metrics":
            if self._rows_after is not None and item["step"] <= self._known:
                return  # a recomputed step, equal to the one that is there
            from mlflow.entities import Metric

            at = int(item["time"] * 1000)
            rows = [Metric(k, v, at, item["step"]) for k, v in item["values"].items()]
            client.log_batch(self.run_id, metrics=rows)
            self._known = max(self._known, item["step"])
        elif item["kind"] == "artifact":
            tracking_store.upload(client, self.run_id, item["file"], item["folder"])
        else:
            client.set_tag(self.run_id, item["key"], item["value"])

    def _spill(self, force: bool) -> None:
        if not force and time.monotonic() - self._spilled_at < SPILL_EVERY_S:
            return
        with self._changed:
            waiting = [*self._others, *self._items]
        self._write_buffer(waiting)
        self._spilled_at, self._spilled = time.monotonic(), True

    def _write_buffer(self, items: list[dict]) -> None:
        uri = storage.join(self.folder, BUFFER)
        if items:
            storage.write_bytes(uri, "".join(f"{json.dumps(item)}\n" for item in items))
        else:
            storage.remove(uri)

    def _report(self, message: str) -> None:
        if self._on_outage is not None:
            self._on_outage(message)


def _row_item(row: dict) -> dict:
    values = {k: v for k, v in row.items() if "/" in k and v is not None}
    return {"kind": "metrics", "step": row["step"], "time": row["time"], "values": values}


def _read_buffer(uri: str) -> list[dict]:
    if not storage.exists(uri):
        return []
    return [json.loads(line) for line in storage.read_bytes(uri).decode().splitlines() if line]


def _hopeless(error: Exception) -> bool:
    return isinstance(error, FileNotFoundError) or getattr(error, "error_code", None) in HOPELESS
