"""Tracking: what arrives, in which order, and what happens while the store is away."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from pipelines import tracking, tracking_store
from pipelines.tracking import BUFFER, Tracker, TrackingError
from sama.errors import InputError


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tracking.store_uri(None, str(tmp_path_factory.mktemp("store") / "run"))


def client_of(uri: str):
    from mlflow import MlflowClient

    return MlflowClient(uri)


def steps_of(uri: str, run_id: str, name: str = "train/loss") -> list[tuple[int, float]]:
    return [(m.step, m.value) for m in client_of(uri).get_metric_history(run_id, name)]


def test_store_lies_beside_the_run_folder(tmp_path: Path) -> None:
    assert tracking.store_uri(None, str(tmp_path / "stage0")) == f"sqlite:///{tmp_path}/mlflow.db"


def test_object_store_needs_a_uri() -> None:
    with pytest.raises(InputError, match=r"tracking\.uri is needed"):
        tracking.store_uri(None, "s3://bucket/run")


def test_relative_sqlite_path_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert tracking.store_uri("sqlite:///some/db", "run") == f"sqlite:///{tmp_path}/some/db"


def test_a_run_from_start_to_end(store: str, tmp_path: Path) -> None:
    parent = tracking.start_run(store, "first", "pipeline")
    run_id = tracking.start_run(
        store, "first", "stage0", parent=parent, tags={"sama.stage": "0"},
        params={"train.lr": 2e-5, "long": "x" * 9000}, datasets={"koala-36m": "d" * 64},
    )  # fmt: skip
    tracker = Tracker(store, run_id, str(tmp_path))
    for step in range(5):
        tracker.metrics(step, {"train/loss": 1.0 / (step + 1), "train/grad_norm": float("nan")})
    picture = tmp_path / "strip.png"
    picture.write_bytes(b"png")
    tracker.artifact(str(picture), "samples")
    tracker.tag("sama.restarts", "2")
    assert tracker.close(60)
    tracking.finish(store, run_id, "FINISHED")

    run = client_of(store).get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["train.lr"] == "2e-05"
    assert run.data.tags["mlflow.parentRunId"] == parent
    assert run.data.tags["sama.stage"] == "0"
    assert run.data.tags["sama.restarts"] == "2"
    assert run.inputs.dataset_inputs[0].dataset.name == "koala-36m"
    assert steps_of(store, run_id) == [(s, 1.0 / (s + 1)) for s in range(5)]
    assert steps_of(store, run_id, "train/grad_norm") == []
    assert [f.path for f in client_of(store).list_artifacts(run_id, "samples")] == ["samples/strip.png"]
    assert Path(run.info.artifact_uri).is_relative_to(Path(store.removeprefix("sqlite:///")).parent)


def test_restart_sends_what_the_killed_process_had_not_and_nothing_twice(store: str, tmp_path: Path) -> None:
    run_id = tracking.start_run(store, "restart", "run")
    first = Tracker(store, run_id, str(tmp_path), rows_after=lambda step: [])
    for step in range(3):
        first.metrics(step, {"train/loss": float(step)})
    assert first.close(60)
    # killed when 0..4 were on disk and 0..2 had arrived; the checkpoint says: go on at 4, so 4 is computed again
    rows = [{"step": s, "time": time.time(), "stream": "video", "train/loss": float(s)} for s in range(4)]
    second = Tracker(store, run_id, str(tmp_path), rows_after=lambda step: [r for r in rows if r["step"] > step])
    for step in range(4, 7):
        second.metrics(step, {"train/loss": float(step)})
    assert second.close(60)
    # and once more from an older checkpoint: 5 and 6 are recomputed
    third = Tracker(store, run_id, str(tmp_path), rows_after=lambda step: [r for r in rows if r["step"] > step])
    for step in range(4, 8):
        third.metrics(step, {"train/loss": float(step)})
    assert third.close(60)
    assert steps_of(store, run_id) == [(s, float(s)) for s in range(8)]


def test_outage_is_buffered_and_replayed_in_order(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_id = tracking.start_run(store, "outage", "run")
    messages: list[str] = []
    away = True
    real = tracking_store.open_client

    def client(uri: str):
        if away:
            raise ConnectionError("connection refused")
        return real(uri)

    monkeypatch.setattr(tracking_store, "open_client", client)
    tracker = Tracker(store, run_id, str(tmp_path), on_outage=messages.append, first_pause_s=0.05)
    for step in range(20):
        began = time.perf_counter()
        tracker.metrics(step, {"train/loss": float(step)})
        assert time.perf_counter() - began < 0.05
    deadline = time.monotonic() + 20
    while not (tmp_path / BUFFER).exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert (tmp_path / BUFFER).exists()
    assert len(messages) == 1
    assert "connection refused" in messages[0]
    away = False
    assert tracker.close(60)
    assert steps_of(store, run_id) == [(s, float(s)) for s in range(20)]
    assert not (tmp_path / BUFFER).exists()


def test_what_an_outage_left_is_sent_by_the_next_process(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = tracking.start_run(store, "later", "run")
    real = tracking_store.open_client
    monkeypatch.setattr(tracking_store, "open_client", lambda uri: (_ for _ in ()).throw(ConnectionError("away")))
    first = Tracker(store, run_id, str(tmp_path), first_pause_s=0.05)
    first.metrics(0, {"train/loss": 3.0})
    first.tag("kept", "yes")
    assert not first.close(1.0)
    assert (tmp_path / BUFFER).exists()
    monkeypatch.setattr(tracking_store, "open_client", real)
    other = Tracker(store, tracking.start_run(store, "later", "other"), str(tmp_path))
    other.tag("kept", "no")  # shares the folder, and leaves alone what is not its own
    assert other.close(60)
    assert (tmp_path / BUFFER).exists()
    second = Tracker(store, run_id, str(tmp_path))
    second.metrics(1, {"train/loss": 2.0})
    assert second.close(60)
    assert steps_of(store, run_id) == [(0, 3.0), (1, 2.0)]
    assert client_of(store).get_run(run_id).data.tags["kept"] == "yes"
    assert not (tmp_path / BUFFER).exists()


def test_what_the_store_refuses_does_not_hold_up_the_rest(store: str, tmp_path: Path) -> None:
    run_id = tracking.start_run(store, "refused", "run")
    messages: list[str] = []
    tracker = Tracker(store, run_id, str(tmp_path), on_outage=messages.append)
    tracker.metrics(0, {"bad?name": 1.0})
    tracker.artifact(str(tmp_path / "missing.png"))
    tracker.metrics(1, {"train/loss": 1.0})
    assert tracker.close(60)
    assert steps_of(store, run_id) == [(1, 1.0)]
    assert len(messages) == 2


def test_absent_store_is_said_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no database")
    with pytest.raises(TrackingError, match="no answer from the tracking store"):
        tracking.start_run(f"sqlite:///{tmp_path}/file", "x", "y")


def test_resume_knows_its_runs(store: str) -> None:
    run_id = tracking.start_run(store, "resume", "run")
    tracking.finish(store, run_id, "FAILED")
    assert tracking.resume_run(store, run_id)
    assert client_of(store).get_run(run_id).info.status == "RUNNING"
    assert not tracking.resume_run(store, "0" * 32)
