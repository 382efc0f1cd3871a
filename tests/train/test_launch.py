"""What the driver does around training, without Ray: resources, errors, lines, status, strips, shares."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.config import LoaderSettings, Settings, TrainSettings
from pipelines.planner.devices import forward_flops
from pipelines.samples import provenance
from pipelines.train import checkpoint, failures, launch, run_folder
from pipelines.train.heldout import share
from pipelines.train.job import Job
from pipelines.train.lines import Follower, Pace, step_line
from pipelines.train.notices import Notices
from pipelines.train.records import METRICS, MetricsFile, add_event
from pipelines.train.speed import tokens_of
from pipelines.train.status import describe, lost_minutes
from pipelines.train.strips import GAP, strip
from sama.errors import InputError

ROW = {
    "step": 11, "train/loss": 1.23456, "train/loss_fm": 1.2, "train/loss_sem": 0.34, "train/loss_fm/speed": 1.1,
    "train/grad_norm": 0.5, "train/lr": 2e-5, "time/wait": 0.01, "time/encode": 0.2, "time/forward": 0.1,
    "time/backward": 0.2, "time/optimizer": 0.02, "speed/tokens_per_s": 2500.0, "stream": "video", "bucket": "9x64x64",
    "tokens_per_device": 1300, "time": 1.0, "seconds": 2.0,
}  # fmt: skip


def settings(**train) -> Settings:
    return Settings(run="r", data="d", mixture="m", train=TrainSettings(**train), loader=LoaderSettings(decode_cpus=1))


def cluster(monkeypatch: pytest.MonkeyPatch, *nodes: dict[str, float]) -> None:
    import ray

    total: dict[str, float] = {}
    for node in nodes:
        for name, number in node.items():
            total[name] = total.get(name, 0) + number
    monkeypatch.setattr(ray, "cluster_resources", lambda: total)
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": node} for node in nodes])


def test_workers_that_leave_the_loader_no_cpu_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster(monkeypatch, {"CPU": 2.0})
    with pytest.raises(InputError) as error:
        launch.check_resources(settings(workers=2))
    assert str(error.value) == (
        "2 training workers and 1 dataset need 3 CPUs, this cluster has 2: lower train.workers or train.cpus_per_worker"
    )
    launch.check_resources(settings(workers=2, cpus_per_worker=0.5))
    launch.check_resources(settings(workers=1))


def test_gpus_and_nodes_are_checked_too(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster(monkeypatch, {"CPU": 4.0}, {"CPU": 4.0})
    with pytest.raises(InputError, match="1 training worker need 1 GPUs, this cluster has 0"):
        launch.check_resources(settings(gpus_per_worker=1))
    with pytest.raises(InputError, match="no node of this cluster has the 6 CPUs"):
        launch.check_resources(settings(cpus_per_worker=6))


def test_elastic_workers_leave_the_loader_its_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster(monkeypatch, {"CPU": 4.0}, {"CPU": 4.0})
    launch.check_resources(settings(workers=(2, 64)))
    assert launch._workers(settings(workers=(2, 64))) == (2, 7)
    assert launch._workers(settings(workers=(2, 3))) == (2, 3)
    assert launch._workers(settings(workers=(1, 64), gpus_per_worker=1)) == (1, 64)
    assert launch._workers(settings(workers=5)) == 5
    with pytest.raises(InputError, match="8 training workers and 1 dataset need 9 CPUs"):
        launch.check_resources(settings(workers=(8, 16)))
    with pytest.raises(InputError, match="give one number of workers"):
        launch.check_resources(settings(workers=(2, 4), sequence_parallel=2))
    with pytest.raises(ValueError, match="1 <= least <= most"):
        settings(workers=(3, 2))


def test_a_layout_that_does_not_divide_is_refused_before_any_worker_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster(monkeypatch, {"CPU": 64.0})
    with pytest.raises(InputError, match="= 3 does not divide the model's 40 attention heads; possible are 1, 2, 4"):
        launch.check_resources(settings(workers=6, sequence_parallel=3))
    with pytest.raises(InputError, match=r"6 training workers do not form groups of train\.sequence_parallel = 4"):
        launch.check_resources(settings(workers=6, sequence_parallel=4))
    with pytest.raises(InputError, match="hsdp_replicas = 4 does not divide the 6 data ranks"):
        launch.check_resources(settings(workers=6, hsdp_replicas=4))
    launch.check_resources(settings(workers=8, hsdp_replicas=2, sequence_parallel=4))


def test_each_training_of_a_process_has_its_own_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one started from there, which inherits the environment."""
    import ray.train.torch

    name, seen = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", []

    class Trainer:
        def __init__(self, *args, **options) -> None: ...

        def fit(self) -> None:
            seen.append(os.environ[name])

    monkeypatch.setattr(ray.train.torch, "TorchTrainer", Trainer)
    monkeypatch.delenv(name, raising=False)
    cluster(monkeypatch, {"CPU": 4.0})
    for workers in (2, (1, 2)):
        how = settings(workers=workers)
        job = Job("/run", "/run/plan", "digest", how.model_dump(mode="json"), "holder", None, None)
        launch._fit(run_folder.Prepared(job, how, 3, "now", False), Notices(), False)
    assert seen == ["300.0", "30.0"]
    assert name not in os.environ


def test_the_first_real_error_is_told() -> None:
    error = RuntimeError("many lines")
    error.worker_failures = {0: RuntimeError("[gloo] Connection closed by peer"), 1: ValueError("the clip is empty")}
    assert failures.first_error(error) == "rank 1: ValueError: the clip is empty"
    assert failures.first_error(OSError("disk full")) == "OSError: disk full"


def test_a_step_in_one_line() -> None:
    assert step_line(ROW, 300, 200.0) == (
        "step 12/300 video 9x64x64 | loss 1.2346 fm 1.2000 sem 0.3400 | speed 1.1000 | lr 2.00e-05 grad 0.500 | "
        "wait 0.01 encode 0.20 forward 0.10 backward 0.20 optimizer 0.02 s | 1300 tokens/device 2500 tokens/s | "
        "3m20s left"
    )
    assert "held-out fm 0.5000" in step_line({**ROW, "heldout/loss_fm/none": 0.4, "heldout/loss_fm/add": 0.6}, 300)
    assert "loss nan" in step_line({**ROW, "train/loss": None}, 300)


def test_time_left_follows_the_last_steps() -> None:
    pace = Pace()
    assert pace.left(100.0, 10) is None
    assert pace.left(102.0, 10) == 20
    assert pace.left(106.0, 10) == 30


def test_follower_says_each_step_once_over_a_restart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = MetricsFile(str(tmp_path), 0)
    file.append({**ROW, "step": 0})
    add_event(str(tmp_path), "start", "before")
    with Follower(str(tmp_path), 5):
        for step in (1, 2, 3):
            file.append({**ROW, "step": step})
        time.sleep(0.7)
        file.close()
        add_event(str(tmp_path), "restart", "rank 1 died")
        file = MetricsFile(str(tmp_path), 2)
        for step in (2, 3, 4):
            file.append({**ROW, "step": step})
        with open(tmp_path / METRICS, "a") as raw:
            raw.write('{"step": 5')
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" ")[1] for line in lines if line.startswith("step")] == ["2/5", "3/5", "4/5", "5/5"]
    assert [line for line in lines if not line.startswith("step")] == ["restart: rank 1 died"]


def test_status_tells_the_story(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a run folder"):
        describe(str(tmp_path))
    (tmp_path / "plan.json").write_text(json.dumps({"steps": 4, "digest": "x"}))
    file = MetricsFile(str(tmp_path), 0)
    for step in range(3):
        file.append({**ROW, "step": step, "time": time.time()})
    file.close()
    add_event(str(tmp_path), "start", "from the start", 0)
    add_event(str(tmp_path), "restart", "rank 0: killed", 2)
    lines = describe(str(tmp_path))
    assert lines[0].endswith(": running")
    assert lines[1] == "step 3 of 4, loss 1.2346"
    assert lines[2] == "no checkpoint yet"
    assert lines[3] == "0 restarts (1 by Ray), 0.0 minutes lost"  # nothing began again yet
    assert "rank 0: killed" in lines[4]
    provenance.record(str(tmp_path), "train", {}, {"status": "KILLED"}, {}, provenance.now(), provenance.now())
    assert describe(str(tmp_path))[0].endswith(": stopped by its user")
    provenance.record(str(tmp_path), "train", {}, {}, {}, provenance.now())
    add_event(str(tmp_path), "failed", "no more restarts")
    assert describe(str(tmp_path))[0].endswith(": failed")
    checkpoint.save(str(tmp_path), 4, {}, {"step": 4})
    assert describe(str(tmp_path))[0].endswith(": finished")


def test_lost_minutes_count_what_was_done_again() -> None:
    rows = [{"step": s, "time": 100.0 + 60 * s, "seconds": 60.0} for s in range(3)]  # steps end at 100, 160, 220
    rows += [{"step": 3, "time": 700.0, "seconds": 60.0}, {"step": 4, "time": 760.0, "seconds": 60.0}]
    start = {"kind": "start", "step": 0, "time": 30.0}
    assert lost_minutes(rows[:3], [start]) == 0.0
    again = {"kind": "start", "step": 3, "time": 500.0}
    assert lost_minutes(rows, [start, again, again]) == (700 - 60 - 220) / 60
    assert lost_minutes(rows[:3], [start, again]) == (500 - 220) / 60  # nothing done since


def error(name: str, text: str, *bases: type, step: int | None = None) -> Exception:
    found = type(name, bases or (Exception,), {})(text)
    if step is not None:
        found.training_step = step
    return found


def test_what_fails_again_at_the_same_step_is_not_tried_a_third_time() -> None:
    def judged(*errors: Exception) -> list[bool]:
        found = failures.Failures()
        return [found.judge({0: RuntimeError("[gloo] Connection closed by peer"), 1: e}, 9)[1] for e in errors]

    assert judged(ValueError("x"), ValueError("x")) == [True, False]
    assert judged(error("ValueError", "x", step=4), error("ValueError", "y", step=5)) == [True, True]
    assert judged(error("ValueError", "x", step=4), error("KeyError", "y", step=4)) == [True, True]
    dead = error("ActorDiedError", "killed", error("RayActorError", "").__class__)
    assert judged(*[dead] * 5) == [True] * 5
    assert judged(error("StorageError", "a", step=1), error("StorageError", "b", step=7)) == [True, False]
    wrapped = error("RayTaskError", "ray::Map()\n  File x\npipelines.loading.rows.StorageError: no media\n\nUDF failed")
    assert judged(wrapped, error("StorageError", "no media")) == [True, False]
    assert failures.sentence(wrapped) == "StorageError: no media"
    assert judged(InputError("no such file")) == [True]
    assert judged(error("SupersededError", "another job")) == [False]
    assert judged(RuntimeError("CUDA out of memory. Tried"), error("OutOfMemoryError", "killed")) == [True, False]
    assert judged(error("E", "out of memory", step=3), error("E", "out of memory", step=4)) == [True, True]
    gone = RuntimeError("connection reset")
    assert failures.Failures().judge({0: gone, 1: dead, 2: ValueError("the cause")}, 0)[0] == (
        "rank 2: ValueError: the cause"
    )


def test_every_rank_evaluates_equally_often() -> None:
    for ranks in (1, 2, 3, 4):
        shares = [share(list("abcde"), r, ranks) for r in range(ranks)]
        assert len({len(s) for s in shares}) == 1
        assert sorted(i for s in shares for i, weight in s if weight) == list("abcde")
    assert share([], 0, 2) == []


def test_strip_shows_clips_under_each_other() -> None:
    clips = [np.full((9, 8, 12, 3), value, np.uint8) for value in (10, 20, 30)]
    sheet = strip(clips)
    assert sheet.shape == (3 * 8 + 2 * GAP, 5 * 12 + 4 * GAP, 3)
    assert [int(sheet[y, 0, 0]) for y in (0, 8 + GAP, 2 * (8 + GAP))] == [10, 20, 30]
    assert sheet[8, 0, 0] == 255
    assert strip([c[:1] for c in clips]).shape == (3 * 8 + 2 * GAP, 12, 3)


def test_flops_are_those_that_a_counter_counts() -> None:
    """A wide model on the meta device: every shape is real, nothing is computed."""
    from torch.utils.flop_counter import FlopCounterMode

    from sama.transformer import SamaTransformer

    with torch.device("meta"):
        model = SamaTransformer(num_attention_heads=12, num_layers=2, ffn_dim=8960).eval()
        latents = torch.empty(1, 16, 5, 30, 52)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(latents, torch.empty(1), torch.empty(1, 512, 4096), latents, torch.empty(1, 65, 1152))
    tokens = tokens_of(latents, True, 65)
    assert tokens == 2 * 5 * 15 * 26 + 65
    assert forward_flops(model.config, tokens, 512) == pytest.approx(counter.get_total_flops(), rel=0.05)


def test_settings_that_a_run_folder_keeps(tmp_path: Path) -> None:
    from pipelines import config

    before = Settings(run=str(tmp_path), data="d", mixture="m", preset="tiny")
    (tmp_path / "config.yaml").write_text(config.dump(before))
    other = before.model_copy(update={"preset": "wan2.1-t2v-14b"})
    with pytest.raises(InputError, match=r"was made with preset tiny, now it is wan2\.1-t2v-14b"):
        run_folder._check_same(other, {})
