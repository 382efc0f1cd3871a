"""MLflow without its moods: a background thread sends, a file keeps what the server did not take.

The driver creates or continues a run with the plain functions; the training worker sends through `Tracker`, which
never blocks the step and never raises. MLflow is imported where it is used: a worker pays for it in the background.
"""

from __future__ import annotations

import json
import logging
import math
import os
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from pipelines.samples import storage
from sama.errors import InputError

BUFFER = "tracking_buffer.jsonl"
PARAM_LENGTH = 6000  # MLflow's limit on a parameter's value
DIGEST_LENGTH = 36  # and on a dataset's digest
MARKER = "train/loss"  # every row has it: its newest step says what the server already knows
FIRST_PAUSE_S, LONGEST_PAUSE_S, SPILL_EVERY_S = 1.0, 60.0, 5.0
# trying these again would never help, and would hold up everything behind them
HOPELESS = {"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS", "PERMISSION_DENIED"}


class TrackingError(Exception):
    """The tracking store did not answer, or refused."""


def store_uri(uri: str | None, run: str) -> str:
    """The tracking store of a run folder: the one that was set, or SQLite beside the run folder.

    Relative `sqlite:///` paths become absolute, because workers have other working directories.
    """
    if uri is None:
        run = storage.absolute(run)
        if "://" in run:
            raise InputError(f"tracking.uri is needed (or tracking.enabled=false): {run} cannot hold an SQLite file")
        return f"sqlite:///{Path(run).parent / 'mlflow.db'}"
    if uri.startswith("sqlite:///"):
        return f"sqlite:///{storage.absolute(uri[len('sqlite:///') :])}"
    return uri


def start_run(
    uri: str,
    experiment: str,
    name: str,
    parent: str | None = None,
    tags: Mapping[str, str] | None = None,
    params: Mapping[str, Any] | None = None,
    datasets: Mapping[str, str] | None = None,
) -> str:
    """Create a run and say what went in; its id.

    params: flattened settings; datasets: name -> digest, logged as training inputs. TrackingError when the store is
    away: the caller decides, training goes on without.
    """
    try:
        client = _client(uri)
        from mlflow.entities import Param
        from mlflow.exceptions import MlflowException

        all_tags = {"mlflow.runName": name, **dict(tags or {})}
        if parent:
            all_tags["mlflow.parentRunId"] = parent
        found = client.get_experiment_by_name(experiment)
        if found is None:
            try:
                identity = client.create_experiment(experiment, artifact_location=_artifacts_beside(uri))
            except MlflowException:  # somebody else made it just now
                identity = client.get_experiment_by_name(experiment).experiment_id
        else:
            identity = found.experiment_id
        run_id = str(client.create_run(identity, tags=all_tags, run_name=name).info.run_id)
        rows = [Param(key, str(value)[:PARAM_LENGTH]) for key, value in (params or {}).items()]
        for i in range(0, len(rows), 100):  # the API takes a hundred at once
            client.log_batch(run_id, params=rows[i : i + 100])
        _log_datasets(client, run_id, datasets or {})
    except Exception as error:
        raise TrackingError(f"no answer from the tracking store {_safe(uri)}: {_first_line(error)}") from error
    return run_id


def resume_run(uri: str, run_id: str, tags: Mapping[str, str] | None = None) -> bool:
    """Set a run back to RUNNING and add tags; False when the store does not know it. TrackingError when it is away."""
    try:
        client = _client(uri)
        from mlflow.exceptions import MlflowException

        try:
            client.get_run(run_id)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise
        client.update_run(run_id, status="RUNNING")
        for key, value in (tags or {}).items():
            client.set_tag(run_id, key, value)
    except Exception as error:
        raise TrackingError(f"no answer from the tracking store {_safe(uri)}: {_first_line(error)}") from error
    return True


def finish(
    uri: str, run_id: str, status: str, tags: Mapping[str, str] | None = None, artifacts: Iterable[str] = ()
) -> None:
    """End a run: FINISHED, FAILED or KILLED; `artifacts` are files to keep with it. TrackingError when it is away."""
    try:
        client = _client(uri)
        for key, value in (tags or {}).items():
            client.set_tag(run_id, key, value)
        for file in artifacts:
            _upload(client, run_id, file, None)
        client.set_terminated(run_id, status=status)
    except Exception as error:
        raise TrackingError(f"no answer from the tracking store {_safe(uri)}: {_first_line(error)}") from error


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
        on_outage: Callable[[str], None] | None = None,
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
            self._items.append(item)
            self._changed.notify()

    def _guard(self) -> None:
        try:
            self._run()
        except Exception as error:  # a broken tracker must not look like a broken training
            logging.getLogger(__name__).warning("tracking stopped: %s", _first_line(error))

    def _run(self) -> None:
        client, pause, away = None, self._first_pause, False
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
                if away and not self._items:
                    away, pause = False, self._first_pause
            except Exception as error:
                if client is not None and _hopeless(error):
                    dropped = self._items.popleft()
                    self._report(f"dropped {dropped['kind']}: {_first_line(error)}")
                    continue
                if not away:
                    away = True
                    self._report(f"the tracking store does not answer, keeping everything: {_first_line(error)}")
                self._spill(force=self._closing())
                if self._closing():
                    return
                with self._changed:
                    self._changed.wait_for(self._closing, timeout=pause)
                pause = min(2 * pause, LONGEST_PAUSE_S)
            if self._deadline is not None and time.monotonic() > self._deadline and self._items:
                self._spill(force=True)
                return
        if self._spilled:
            storage.remove(storage.join(self.folder, BUFFER))

    def _closing(self) -> bool:
        return self._deadline is not None

    def _connect(self) -> Any:
        """A client, the newest step that the server has, and in front of the queue what an earlier process left."""
        client = _client(self.uri)
        left = _read_buffer(storage.join(self.folder, BUFFER))
        self._spilled = bool(left)
        if self._rows_after is not None:
            history = client.get_metric_history(self.run_id, MARKER)
            self._known = max((m.step for m in history), default=-1)
            rows = [_row_item(row) for row in self._rows_after(self._known)]
            left = rows + [item for item in left if item["kind"] != "metrics"]  # metrics.jsonl has them all
        with self._changed:
            queued = {i["step"] for i in self._items if i["kind"] == "metrics"}
            left = [i for i in left if i["kind"] != "metrics" or i["step"] not in queued]
            self._items.extendleft(reversed(left))
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
            _upload(client, self.run_id, item["file"], item["folder"])
        else:
            client.set_tag(self.run_id, item["key"], item["value"])

    def _spill(self, force: bool) -> None:
        if not force and time.monotonic() - self._spilled_at < SPILL_EVERY_S:
            return
        with self._changed:
            lines = [json.dumps(item) for item in self._items]
        storage.write_bytes(storage.join(self.folder, BUFFER), "".join(f"{line}\n" for line in lines))
        self._spilled_at, self._spilled = time.monotonic(), True

    def _report(self, message: str) -> None:
        if self._on_outage is not None:
            self._on_outage(message)


def _client(uri: str) -> Any:
    # a server that is away answers quickly: retries are ours, the library's own take minutes
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    from mlflow import MlflowClient

    if uri.startswith("sqlite:///"):
        Path(uri[len("sqlite:///") :]).parent.mkdir(parents=True, exist_ok=True)
    client = MlflowClient(uri)
    for name in ("mlflow", "alembic"):  # importing it sets its own level
        logging.getLogger(name).setLevel(logging.WARNING)
    return client


def _artifacts_beside(uri: str) -> str | None:
    """Without a server MLflow would put artifacts into the working directory: beside the database instead."""
    if not uri.startswith("sqlite:///"):
        return None
    return str(Path(uri[len("sqlite:///") :]).parent / "mlartifacts")


def _log_datasets(client: Any, run_id: str, datasets: Mapping[str, str]) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    inputs = [
        DatasetInput(
            Dataset(name, digest[:DIGEST_LENGTH], "local", json.dumps({"digest": digest})),
            [InputTag("mlflow.data.context", "training")],
        )
        for name, digest in datasets.items()
    ]
    if inputs:
        client.log_inputs(run_id, datasets=inputs)


def _upload(client: Any, run_id: str, file: str, folder: str | None) -> None:
    if "://" not in storage.absolute(file):
        client.log_artifact(run_id, storage.absolute(file), folder)
        return
    with tempfile.TemporaryDirectory() as scratch:
        local = Path(scratch) / file.rsplit("/", 1)[-1]
        local.write_bytes(storage.read_bytes(file))
        client.log_artifact(run_id, str(local), folder)


def _row_item(row: dict) -> dict:
    values = {k: v for k, v in row.items() if "/" in k and v is not None}
    return {"kind": "metrics", "step": row["step"], "time": row["time"], "values": values}


def _read_buffer(uri: str) -> list[dict]:
    if not storage.exists(uri):
        return []
    return [json.loads(line) for line in storage.read_bytes(uri).decode().splitlines() if line]


def _hopeless(error: Exception) -> bool:
    return isinstance(error, FileNotFoundError) or getattr(error, "error_code", None) in HOPELESS


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]


def _safe(uri: str) -> str:
    """A URI without the password that it may carry."""
    head, mark, tail = uri.rpartition("@")
    return f"{head.split('://', 1)[0]}://{tail}" if mark else uri
