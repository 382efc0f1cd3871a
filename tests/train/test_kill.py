"""Real processes, real kills: workers, whole machines and drivers die twenty times, and nothing of it shows."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest

from pipelines import config
from pipelines.train import checkpoint
from pipelines.train.records import read_events
from tests.train import processes, runs
from tests.train.conftest import add_machine
from tests.train.processes import machine_of, pids, rows, starts, wait_for

STEPS = 64
KILLS = ["worker"] * 14 + ["node"] * 3 + ["driver"] * 3


@pytest.mark.slow
@pytest.mark.timeout(2700)
def test_twenty_kills_leave_no_trace_in_weights_or_metrics(cluster, tmp_path: Path) -> None:
    for _ in range(2):  # Ray keeps a dead driver's CPUs reserved for three minutes: room for both
        add_machine(cluster)
    data, mixture = runs.data_root(tmp_path / "data"), runs.mixture(tmp_path, "stage0", STEPS)
    how = {
        "workers": 2, "checkpoint_every": 2, "heldout_every": 16, "strip_every": 999, "heldout_samples": 2,
        "max_restarts": 40,
    }  # fmt: skip
    settings = runs.settings(tmp_path, "killed", mixture, data, **how)
    settings = settings.model_copy(update={"ray": config.RaySettings(address=cluster.address)})
    file, run = tmp_path / "killed.yaml", tmp_path / "killed"
    file.write_text(config.dump(settings))

    dice = random.Random(20)
    kills = dice.sample(KILLS, len(KILLS))
    driver = processes.driver(file, tmp_path / "killed.log")
    for number, victim in enumerate(kills):
        last = wait_for(lambda n=number: starts(run)[n:], driver)[-1]
        goal = last["step"] + dice.randint(1, 4)
        wait_for(lambda g=goal: len(rows(run)) >= g, driver)
        time.sleep(dice.uniform(0.0, 0.3))
        ranks = pids(last)
        if victim == "worker":
            os.kill(dice.choice(ranks), signal.SIGKILL)
        elif victim == "node":
            cluster.remove_node(machine_of(cluster, dice.choice(ranks)), allow_graceful=False)
            add_machine(cluster)
        else:
            os.kill(driver.pid, signal.SIGKILL)
            driver.end()
            wait_for(lambda p=ranks: not any(processes.alive(pid) for pid in p), None, 60.0)
            driver = processes.driver(file, tmp_path / "killed.log")
        wait_for(lambda n=number: len(starts(run)) > n + 1, driver)
    assert driver.end() == 0, driver.output()[-4000:]
    assert f"step {STEPS}/{STEPS}" in driver.output()
    assert len(starts(run)) == len(KILLS) + 1

    # the reference: the same two ranks under torchrun, without Ray and Ray Data, and never killed
    whole = settings.model_copy(
        update={"run": str(tmp_path / "whole"), "tracking": config.TrackingSettings(enabled=False)}
    )
    (tmp_path / "whole.yaml").write_text(config.dump(whole))
    reference = processes.torchrun(tmp_path / "whole.yaml", tmp_path / "whole.log", 2)
    assert reference.end() == 0, reference.output()[-4000:]
    assert [r["step"] for r in rows(run)] == list(range(STEPS))
    assert processes.curve(run) == processes.curve(tmp_path / "whole")
    processes.assert_same_weights(run, tmp_path / "whole")

    from mlflow import MlflowClient

    tracked = json.loads((run / "tracking.json").read_text())
    client = MlflowClient(tracked["uri"])
    found = client.get_run(tracked["run_id"])
    assert found.info.status == "FINISHED"
    assert found.data.tags["sama.restarts"] == str(len(KILLS))
    history = client.get_metric_history(tracked["run_id"], "train/loss")
    assert [(m.step, m.value) for m in history] == [(r["step"], r["train/loss"]) for r in rows(run)]
    assert len(client.search_runs([found.info.experiment_id])) == 1
    kinds = [e["kind"] for e in read_events(str(run))]
    assert kinds.count("restart") + kinds.count("node_lost") == len(KILLS) - KILLS.count("driver")
    assert checkpoint.newest_step(str(run)) == STEPS
