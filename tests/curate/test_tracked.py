"""Curate, select and report as runs in MLflow, alone and below a run that was there before."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from pipelines import cli, tracking
from pipelines.samples import storage
from tests.curate.samples import index_entry, signals_entry, write_root


@pytest.fixture
def root(tmp_path: Path) -> str:
    rows = [index_entry(f"s{i}") for i in range(4)]
    return write_root(
        tmp_path / "root", rows, [signals_entry(r, blur_target=0.1 + 0.2 * i) for i, r in enumerate(rows)]
    )


@pytest.fixture
def store(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


def sama(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["sama", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def runs(store: str, experiment: str) -> list:
    from mlflow import MlflowClient

    client = MlflowClient(store)
    found = client.get_experiment_by_name(experiment)
    return client.search_runs([found.experiment_id]) if found else []


def files(store: str, run_id: str) -> dict[str, str]:
    from mlflow import MlflowClient

    client = MlflowClient(store)
    return {f.path: client.download_artifacts(run_id, f.path) for f in client.list_artifacts(run_id)}


def test_nothing_is_logged_unless_asked(root: str, store: str, monkeypatch: pytest.MonkeyPatch):
    assert sama(monkeypatch, "select", root, "--name", "quiet") == 0
    assert not Path(store.removeprefix("sqlite:///")).exists()
    assert sama(monkeypatch, "select", root, "--name", "quiet", "--parent-run", "abc") == 2


def test_select_and_report_join_a_parent(root: str, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    parent = tracking.start_run(store, "old-experiment", "weeks-ago")
    tracking.finish(store, parent, "FINISHED")
    below = ["--tracking-uri", store, "--parent-run", parent]
    page = tmp_path / "report.html"
    assert sama(monkeypatch, "select", root, "--name", "first", "--set", "video_edit.max_blur=0.6", *below) == 0
    assert sama(monkeypatch, "report", "--root", root, "--no-media", "--out", str(page), *below) == 0
    found = {r.data.tags["mlflow.runName"]: r for r in runs(store, "old-experiment")}
    assert set(found) == {"weeks-ago", "select", "report"}
    chosen = found["select"]
    assert chosen.info.status == found["report"].info.status == "FINISHED"
    assert chosen.data.tags["mlflow.parentRunId"] == found["report"].data.tags["mlflow.parentRunId"] == parent
    decided = {n.removeprefix("decisions."): v for n, v in chosen.data.metrics.items() if n.startswith("decisions.")}
    assert decided == {"kept": 3, "rejected": 1, "failed": 0, "unscored": 0}
    assert (
        sum(decided.values())
        == chosen.data.metrics["datasets.one.in"]
        == found["report"].data.metrics["ledger.one.index"]
    )
    assert chosen.data.metrics["datasets.one.reasons.blurred"] == 1
    assert chosen.data.params["video_edit.max_blur"] == "0.6"
    summary = json.loads(Path(files(store, chosen.info.run_id)["summary.json"]).read_text())
    assert json.loads(chosen.data.tags["sama.selection_digests"]) == {"first": summary["digest"]}
    kept = Path(files(store, found["report"].info.run_id)["report.html"])
    assert kept.read_bytes() == page.read_bytes()


def test_curate_is_a_run(root: str, store: str, monkeypatch: pytest.MonkeyPatch, ray_session: None):
    assert sama(monkeypatch, "curate", root, "--tracking-uri", store, "--experiment", "mine") == 0
    (run,) = runs(store, "mine")
    assert (run.info.status, run.data.tags["sama.step"]) == ("FINISHED", "curate")
    assert run.data.metrics["curate.one.rows"] == 4
    assert run.data.metrics["curate.one.looked"] == 0
    assert run.data.metrics["near_duplicates.groups"] == 0
    assert run.data.params["datasets"] == "['one']"


def test_a_failure_is_told(root: str, store: str, monkeypatch: pytest.MonkeyPatch):
    where = ["--tracking-uri", store]
    assert sama(monkeypatch, "select", root, "--name", "first", *where) == 0
    assert sama(monkeypatch, "select", root, "--name", "first", "--set", "video_edit.max_blur=0.1", *where) == 2
    failed = next(r for r in runs(store, "sama") if r.info.status == "FAILED")
    assert "is frozen with" in failed.data.tags["sama.error"]
    assert sama(monkeypatch, "select", root, "--name", "x", *where, "--parent-run", "0" * 32) == 2
    assert sama(monkeypatch, "report", "--root", root, *where, "--parent-run", "nobody") == 2


def test_a_store_that_is_away_stops_nothing(root: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    assert sama(monkeypatch, "select", root, "--name", "first", "--tracking-uri", "http://127.0.0.1:9") == 0
    assert "going on without" in capsys.readouterr().out
    assert storage.exists(storage.join(root, "selections", "first", "summary.json"))
