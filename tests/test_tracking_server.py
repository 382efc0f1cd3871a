"""A real MLflow server that goes away and comes back, and its registry."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines import tracking, tracking_registry
from pipelines.tracking import BUFFER, Tracker
from pipelines.tracking_store import open_client

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


class Server:
    """`mlflow server` on loopback, with SQLite; can be stopped and started again at the same address."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.uri, self.folder = f"http://127.0.0.1:{self.port}", folder
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        command = [
            sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1",
            "--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db",
            "--artifacts-destination", str(self.folder / "artifacts"),
        ]  # fmt: skip
        env = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"}
        with open(self.folder / "server.log", "ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=env, start_new_session=True)
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=2):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)
        pytest.fail(f"the server did not start: {(self.folder / 'server.log').read_text()[-2000:]}")

    def stop(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)  # its own session: the workers go with it
            self.process.wait(30)
            self.process = None


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    found = Server(tmp_path_factory.mktemp("server"))
    found.start()
    yield found
    found.stop()


def test_a_server_that_is_away_for_a_while_gets_everything_in_order(server: Server, tmp_path: Path) -> None:
    run_id = tracking.start_run(server.uri, "outage", "run", datasets={"koala-36m": "d" * 64})
    outages: list[str] = []
    tracker = Tracker(server.uri, run_id, str(tmp_path), on_outage=outages.append, first_pause_s=0.1)
    slowest = 0.0

    def log(first: int, stop: int) -> None:
        nonlocal slowest
        for step in range(first, stop):
            began = time.perf_counter()
            tracker.metrics(step, {"train/loss": 1.0 / (step + 1)}, time_s=1000.0 + step)
            slowest = max(slowest, time.perf_counter() - began)
            time.sleep(0.01)

    log(0, 40)
    client = open_client(server.uri)
    deadline = time.monotonic() + 60
    while not client.get_metric_history(run_id, "train/loss") and time.monotonic() < deadline:
        time.sleep(0.1)
    server.stop()
    log(40, 120)
    picture = tmp_path / "strip.png"
    picture.write_bytes(b"picture")
    tracker.artifact(str(picture), "samples")
    deadline = time.monotonic() + 60
    while not (tmp_path / BUFFER).exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    waiting = [json.loads(line) for line in (tmp_path / BUFFER).read_text().splitlines()]
    assert waiting
    server.start()
    log(120, 160)
    assert tracker.close(90)

    assert len(outages) == 1
    assert slowest < 0.05  # a step never waits for the server
    history = client.get_metric_history(run_id, "train/loss")
    assert [(m.step, m.value) for m in history] == [(s, 1.0 / (s + 1)) for s in range(160)]
    assert [m.timestamp for m in history] == [1000 * (1000 + s) for s in range(160)]
    assert [f.path for f in client.list_artifacts(run_id, "samples")] == ["samples/strip.png"]
    assert not (tmp_path / BUFFER).exists()


def test_registry_behind_a_server_keeps_the_folder_and_the_lineage(server: Server, tmp_path: Path) -> None:
    first = tracking.start_run(server.uri, "lineage", "stage0")
    second = tracking.start_run(server.uri, "lineage", "stage1", tags={"sama.init_run_id": first})
    folder = str(tmp_path / "checkpoints" / "step-8")
    tags = {"sama.plan_digest": "p" * 64, "sama.init_run_id": first, "sama.datasets": '["ditto-1m"]'}
    version = tracking.register(server.uri, second, "sama-edit", folder, tags, ["final", "best"])
    assert tracking.register(server.uri, second, "sama-edit", folder, tags, ["final"]) == version  # not twice
    later = tracking.register(server.uri, second, "sama-edit", f"{folder}0", tags, ["final"])
    client = open_client(server.uri)
    assert client.get_model_version_by_alias("sama-edit", "best").version == version
    found = client.get_model_version_by_alias("sama-edit", "final")
    assert found.version == later != version
    assert found.run_id == second
    assert found.tags[tracking_registry.CHECKPOINT] == f"{folder}0"
    assert found.tags["sama.init_run_id"] == first
    remote = tracking.register(server.uri, second, "sama-edit", "s3://bucket/run/checkpoints/step-8", tags)
    assert client.get_model_version("sama-edit", remote).source == "s3://bucket/run/checkpoints/step-8"
