"""Checkpoints as versions of a registered model, with where they come from. MLflow is imported where it is used."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pipelines.tracking_store import TrackingError, first_line, open_client

CHECKPOINT = "sama.checkpoint"


def register(
    uri: str, run_id: str, name: str, checkpoint: str, tags: Mapping[str, str], aliases: Iterable[str] = ()
) -> str:
    """Make a checkpoint folder a version of the registered model `name`; the version. Done before, it changes nothing
    but the aliases, which move to it.

    The tag `sama.checkpoint` always holds the folder. The version's source is the folder too, where the store takes
    it: a server refuses local paths, and gets the run instead. TrackingError when the store is away.
    """
    try:
        client = open_client(uri)
        _ensure(client, name)
        version = _known(client, name, run_id, checkpoint)
        if version is None:
            version = _create(client, run_id, name, checkpoint, {**tags, CHECKPOINT: checkpoint})
        for alias in aliases:
            client.set_registered_model_alias(name, alias, version)
    except Exception as error:
        raise TrackingError(f"the model registry did not take {checkpoint}: {first_line(error)}") from error
    return version


def _ensure(client: Any, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name, description="Checkpoints of sama train; see each version's tags.")
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _known(client: Any, name: str, run_id: str, checkpoint: str) -> str | None:
    quoted = name.replace("'", "''")
    for found in client.search_model_versions(f"name = '{quoted}'"):
        if found.run_id == run_id and found.tags.get(CHECKPOINT) == checkpoint:
            return str(found.version)
    return None


def _create(client: Any, run_id: str, name: str, checkpoint: str, tags: Mapping[str, str]) -> str:
    from mlflow.exceptions import MlflowException

    try:
        found = client.create_model_version(name, checkpoint, run_id=run_id, tags=dict(tags))
    except MlflowException as error:
        if error.error_code != "INVALID_PARAMETER_VALUE":
            raise
        found = client.create_model_version(name, f"runs:/{run_id}", run_id=run_id, tags=dict(tags))
    return str(found.version)
