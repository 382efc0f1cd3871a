"""`sama ingest` and `sama index` as a user runs them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from pipelines.ingest import command
from pipelines.samples.ledger import ledger


def sama(*words: str) -> subprocess.CompletedProcess:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, "-m", "pipelines.cli", *words], capture_output=True, text=True, env=env)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["ingest", "ditto-1m", "/no/such/folder", "--root", "r"], "sama: /no/such/folder is not a folder"),
        (["ingest", "ditto", ".", "--root", "r"], "did you mean ditto-1m?"),
        (["ingest", "pairs", ".", "--root", "r", "--map", "target"], "--map target: write it as field=column"),
        (["index", "r", "x", "/no/such.tar"], "sama: /no/such.tar is not there"),
        (["ingest", "pairs", ".", "--root", "r", "--set", "num_cpu=3"], "did you mean num_cpus?"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(words: list[str], says: str, tmp_path: Path) -> None:
    run = sama(*[str(tmp_path / "r") if w == "r" else w for w in words])
    assert run.returncode == 2, run.stderr
    assert says in run.stderr
    assert len(run.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "r").exists()


@pytest.mark.usefixtures("no_ray")
def test_ingest_says_what_it_did(small_world: dict[str, dict], tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(command.ingest)
    words = [
        "ditto-1m", small_world["ditto-1m"]["folder"], "--root", str(tmp_path), "--name", "mine",
        "--heldout-share", "0.5", "--chunk-rows", "4",
    ]  # fmt: skip
    run = CliRunner().invoke(app, words)
    assert run.exit_code == 0, run.output
    assert "mine: 9 samples indexed, 3 rejected" in run.output
    assert "1 unreadable_target" in run.output
    assert ledger(str(tmp_path))["mine"]["index"] == 9
    assert "3 rejected" not in CliRunner().invoke(app, words).output
