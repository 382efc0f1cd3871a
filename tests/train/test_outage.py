"""A real MLflow server is away for a while in the middle of a real training."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines import config
from pipelines.tracking import BUFFER
from pipelines.tracking_store import open_client
from pipelines.train import status
from pipelines.train.records import read_events
from tests.mlflow_server import Server
from tests.train import runs
from tests.train.processes import Process, rows, wait_for

STEPS = 40


def finished(client: Any, run: Path, run_id: str) -> bool:
    """Whether the server has the end of the run."""
    return client.get_run(run_id).info.status == "FINISHED" and not (run / BUFFER).exists()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    found = Server(tmp_path)
    found.start()
    yield found
    found.stop()


@pytest.mark.slow
def test_training_goes_on_and_the_server_gets_everything_when_it_is_back(server: Server, tmp_path: Path) -> None:
    """Away in the middle, and again at the end until the same command is given once more."""
    how = runs.settings(
        tmp_path, "run", runs.mixture(tmp_path, "stage0", STEPS), runs.data_root(tmp_path / "data"),
        checkpoint_every=10, heldout_every=10, strip_every=10,
    )  # fmt: skip
    how = how.model_copy(update={"tracking": config.TrackingSettings(uri=server.uri, experiment="outage")})
    file, run = tmp_path / "run.yaml", tmp_path / "run"
    file.write_text(config.dump(how))
    client = open_client(server.uri)
    command = [sys.executable, "-m", "pipelines.train.local", str(file)]
    training = Process(command, tmp_path / "log")

    def outages() -> list[dict]:
        return [e for e in read_events(str(run)) if e["kind"] == "tracking_outage"]

    def known() -> int:
        return len(client.get_metric_history(run_id, "train/loss"))

    try:
        wait_for(lambda: len(rows(run)) >= 3, training)
        run_id = json.loads((run / "tracking.json").read_text())["run_id"]
        wait_for(known, training)
        server.stop()
        wait_for(outages, training)
        wait_for(lambda: (run / BUFFER).exists(), training)  # on disk too, should the machine go now
        os.kill(training.pid, signal.SIGSTOP)  # so that it is not done before the server is back
        server.start()
        before = known()
        os.kill(training.pid, signal.SIGCONT)
        wait_for(lambda: known() > before, training)
        server.stop()
        assert training.end() == 0, training.output()[-3000:]
    finally:
        training.popen.kill()
    assert [r["step"] for r in rows(run)] == list(range(STEPS))
    assert any("waits for the tracking store: the same command sends it" in line for line in status.describe(str(run)))
    server.start()
    assert not finished(client, run, run_id)
    again = Process(command, tmp_path / "log")
    assert again.end() == 0, again.output()[-3000:]
    assert finished(client, run, run_id)
    history = client.get_metric_history(run_id, "train/loss")
    assert [(m.step, m.value) for m in history] == [(r["step"], r["train/loss"]) for r in rows(run)]
    pictures = [f.path for f in client.list_artifacts(run_id, "samples")]
    assert sorted(pictures) == sorted(f"samples/{f.name}" for f in (run / "samples").iterdir())
