"""The tracking store: runs created, continued and ended. MLflow is imported where it is used, not before."""

from __future__ import annotations

import json
import logging
import os
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pipelines.samples import storage
from sama.errors import InputError

PARAM_LENGTH = 6000  # MLflow's limit on a parameter's value
DIGEST_LENGTH = 36  # and on a dataset's digest


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
        client = open_client(uri)
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
        raise TrackingError(f"no answer from the tracking store {_safe(uri)}: {first_line(error)}") from error
    return run_id


def resume_run(uri: str, run_id: str, tags: Mapping[str, str] | None = None) -> bool:
    """Set a run back to RUNNING and add tags; False when the store does not know it. TrackingError when it is away."""
    try:
        client = open_client(uri)
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
        raise TrackingError(f"no answer from the tracking store {_safe(uri)}: {first_line(error)}") from error
    return True


def experiment_of(uri: str, run_id: str) -> str | None:
    """Name of the experiment that a run belongs to; None when the store does not know it. TrackingError when away."""
    try:
        client = open_client(uri)
        from mlflow.exceptions import MlflowException

        try:
            found = client.get_run(run_id)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise
        return str(client.get_experiment(found.info.experiment_id).name)
    except Exception as error:
        raise TrackingError(f"no answer from the tracking store {_safe(uri)}: {first_line(error)}") from error


def finish(
    uri: str,
    run_id: str,
    status: str,
    tags: Mapping[str, str] | None = None,
    artifacts: Iterable[str] = (),
    metrics: Mapping[str, float] | None = None,
) -> None:
    """End a run: FINISHED, FAILED or KILLED; `artifacts` are files to keep with it, `metrics` final values.

    TrackingError when the store is away.
    """
    try:
        client = open_client(uri)
        from mlflow.entities import Metric

        rows = [Metric(name, value, int(time.time() * 1000), 0) for name, value in (metrics or {}).items()]
        for i in range(0, len(rows), 1000):  # the API takes a thousand at once
            client.log_batch(run_id, metrics=rows[i : i + 1000])
        for key, value in (tags or {}).items():
            client.set_tag(run_id, key, value)
        for file in artifacts:
            upload(client, run_id, file, None)
        client.set_terminated(run_id, status=status)
    except Exception as error:
        raise TrackingError(f"no answer from the tracking store {_safe(uri)}: {first_line(error)}") from error


def open_client(uri: str) -> Any:
    # a server that is away answers quickly: retries are ours, the library's own take minutes
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic"):  # importing it has set its own level
        logging.getLogger(name).setLevel(logging.WARNING)
    if uri.startswith("sqlite:///"):
        Path(uri[len("sqlite:///") :]).parent.mkdir(parents=True, exist_ok=True)
    return MlflowClient(uri)


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


def upload(client: Any, run_id: str, file: str, folder: str | None) -> None:
    if "://" not in storage.absolute(file):
        client.log_artifact(run_id, storage.absolute(file), folder)
        return
    with tempfile.TemporaryDirectory() as scratch:
        local = Path(scratch) / file.rsplit("/", 1)[-1]
        local.write_bytes(storage.read_bytes(file))
        client.log_artifact(run_id, str(local), folder)


def first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]


def _safe(uri: str) -> str:
    """A URI without the password that it may carry."""
    head, mark, tail = uri.rpartition("@")
    return f"{head.split('://', 1)[0]}://{tail}" if mark else uri
