"""Whole runs of the tiny preset in this process: real data, real encoders, MLflow, restart, Stage 1 from Stage 0."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from pipelines.config import TrackingSettings
from pipelines.samples import storage
from pipelines.train import checkpoint, worker
from pipelines.train.local import train_here
from pipelines.train.records import METRICS, read_events, read_rows
from sama.errors import InputError
from tests.train import runs


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return runs.data_root(tmp_path_factory.mktemp("data"))


def rows(run: str) -> list[dict]:
    return list(read_rows(storage.join(run, METRICS)))


def mlflow_run(result):
    from mlflow import MlflowClient

    tracked = json.loads((Path(result.run) / "tracking.json").read_text())
    assert tracked["run_id"] == result.mlflow_run_id
    return MlflowClient(tracked["uri"]), MlflowClient(tracked["uri"]).get_run(result.mlflow_run_id)


class Killed(BaseException):
    """A death that nobody catches."""


def die_after(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the run die in the middle of the step that follows."""
    real = worker.BatchEncoder.__call__

    def call(self, batch):
        if batch.step == step:
            raise Killed
        return real(self, batch)

    monkeypatch.setattr(worker.BatchEncoder, "__call__", call)


def test_killed_and_restarted_run_ends_like_one_that_was_not(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mixture = runs.mixture(tmp_path, "stage0", 8)
    whole = train_here(runs.settings(tmp_path, "whole", mixture, data))
    assert whole.final_step == 8
    with monkeypatch.context() as patch:
        die_after(5, patch)
        with pytest.raises(Killed):
            train_here(runs.settings(tmp_path, "killed", mixture, data))
    assert checkpoint.newest_step(str(tmp_path / "killed")) == 4
    assert len(rows(str(tmp_path / "killed"))) == 5
    killed = train_here(runs.settings(tmp_path, "killed", mixture, data))
    for which in ("raw", "ema"):
        ours, theirs = (checkpoint.load_weights(r.run, None, which)[0] for r in (whole, killed))
        assert set(ours) == set(theirs)
        assert all(torch.equal(ours[n], theirs[n]) for n in ours)
    ours, theirs = rows(whole.run), rows(killed.run)
    assert [r["step"] for r in theirs] == list(range(8))
    keys = {k for r in ours for k in r if k.startswith(("train/", "seen/", "heldout/"))}
    assert [{k: r.get(k) for k in keys} for r in ours] == [{k: r.get(k) for k in keys} for r in theirs]
    assert [e["kind"] for e in read_events(killed.run) if e["kind"] == "start"] == ["start", "start"]

    client, run = mlflow_run(killed)
    assert run.info.status == "FINISHED"
    history = client.get_metric_history(killed.mlflow_run_id, "train/loss")
    assert [(m.step, m.value) for m in history] == [(r["step"], r["train/loss"]) for r in theirs]
    assert {"train/loss_sem", "train/grad_norm", "train/lr", "time/wait", "speed/tokens_per_s"} <= set(run.data.metrics)
    assert {"heldout/loss_fm/style", "train/loss_fm/edit", "train/loss_fm/speed"} <= set(run.data.metrics)
    assert 0 <= run.data.metrics["time/wait_share"] < 1
    assert any(k.startswith("system/") and k.endswith("/cpu_percent") for k in run.data.metrics)
    assert run.data.tags["sama.stage"] == "0"
    assert run.data.params["train.lr"] == "0.001"
    assert float(run.data.params["mixture.share.clips"]) == pytest.approx(0.5)
    assert {d.dataset.name for d in run.inputs.dataset_inputs} == {"pictures", "clips"}
    pictures = [f.path for f in client.list_artifacts(killed.mlflow_run_id, "samples")]
    assert sorted(pictures) == sorted(f"samples/{f.name}" for f in (Path(killed.run) / "samples").iterdir())
    assert len(pictures) >= 4
    names = {f.name for f in Path(killed.run).iterdir()}
    assert {"config.yaml", "plan.json", "metrics.jsonl", "events.jsonl", "provenance.json", "checkpoints"} <= names

    # done: the same command again changes nothing
    before = (Path(killed.run) / "metrics.jsonl").read_bytes()
    assert train_here(runs.settings(tmp_path, "killed", mixture, data)).final_step == 8
    assert (Path(killed.run) / "metrics.jsonl").read_bytes() == before
    other = runs.mixture(tmp_path, "other", 8, seed=4)
    with pytest.raises(InputError, match=r"belongs to another plan: mixture\.seed was 3 and is 4"):
        train_here(runs.settings(tmp_path, "killed", other, data))


def test_second_stage_starts_from_the_average_of_the_first(data: str, tmp_path: Path) -> None:
    """And the registry tells the way from the datasets over Stage 0 to Stage 1."""

    def registered(settings):
        return settings.model_copy(update={"tracking": TrackingSettings(register_as="sama-tiny")})

    first = train_here(registered(runs.settings(tmp_path, "stage0", runs.mixture(tmp_path, "zero", 3), data)))
    second_mixture = runs.mixture(tmp_path, "one", 2, stage=1)
    how = runs.settings(tmp_path, "stage1", second_mixture, data, init_from=first.run, lr=1e-12, checkpoint_every=1)
    second = train_here(registered(how))
    average = checkpoint.load_ema(first.run)[0]
    for which in ("raw", "ema"):
        found = checkpoint.load_weights(second.run, 1, which)[0]
        assert all(torch.allclose(found[n], average[n], atol=1e-7) for n in average)
    state = checkpoint.read_state(second.run, 1)
    assert (state["step"], state["updates"]) == (1, 1)  # its own optimizer, from the start
    client, run = mlflow_run(second)
    assert run.data.tags["sama.init_run_id"] == first.mlflow_run_id

    final = client.get_model_version_by_alias("sama-tiny", "final")
    assert (final.run_id, final.source) == (second.mlflow_run_id, checkpoint.folder_of(second.run, 2))
    assert final.tags["sama.checkpoint"] == final.source
    assert final.tags["sama.plan_digest"] == run.data.tags["sama.plan_digest"]
    origin, versions = final.tags["sama.init_run_id"], client.search_model_versions("name = 'sama-tiny'")
    before = [v for v in versions if v.run_id == origin]
    assert checkpoint.folder_of(first.run, 3) in [v.tags["sama.checkpoint"] for v in before]
    inputs = {i.dataset.name for i in client.get_run(before[0].run_id).inputs.dataset_inputs}
    assert inputs == set(json.loads(before[0].tags["sama.datasets"])) == {"pictures", "clips"}
    train_here(registered(how))  # done already: nothing new
    assert len(client.search_model_versions("name = 'sama-tiny'")) == len(versions)

    with pytest.raises(InputError, match="no run folder"):
        train_here(runs.settings(tmp_path, "stage2", second_mixture, data, init_from=str(tmp_path / "none")))
    assert not (tmp_path / "stage2").exists()


def test_failed_run_is_failed_in_mlflow(data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mixture = runs.mixture(tmp_path, "broken", 3)
    how = runs.settings(tmp_path, "broken", mixture, data)

    def call(self, batch):
        raise ValueError("no such luck")

    monkeypatch.setattr(worker.BatchEncoder, "__call__", call)
    with pytest.raises(ValueError, match="no such luck"):
        train_here(how)
    from mlflow import MlflowClient

    tracked = json.loads((tmp_path / "broken" / "tracking.json").read_text())
    assert MlflowClient(tracked["uri"]).get_run(tracked["run_id"]).info.status == "FAILED"


def test_loss_falls(data: str, tmp_path: Path) -> None:
    """Held-out loss at fixed noise levels, before and after: it has no noise of its own."""
    mixture = runs.mixture(tmp_path, "longer", 40)
    result = train_here(
        runs.settings(tmp_path, "longer", mixture, data, lr=3e-3, heldout_every=40, strip_every=99, checkpoint_every=40)
    )
    first, last = rows(result.run)[0], rows(result.run)[-1]
    names = [k for k in first if k.startswith("heldout/")]
    assert len(names) >= 2
    assert all(last[n] < first[n] for n in names)
