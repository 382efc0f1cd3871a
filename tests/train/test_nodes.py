"""Several machines: one goes for good, a driver is asked to stop, a disk is lost; torchrun is asked to stop."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from pipelines import config
from pipelines.train import checkpoint, status
from pipelines.train.local import train_here
from pipelines.train.records import read_events
from tests.train import processes, runs
from tests.train.conftest import add_machine
from tests.train.processes import curve, machine_of, pids, rows, starts, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
STEPS = 24


def written(tmp_path: Path, name: str, address: str | None, tracked: bool = False, **how: Any) -> Path:
    """The config file of a run of STEPS steps."""
    data, mixture = str(tmp_path / "data"), runs.mixture(tmp_path, "stage0", STEPS)
    if not (tmp_path / "data").exists():
        runs.data_root(tmp_path / "data")
    usual = {"checkpoint_every": 3, "heldout_every": 8, "strip_every": 999, "heldout_samples": 2, **how}
    found = runs.settings(tmp_path, name, mixture, data, **usual).model_copy(
        update={
            "ray": config.RaySettings(address=address, start_timeout_s=20),
            "tracking": config.TrackingSettings(enabled=tracked),
        }
    )
    file = tmp_path / f"{name}.yaml"
    file.write_text(config.dump(found))
    return file


def test_as_many_workers_as_there_are_machines_and_a_stop_in_between(cluster, tmp_path: Path) -> None:
    """Workers of two CPUs: one per machine. Two, then one after a machine is lost, then SIGTERM, then on."""
    file, run = written(tmp_path, "elastic", cluster.address, workers=[1, 2], cpus_per_worker=2), tmp_path / "elastic"
    driver = processes.driver(file, tmp_path / "log")
    first = wait_for(lambda: starts(run), driver)[0]
    assert len(pids(first)) == 2
    wait_for(lambda: len(rows(run)) >= 5, driver)
    cluster.remove_node(machine_of(cluster, pids(first)[1]), allow_graceful=False)
    second = wait_for(lambda: starts(run)[1:], driver)[0]
    assert len(pids(second)) == 1
    wait_for(lambda: len(rows(run)) >= second["step"] + 4, driver)
    os.kill(driver.pid, signal.SIGTERM)
    assert driver.end() == 143, driver.output()[-3000:]
    assert "the same command goes on from the checkpoint of step" in driver.output()
    stopped = [e for e in read_events(str(run)) if e["kind"] == "stopped"]
    assert len(stopped) == 1
    assert checkpoint.newest_step(str(run)) == stopped[0]["step"] == len(rows(run)) < STEPS
    assert status.describe(str(run))[0].endswith("stopped, as asked")

    add_machine(cluster)
    driver = processes.driver(file, tmp_path / "log")
    assert driver.end() == 0, driver.output()[-3000:]
    assert [len(pids(s)) for s in starts(run)][:2] == [2, 1]
    assert len(starts(run)) == 3  # with one worker or two: Ray may still count the stopped driver's CPUs as taken
    assert starts(run)[2]["step"] == stopped[0]["step"]
    assert [r["step"] for r in rows(run)] == list(range(STEPS))

    train_here(config.load(config.Settings, written(tmp_path, "alone", None)))
    for ours, theirs in zip(curve(tmp_path / "alone"), curve(run), strict=True):
        assert set(ours) == set(theirs)
        for key in ours:
            assert theirs[key] == pytest.approx(ours[key], rel=1e-3, abs=1e-6), key


def test_a_lost_disk_is_tried_once_more_and_then_told(cluster, tmp_path: Path) -> None:
    file, run = written(tmp_path, "lost", cluster.address, tracked=True, max_restarts=9), tmp_path / "lost"
    driver = processes.driver(file, tmp_path / "log")
    wait_for(lambda: len(rows(run)) >= 2, driver)
    shutil.rmtree(tmp_path / "data" / "shards")
    assert driver.end() == 1, driver.output()[-3000:]
    told = [line for line in driver.output().splitlines() if line.startswith("sama: ")]
    assert len(told) == 1  # Ray's own lines may come behind it
    assert re.match(r"sama: training failed: rank 0: StorageError: the media of .* is not where", told[0]), told
    kinds = [e["kind"] for e in read_events(str(run))]
    assert kinds.count("restart") == 1  # of nine
    assert kinds[-1] == "failed"
    from mlflow import MlflowClient

    tracked = json.loads((run / "tracking.json").read_text())
    assert MlflowClient(tracked["uri"]).get_run(tracked["run_id"]).info.status == "FAILED"
    lines = status.describe(str(run))
    assert lines[0].endswith(": failed")
    assert any("StorageError" in line for line in lines if line.startswith("last error"))


def test_torchrun_asked_to_stop_saves_and_goes_on(tmp_path: Path) -> None:
    file, run = written(tmp_path, "torchrun", None, workers=2, checkpoint_every=999), tmp_path / "torchrun"
    ranks = processes.torchrun(file, tmp_path / "log", 2)
    wait_for(lambda: len(rows(run)) >= 3, ranks)
    os.kill(ranks.pid, signal.SIGTERM)  # as Slurm does; torchrun hands it to both ranks
    assert ranks.end() != 0
    stopped = [e for e in read_events(str(run)) if e["kind"] == "stopped"]
    assert len(stopped) == 1, ranks.output()[-3000:]
    assert checkpoint.newest_step(str(run)) == stopped[0]["step"] == len(rows(run)) < STEPS
    ranks = processes.torchrun(file, tmp_path / "log", 2)
    assert ranks.end() == 0, ranks.output()[-3000:]
    assert [s["step"] for s in starts(run)] == [0, stopped[0]["step"]]
    assert [r["step"] for r in rows(run)] == list(range(STEPS))
