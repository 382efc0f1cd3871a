"""`sama compare`: one page, nothing loaded from outside, the same samples side by side."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pipelines.report import compare
from pipelines.report.runs import read_run
from sama.errors import InputError
from tests.report.conftest import Made, write_run


def test_a_page_of_two_runs(made: Made, tmp_path: Path) -> None:
    page = Path(compare.build([str(r) for r in made.runs], str(tmp_path / "compare.html"))).read_text()
    for name in ("stage0", "stage1", "against samples seen", "against tokens seen", "against device hours"):
        assert name in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "https://" not in page
    assert "<script" not in page


def test_folders_of_one_name_are_told_apart(tmp_path: Path) -> None:
    uris = [write_run(tmp_path / side / "run", i, 20) for i, side in enumerate(("left", "right"))]
    assert compare.labels([read_run(str(u)) for u in uris]) == ["left/run", "right/run"]


def test_abscissas_come_from_the_rows(tmp_path: Path) -> None:
    run = read_run(str(write_run(tmp_path / "run", 0, 30)))
    samples, hours = compare.abscissa(run, "samples"), compare.abscissa(run, "hours")
    last = run.rows[-1]
    assert samples[-1] == last.get("seen/video_samples", 0) + last.get("seen/image_samples", 0)
    assert np.all(np.diff(samples) >= 0)
    assert hours[-1] == pytest.approx(sum(r.get("seconds") or 0 for r in run.rows) * run.world_size / 3600)


def test_a_held_out_mean_is_over_all_tasks_or_not_at_all(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    rows = [{"step": 0, "heldout/loss_fm/a": 1.0, "heldout/loss_fm/b": 3.0}, {"step": 1, "heldout/loss_fm/a": 9.0}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    found = compare.heldout_mean(read_run(str(folder)))
    assert found is not None
    assert found.steps.tolist() == [0]
    assert found.values.tolist() == [2.0]


def test_differences_name_the_setting(made: Made, tmp_path: Path) -> None:
    page = Path(compare.build([str(r) for r in made.runs], str(tmp_path / "c.html"), media=False)).read_text()
    assert "What was set differently" in page
    assert "<img" not in page


def test_one_run_is_nothing_to_compare(made: Made, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="two run folders or more"):
        compare.build([str(made.runs[0])], str(tmp_path / "c.html"))
    with pytest.raises(InputError, match="not a run folder"):
        compare.build([str(made.runs[0]), str(tmp_path / "none")], str(tmp_path / "c.html"))
