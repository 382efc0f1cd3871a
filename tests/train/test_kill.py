"""Real processes, real kills: a worker and then the driver die in the middle, and nothing of it shows in the result."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from pipelines import config
from pipelines.samples import storage
from pipelines.train import checkpoint
from pipelines.train.records import METRICS, read_events, read_rows
from tests.train import runs

STEPS = 9
DRIVER = "import sys; from pipelines.cli import quiet_dependencies; quiet_dependencies(); "
DRIVER += "from pipelines.train.command import train; train(sys.argv[1], [], None, None, False)"


def rows(run: Path) -> list[dict]:
    return list(read_rows(str(run / METRICS)))


def wait_for(what, process: subprocess.Popen | None, seconds: float = 150.0):
    """The first true value of what(); fails when the process ends before or time is up."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = what()
        if found:
            return found
        if process is not None and process.poll() is not None:
            pytest.fail(f"the driver ended with {process.returncode}: {process.communicate()}")
        time.sleep(0.05)
    pytest.fail("waited too long")


def start(config_file: Path) -> subprocess.Popen:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    env.pop("RAY_ADDRESS", None)
    return spawn([sys.executable, "-c", DRIVER, str(config_file)], env)


def spawn(command: list[str], env: dict[str, str]) -> subprocess.Popen:
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)


def starts(run: Path) -> list[dict]:
    return [e for e in read_events(str(run)) if e["kind"] == "start"]


def alive(pid: int) -> bool:
    """Whether a process runs; one that ended and waits to be noticed does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_worker_and_killed_driver_leave_no_trace_in_the_weights(tmp_path: Path) -> None:
    data, mixture = runs.data_root(tmp_path / "data"), runs.mixture(tmp_path, "stage0", STEPS)
    how = {"workers": 2, "checkpoint_every": 2, "heldout_every": 50, "strip_every": 50, "heldout_samples": 2}
    settings = runs.settings(tmp_path, "killed", mixture, data, **how)
    file = tmp_path / "killed.yaml"
    file.write_text(config.dump(settings))
    run = tmp_path / "killed"

    driver = start(file)
    first = wait_for(lambda: starts(run), driver)[0]
    wait_for(lambda: len(rows(run)) >= 3, driver)
    os.kill(int(re.search(r"rank 1 on \S+ pid (\d+)", first["message"])[1]), signal.SIGKILL)
    second = wait_for(lambda: starts(run)[1:], driver)[0]
    assert second["step"] in (2, 4)
    wait_for(lambda: (checkpoint.newest_step(str(run)) or 0) > second["step"], driver)
    pids = [int(pid) for pid in re.findall(r"pid (\d+)", second["message"])]
    os.kill(driver.pid, signal.SIGKILL)
    driver.communicate(timeout=60)
    wait_for(lambda: not any(alive(pid) for pid in pids), None, 60.0)
    reached = checkpoint.newest_step(str(run))
    assert reached < STEPS

    driver = start(file)
    out, err = driver.communicate(timeout=240)
    assert driver.returncode == 0, (out, err)
    assert [e["step"] for e in starts(run)] == [0, second["step"], reached]
    kinds = [e["kind"] for e in read_events(str(run))]
    assert kinds.count("restart") + kinds.count("node_lost") == 1
    assert f"step {STEPS}/{STEPS}" in out

    # the reference: the same two ranks without Ray, read in process, and never killed
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    whole = runs.settings(tmp_path, "whole", mixture, data, **how).model_copy(
        update={"tracking": config.TrackingSettings(enabled=False)}
    )
    reference = tmp_path / "whole.yaml"
    reference.write_text(config.dump(whole))
    env = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pipelines.train.local", str(reference)]
    ranks = [spawn(command, {**env, "RANK": str(r)}) for r in range(2)]
    outs = [p.communicate(timeout=240) for p in ranks]
    assert [p.returncode for p in ranks] == [0, 0], outs

    for which in ("raw", "ema"):
        ours, theirs = (checkpoint.load_weights(str(tmp_path / r), None, which)[0] for r in ("whole", "killed"))
        assert set(ours) == set(theirs)
        assert [n for n in ours if not torch.equal(ours[n], theirs[n])] == []
    ours, theirs = rows(tmp_path / "whole"), rows(run)
    assert [r["step"] for r in theirs] == list(range(STEPS))
    keys = {k for r in ours for k in r if k.startswith(("train/", "seen/", "heldout/"))}
    assert [{k: r.get(k) for k in keys} for r in ours] == [{k: r.get(k) for k in keys} for r in theirs]

    from mlflow import MlflowClient

    tracked = json.loads(storage.read_bytes(str(run / "tracking.json")))
    client = MlflowClient(tracked["uri"])
    assert client.get_run(tracked["run_id"]).info.status == "FINISHED"
    assert client.get_run(tracked["run_id"]).data.tags["sama.restarts"] == "1"
    history = client.get_metric_history(tracked["run_id"], "train/loss")
    assert [(m.step, m.value) for m in history] == [(r["step"], r["train/loss"]) for r in theirs]
    assert len(client.search_runs([client.get_run(tracked["run_id"]).info.experiment_id])) == 1
