"""The command: every verb explains itself, and bad input is one sentence with exit code 2."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipelines import cli
from sama.errors import InputError
from tests.conftest import REPOSITORY


@pytest.mark.parametrize("verb", sorted(cli.VERBS))
def test_every_verb_has_help_with_an_example(verb: str) -> None:
    shown = CliRunner().invoke(cli.build(), [verb, "--help"])
    assert shown.exit_code == 0
    assert f"sama {verb}" in shown.output or verb == "pretext", shown.output


def sama(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "pipelines.cli", *arguments], capture_output=True, text=True, cwd=REPOSITORY
    )


def test_a_mistake_is_one_line_on_stderr_and_exit_code_2(tmp_path: Path) -> None:
    done = sama("ingest", "ditto-1m", str(tmp_path / "absent"), "--root", str(tmp_path / "root"))
    assert done.returncode == 2
    assert done.stderr.startswith("sama: ")
    assert len(done.stderr.strip().splitlines()) == 1
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "root").exists()


BAD = {
    "unknown setting": (["demo", "--set", "train.ema_decy=1"], "did you mean train.ema_decay?"),
    "unknown preset": (["demo", "--out", "OUT", "--set", "preset=huge"], "huge"),
    "corrupt clip": (["edit", "CLIP", "Remove it.", "--weights", "W", "--preset", "tiny", "--out", "X"], "CLIP"),
    "no run": (["status", "ABSENT"], "ABSENT"),
    "no clips": (["demo", "--clips", "ABSENT", "--out", "OUT"], "manifest.jsonl"),
    "no root": (["curate", "ABSENT"], "ABSENT"),
    "no recipe": (["plan", "no-such-mixture.yaml", "--data", "ABSENT"], "no-such-mixture.yaml"),
    "foreign folder": (["demo", "--out", "FULL"], "not empty"),
    "no report input": (["report", "--root", "ABSENT", "--out", "X"], "ABSENT"),
}


@pytest.mark.parametrize("case", sorted(BAD))
def test_bad_input(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments, expected = BAD[case]
    (tmp_path / "FULL").mkdir()
    (tmp_path / "FULL" / "mine.txt").write_text("keep me")
    (tmp_path / "CLIP").write_bytes(b"not a clip")
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError) as error:
        cli.build()(arguments, standalone_mode=False)
    assert expected in str(error.value)
    assert "\n" not in str(error.value)
    assert sorted(tmp_path.rglob("*")) == before, "nothing is written, nothing is lost"
