"""metrics.jsonl and events.jsonl: no gap, no double, whatever was killed when."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.train.records import EVENTS, METRICS, MetricsFile, add_event, read_events, read_rows


def write(run: Path, steps: int, tail: str = "") -> None:
    file = MetricsFile(str(run), 0)
    for step in range(steps):
        file.append({"step": step, "train/loss": float(step)})
    file.close()
    with open(run / METRICS, "a") as raw:
        raw.write(tail)


def steps(run: Path) -> list[int]:
    return [row["step"] for row in read_rows(str(run / METRICS))]


def test_resume_cuts_what_is_computed_again_and_torn_lines(tmp_path: Path) -> None:
    write(tmp_path, 5, '{"step": 5, "trai')
    file = MetricsFile(str(tmp_path), 3)
    for step in range(3, 7):
        file.append({"step": step, "train/loss": -1.0})
    file.close()
    assert steps(tmp_path) == list(range(7))
    assert [r["train/loss"] for r in read_rows(str(tmp_path / METRICS))] == [0, 1, 2, -1, -1, -1, -1]


def test_missing_rows_are_refused(tmp_path: Path) -> None:
    write(tmp_path, 2)
    with pytest.raises(RuntimeError, match="2 rows before step 4"):
        MetricsFile(str(tmp_path), 4)


def test_broken_line_in_the_middle_is_an_error(tmp_path: Path) -> None:
    write(tmp_path, 1, "garbage\n" + '{"step": 1}\n')
    with pytest.raises(RuntimeError, match="line 2"):
        steps(tmp_path)


def test_not_a_number_becomes_null(tmp_path: Path) -> None:
    file = MetricsFile(str(tmp_path), 0)
    file.append({"step": 0, "train/grad_norm": float("inf")})
    file.close()
    assert list(read_rows(str(tmp_path / METRICS))) == [{"step": 0, "train/grad_norm": None}]


def test_events_survive_a_torn_line(tmp_path: Path) -> None:
    add_event(str(tmp_path), "start", "first")
    with open(tmp_path / EVENTS, "a") as raw:
        raw.write('{"time": 1, "ki')
    add_event(str(tmp_path), "restart", "second", step=3)
    found = read_events(str(tmp_path))
    assert [(e["kind"], e["step"], e["message"]) for e in found] == [("start", None, "first"), ("restart", 3, "second")]
    with pytest.raises(ValueError, match="no kind of event"):
        add_event(str(tmp_path), "party", "no")
