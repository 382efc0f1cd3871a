"""When a checkpoint is written, what is in it while training goes on, and on how many ranks it comes back."""

from __future__ import annotations

import socket
import sys
import time
from pathlib import Path

import pytest
import torch

from pipelines.train import callbacks, checkpoint, parallel, state
from pipelines.train.callbacks import Checkpoints, heldout_loss
from pipelines.train.loop import StepNotes, train
from pipelines.train.machines import Machines
from pipelines.train.notices import STOP, Notices, StoppedError, Watcher, ask_to_stop
from pipelines.train.parallel import World
from pipelines.train.records import read_events
from pipelines.train.saver import Saver
from tests.train import toy_ranks
from tests.train.processes import Process, curve, rows


@pytest.fixture(scope="module")
def world() -> World:
    torch.set_num_threads(1)
    return parallel.join(torch.device("cpu"))


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def test_the_next_update_waits_for_the_copies(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copying is slowed down: were the weights changed in the meantime, the checkpoint would hold a mixture."""
    real = Saver._stage

    def slow(self, *args):
        time.sleep(0.2)
        return real(self, *args)

    plain = toy_ranks.run_to(str(tmp_path / "plain"), world, 3, checkpoint_every=1, checkpoint_async=False)
    monkeypatch.setattr(Saver, "_stage", slow)
    toy_ranks.run_to(str(tmp_path / "behind"), world, 3, checkpoint_every=1)
    for step in (1, 2, 3):
        for which in ("raw", "ema"):
            ours, theirs = (checkpoint.load_weights(str(tmp_path / r), step, which)[0] for r in ("plain", "behind"))
            assert all(torch.equal(ours[n], theirs[n]) for n in ours), (step, which)
    resumed = toy_ranks.assemble(str(tmp_path / "behind"), world, 3)
    state.restore(resumed, 3)
    for name, tensor in state.training_tensors(plain).items():
        assert torch.equal(whole(tensor), whole(state.training_tensors(resumed)[name])), name


def run_with(parts, world: World, found: list, start: int = 0) -> None:
    """Train toy steps with some callbacks, the last of them Checkpoints."""
    try:
        train(parts, toy_ranks.batches(world, start, parts.steps), found)
    finally:
        found[-1].abandon(60.0)


def test_minutes_and_the_best(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(callbacks.time, "monotonic", lambda: clock[0])
    parts = toy_ranks.assemble(
        str(tmp_path), world, 8, checkpoint_every=99, checkpoint_minutes=1.0, keep_last=1, keep_best=1
    )

    def measure(parts, row, notes) -> None:
        clock[0] += 25.0  # seconds per step: due in the third step, the sixth, and the last
        row["heldout/loss_fm/add"] = {3: 0.5, 6: 0.7}.get(parts.progress.step, 0.9)

    run_with(parts, world, [measure, Checkpoints(None, {}, None, parts)])
    assert checkpoint.complete_steps(str(tmp_path)) == [3, 8]  # 6 was written, and is neither best nor newest
    assert [e["step"] for e in read_events(str(tmp_path)) if e["kind"] == "checkpoint"] == [3, 6, 8]
    assert checkpoint.read_state(str(tmp_path), 3)["heldout_loss"] == 0.5


def test_a_row_without_held_out_losses_has_no_score() -> None:
    assert heldout_loss({"train/loss": 1.0}) is None
    assert heldout_loss({"heldout/loss_fm/a": 1.0, "heldout/loss_fm/b": 2.0}) == 1.5
    assert heldout_loss({"heldout/loss_fm/a": float("nan")}) is None


def test_asked_to_stop_it_saves_where_it_is(world: World, tmp_path: Path) -> None:
    notices = Notices()
    parts = toy_ranks.assemble(str(tmp_path), world, 9, checkpoint_every=99)

    def ask(parts, row, notes) -> None:
        if parts.progress.step == 4:
            notices.stop.set()

    with pytest.raises(StoppedError, match="goes on from the checkpoint of step 4"):
        run_with(parts, world, [ask, Checkpoints(None, {}, None, parts, notices)])
    assert checkpoint.complete_steps(str(tmp_path)) == [4]


def test_a_machine_that_will_go_away_means_save_now_and_go_on(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Notices, "due", lambda self: True)
    said: list[str | None] = [None, None, "the machine of rank 1", "the machine of rank 1", None, None]
    parts = toy_ranks.assemble(str(tmp_path), world, 6, checkpoint_every=99)
    run_with(parts, world, [Checkpoints(None, {}, None, parts, Notices(leaving=lambda: said.pop(0)))])
    assert checkpoint.complete_steps(str(tmp_path)) == [3, 6]
    told = [e["message"] for e in read_events(str(tmp_path)) if e["kind"] == "preemption"]
    assert told == ["the machine of rank 1 will go away, saving step 3"]


def test_words_through_the_run_folder_reach_only_the_job_they_are_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.train.notices.POLL_S", 0.02)
    checkpoint.take_lease(str(tmp_path), "mine")
    ask_to_stop(str(tmp_path), "another job's")
    notices = Notices()
    watcher = Watcher(str(tmp_path), "mine", notices)
    assert not notices.stop.wait(0.3)
    ask_to_stop(str(tmp_path), "mine")
    assert notices.stop.wait(5)
    watcher.close()
    (tmp_path / STOP).unlink()
    usurped = Notices()
    watcher = Watcher(str(tmp_path), "mine", usurped)
    checkpoint.take_lease(str(tmp_path), "a new driver")
    assert usurped.stop.wait(5)
    watcher.close()


def test_machines_say_how_busy_they_are_now_and_then(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr("pipelines.train.machines.time.monotonic", lambda: clock[0])
    parts = toy_ranks.assemble(str(tmp_path), world, 99)
    machines, told = Machines(30.0), []
    for step in range(40):
        clock[0] += 3.0
        row: dict = {"step": step}
        machines(parts, row, StepNotes("video", None, 1, 1.0, []))
        if len(row) > 1:
            told.append(step)
    assert told == [0, 1, 11, 21, 31]
    machines(parts, row := {"step": 41}, StepNotes("video", None, 1, 1.0, []))
    values = {k.rsplit("/", 1)[1]: v for k, v in row.items() if k.startswith(f"system/{machines.node}/")}
    assert {"cpu_percent", "memory_percent", "memory_gb", "disk_write_mb_s", "net_sent_mb_s"} <= set(values)
    assert 0 < values["memory_percent"] < 100


def ranks(run: Path, count: int, steps: int, resume: int | None = None, replicas: int = 1, sequence: int = 1) -> None:
    """Train in `count` processes up to `steps`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    script = str(Path(__file__).parent / "toy_ranks.py")
    begin = "-" if resume is None else str(resume)
    found = [
        Process([sys.executable, script, str(run), str(steps), str(r), str(count), port, "float32", begin,
                 str(replicas), str(sequence)], run.parent / f"{run.name}-{count}-{r}.log")
        for r in range(count)
    ]  # fmt: skip
    assert [p.end(240) for p in found] == [0] * count, [p.output()[-2000:] for p in found]


@pytest.mark.slow
@pytest.mark.parametrize(("replicas", "sequence"), [(1, 1), (2, 2)])
def test_saved_on_four_ranks_resumed_on_two_and_on_one(
    world: World, tmp_path: Path, replicas: int, sequence: int
) -> None:
    """Weights, average and both moments; each change of the layout agrees with one rank to rounding."""
    one = toy_ranks.run_to(str(tmp_path / "one"), world, 6, checkpoint_every=2)
    ranks(tmp_path / "many", 4, 2, None, replicas, sequence)
    saved = toy_ranks.assemble(str(tmp_path / "many"), world, 6)
    state.restore(saved, 2)
    ranks(tmp_path / "many", 2, 4, 2, 1, sequence)
    last = toy_ranks.run_to(str(tmp_path / "many"), world, 6, resume=4, checkpoint_every=2)
    assert [checkpoint.read_state(str(tmp_path / "many"), s)["world_size"] for s in (2, 4, 6)] == [4, 2, 1]
    assert [r["step"] for r in rows(tmp_path / "many")] == list(range(6))
    for ours, theirs in zip(curve(tmp_path / "one"), curve(tmp_path / "many"), strict=True):
        for key in ours:
            assert theirs[key] == pytest.approx(ours[key], rel=1e-4, abs=1e-6), key
    tensors = state.training_tensors(one)
    assert {n.split(".")[0] for n in tensors} == {"ema", "model", "adam"}
    for name, tensor in tensors.items():
        found = whole(state.training_tensors(last)[name])
        assert torch.allclose(found, whole(tensor), rtol=1e-3, atol=1e-5), name
