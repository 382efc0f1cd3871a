"""The whole way on the procedural world, killed in the middle and run again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipelines.samples.ledger import ledger
from tests.conftest import REPOSITORY

COMMAND = [sys.executable, "-m", "pipelines.cli", "demo", "--short", "--out"]


def rows(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_in_stage_0_the_same_command_finishes_the_same_runs(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    metrics = out / "runs" / "stage0" / "metrics.jsonl"
    environment = {**os.environ, "RAY_ADDRESS": ""}
    with (tmp_path / "first.log").open("w") as log:
        first = subprocess.Popen(
            [*COMMAND, str(out)], cwd=REPOSITORY, env=environment, stdout=log, stderr=log, start_new_session=True
        )
        deadline = time.monotonic() + 300
        while len(rows(metrics)) < 8:
            assert first.poll() is None, (tmp_path / "first.log").read_text()[-3000:]
            assert time.monotonic() < deadline
            time.sleep(0.2)
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
    before = json.loads((out / "demo.json").read_text())["mlflow_run_id"]

    done = subprocess.run([*COMMAND, str(out)], cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]

    assert json.loads((out / "demo.json").read_text())["mlflow_run_id"] == before
    for stage in ("stage0", "stage1"):
        assert [r["step"] for r in rows(out / "runs" / stage / "metrics.jsonl")] == list(range(12))
    counts = ledger(str(out / "data"))
    assert sum(c["manifest_rows"] for c in counts.values()) == 38
    assert sum(c["rejects"] for c in counts.values()) > 0
    assert len(list((out / "edits").glob("*.mp4"))) == 1
    assert (out / "report.html").stat().st_size > 50_000
    check_tracking(out, before)


def check_tracking(out: Path, parent: str) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{out / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("sama-demo")
    found = {r.info.run_name: r for r in client.search_runs([experiment.experiment_id])}
    assert sorted(found) == ["curate", "demo", "report", "select", "stage0", "stage1"]
    assert {r.info.status for r in found.values()} == {"FINISHED"}
    for name in ("curate", "report", "select", "stage0", "stage1"):
        assert found[name].data.tags["mlflow.parentRunId"] == parent
    assert found["stage1"].data.tags["sama.init_run_id"] == found["stage0"].info.run_id
    history = client.get_metric_history(found["stage0"].info.run_id, "train/loss")
    assert sorted(m.step for m in history) == list(range(12)), "no gap and no double"
    strips = [f.path for f in client.list_artifacts(found["stage1"].info.run_id, "samples")]
    assert strips
    for run_id in (parent, found["report"].info.run_id):
        assert "report.html" in [f.path for f in client.list_artifacts(run_id)]
