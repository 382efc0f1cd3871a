"""A real MLflow server that goes away and comes back, and its registry."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines import tracking, tracking_registry
from pipelines.tracking import BUFFER, Tracker
from pipelines.tracking_store import open_client
from tests.mlflow_server import Server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


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
