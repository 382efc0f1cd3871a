"""Progress off a terminal: plain lines, the last one once."""

from __future__ import annotations

import pytest

from pipelines import progress


@pytest.mark.parametrize("every", [0.0, 60.0])
def test_the_last_line_is_said_once(
    every: float, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY_S", every)
    assert list(progress.track(range(3), total=3, label="clips", unit="files")) == [0, 1, 2]
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if "3/3 files" in line] == [lines[-1]]
    assert len(lines) == (3 if every == 0 else 1)


def test_durations() -> None:
    assert [progress.duration(s) for s in (8.2, 125, 11400)] == ["8s", "2m05s", "3h10m"]
