"""Skipped steps: what counts as one, what it leaves untouched, when it ends the run; and the learning rate."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from pipelines.config import TrainSettings
from pipelines.train import guard, parallel, state
from pipelines.train.loop import Progress, train_step
from pipelines.train.optimizers import learning_rate
from pipelines.train.parallel import World
from pipelines.train.records import METRICS, read_events, read_rows
from tests.train import toy_ranks

NAN, INF = float("nan"), float("inf")


@pytest.fixture(scope="module")
def world() -> World:
    torch.set_num_threads(1)
    return parallel.join(torch.device("cpu"))


def test_what_is_not_finite_is_always_skipped() -> None:
    how = TrainSettings()
    assert guard.objection(how, {}, "video", 1.0, 1.0) is None
    for loss, norm in ((NAN, 1.0), (1.0, INF), (INF, 1.0), (1.0, NAN)):
        assert guard.objection(how, {}, "video", loss, norm) is not None


def test_a_spike_is_told_from_the_usual_by_stream() -> None:
    how, history = TrainSettings(spike_factor=3.0), {}
    for i in range(guard.LEAST):
        assert guard.objection(how, history, "video", 99.0, 99.0) is None  # too few to compare with
        guard.remember(how, history, "video", 1.0 + 0.1 * (i % 3), 2.0)
    assert guard.objection(how, history, "video", 3.2, 5.9) is None
    assert "loss is 3.4, 3.1 times the median of the last 16 steps" in guard.objection(how, history, "video", 3.4, 2.0)
    assert "gradient norm is 6.1" in guard.objection(how, history, "video", 1.0, 6.1)
    assert guard.objection(how, history, "image", 50.0, 50.0) is None  # a stream of its own
    assert guard.objection(TrainSettings(), history, "video", 50.0, 50.0) is None  # off by default
    for _ in range(2 * guard.WINDOW):
        guard.remember(how, history, "video", 1.0, 2.0)
    assert len(history["video"]) == guard.WINDOW


def test_the_history_survives_a_checkpoint_exactly() -> None:
    how, progress = TrainSettings(spike_factor=3.0), Progress()
    for i in range(20):
        guard.remember(how, progress.history, "video", 1.0 / (i + 3), 2.0**0.5 * i)
    told = json.loads(json.dumps(progress.history))
    assert told == progress.history


def test_a_skipped_step_changes_nothing_but_the_counters(world: World, tmp_path: Path) -> None:
    parts = toy_ranks.assemble(str(tmp_path), world, 9, spike_factor=2.0, max_skipped=2)
    for stream in ("image", "video"):
        parts.progress.history[stream] = [[1e-9, 1e-9]] * guard.LEAST  # everything is a spike to these
    row, notes = train_step(parts, toy_ranks.batches(world, 0, 9))
    before = {n: t.to_local().clone() for n, t in state.training_tensors(parts).items()}
    assert notes.skipped is not None
    assert row["train/skipped"] == 1
    assert row["train/grad_norm"] > 0
    parts.progress.step = 1
    train_step(parts, toy_ranks.batches(world, 1, 9))
    assert (parts.progress.updates, parts.progress.skipped) == (0, 2)
    assert parts.progress.history["image"] == [[1e-9, 1e-9]] * guard.LEAST
    for name, tensor in state.training_tensors(parts).items():
        assert torch.equal(tensor.to_local(), before[name]), name
    parts.progress.step = 2
    with pytest.raises(guard.TrainingDivergedError, match="3 steps in a row were skipped; in step 2 the loss is"):
        train_step(parts, toy_ranks.batches(world, 2, 9))


def test_spikes_are_skipped_alike_after_a_restart(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A threshold that some steps exceed: the resumed run skips the same ones and ends with the same weights."""
    monkeypatch.setattr(guard, "LEAST", 2)
    how = {"spike_factor": 1.01, "checkpoint_every": 5, "max_skipped": 9}
    straight = toy_ranks.run_to(str(tmp_path / "a"), world, 10, **how)
    toy_ranks.run_to(str(tmp_path / "b"), world, 5, **how)
    resumed = toy_ranks.run_to(str(tmp_path / "b"), world, 10, resume=5, **how)
    assert 0 < straight.progress.skipped < 10
    assert resumed.progress == straight.progress
    for name, tensor in state.training_tensors(straight).items():
        assert torch.equal(tensor.to_local(), state.training_tensors(resumed)[name].to_local()), name
    ours, theirs = ([r["train/skipped"] for r in read_rows(str(tmp_path / run / METRICS))] for run in "ab")
    assert ours == theirs
    events = [e["step"] for e in read_events(str(tmp_path / "a")) if e["kind"] == "skipped"]
    assert events == [i for i, (a, b) in enumerate(zip([0, *ours], ours, strict=False)) if b > a]


def test_schedules() -> None:
    def rates(schedule: str) -> list[float]:
        how = TrainSettings(lr=1.0, warmup_steps=2, schedule=schedule)
        return [learning_rate(how, s, 6) for s in range(6)]

    assert rates("constant") == [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]
    assert rates("linear") == pytest.approx([0.5, 1.0, 0.75, 0.5, 0.25, 0.0])
    assert rates("cosine") == pytest.approx([0.5, 1.0, 0.8535534, 0.5, 0.1464466, 0.0])
    how = TrainSettings(lr=1.0, warmup_steps=0, schedule="linear")
    assert [learning_rate(how, s, 2) for s in range(2)] == pytest.approx([0.5, 0.0])
