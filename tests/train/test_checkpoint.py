"""Checkpoints: whole or not there, restricted in what they unpickle, pruned, leased."""

from __future__ import annotations

import json
import pickle
import threading
from pathlib import Path

import pytest
import torch

from pipelines.train import checkpoint
from pipelines.train.saver import Saver
from sama.errors import InputError


def tensors(value: float) -> dict[str, torch.Tensor]:
    return {
        "model.a": torch.full((3, 4), value),
        "ema.a": torch.full((3, 4), value + 0.5),
        "model.b": torch.arange(5, dtype=torch.float32) + value,
        "ema.b": torch.arange(5, dtype=torch.float32) + value + 0.5,
    }


def save(run: Path, step: int) -> None:
    checkpoint.save(str(run), step, tensors(float(step)), {"step": step, "preset": "tiny"})


def test_round_trip(tmp_path: Path) -> None:
    save(tmp_path, 7)
    found = {k: torch.zeros_like(v) for k, v in tensors(0.0).items()}
    assert checkpoint.load(str(tmp_path), 7, found)["step"] == 7
    for name, tensor in tensors(7.0).items():
        assert torch.equal(found[name], tensor)


def test_whole_weights_without_a_process_group(tmp_path: Path) -> None:
    save(tmp_path, 2)
    save(tmp_path, 4)
    weights, preset, state = checkpoint.load_ema(str(tmp_path))
    assert (preset, state["step"]) == ("tiny", 4)
    assert set(weights) == {"a", "b"}
    assert torch.equal(weights["b"], torch.arange(5) + 4.5)
    assert torch.equal(checkpoint.load_weights(str(tmp_path), 2, "raw")[0]["a"], torch.full((3, 4), 2.0))


def test_a_crash_at_any_moment_leaves_the_one_before(tmp_path: Path) -> None:
    save(tmp_path, 2)
    save(tmp_path, 4)
    folder = tmp_path / "checkpoints" / "step-4"
    (folder / "state.json").unlink()  # the last file written
    assert checkpoint.newest_step(str(tmp_path)) == 2
    for file in folder.iterdir():
        if file.name != ".metadata":
            file.unlink()
            break
    assert checkpoint.newest_step(str(tmp_path)) == 2
    save(tmp_path, 4)  # the restarted run comes by again
    assert checkpoint.newest_step(str(tmp_path)) == 4
    assert torch.equal(checkpoint.load_weights(str(tmp_path), None, "raw")[0]["a"], torch.full((3, 4), 4.0))


def test_damage_at_any_byte_of_any_file_leaves_the_one_before(tmp_path: Path) -> None:
    """What a crash, a full disk or a lost file can leave: every file of the newest one cut at many places, or gone."""
    save(tmp_path, 2)
    save(tmp_path, 4)
    folder = tmp_path / "checkpoints" / "step-4"
    names = {f.name for f in folder.iterdir()}
    assert names == {".metadata", "__0_0.distcp", "state.json"}
    for name in names:
        file = folder / name
        whole = file.read_bytes()
        cuts = sorted({*range(0, len(whole), max(1, len(whole) // 40)), len(whole) - 1})
        for cut in [*cuts, None]:
            if cut is None:
                file.unlink()
            else:
                file.write_bytes(whole[:cut])
            assert checkpoint.newest_step(str(tmp_path)) == 2, (name, cut)
        weights, _, state = checkpoint.load_weights(str(tmp_path), None, "raw")
        assert state["step"] == 2
        assert torch.equal(weights["a"], torch.full((3, 4), 2.0))
        file.write_bytes(whole)
        assert checkpoint.newest_step(str(tmp_path)) == 4
    assert torch.equal(checkpoint.load_weights(str(tmp_path), None, "raw")[0]["a"], torch.full((3, 4), 4.0))


def test_prune_keeps_the_best_beside_the_newest(tmp_path: Path) -> None:
    for step, loss in ((1, 0.5), (2, 0.2), (3, None), (4, 0.2), (5, 0.9), (6, None)):
        checkpoint.save(str(tmp_path), step, tensors(float(step)), {"step": step, "heldout_loss": loss})
    assert checkpoint.best_steps(str(tmp_path), [1, 2, 3, 4, 5, 6]) == [4, 2, 1, 5]
    assert checkpoint.prune(str(tmp_path), 2, 1) == [1, 2, 3]
    assert checkpoint.complete_steps(str(tmp_path)) == [4, 5, 6]
    assert checkpoint.prune(str(tmp_path), 1) == [4, 5]


def saver_of(run: Path, background: bool, saved: list) -> Saver:
    return Saver(str(run), None, background, lambda: None, lambda step, uri, seconds, paused: saved.append(step))


def test_what_is_saved_is_what_was_there_when_it_was_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tensors change while the thread writes; buffers are used again; a second save waits for the first."""
    may_write, real = threading.Event(), checkpoint.save

    def slow(*args):
        assert may_write.wait(20)
        return real(*args)

    monkeypatch.setattr(checkpoint, "save", slow)
    saved: list[int] = []
    saver = saver_of(tmp_path, True, saved)
    live = tensors(1.0)
    saver.save(1, live, {"step": 1, "preset": "tiny"})
    saver.ready()
    kept = {name: buffer.data_ptr() for name, buffer in saver._buffers.items()}
    for tensor in live.values():
        tensor.fill_(-9.0)
    assert saved == []
    may_write.set()
    saver.save(2, live, {"step": 2, "preset": "tiny"})
    assert saved[:1] == [1]
    saver.wait()
    assert saved == [1, 2]
    assert {name: buffer.data_ptr() for name, buffer in saver._buffers.items()} == kept
    assert torch.equal(checkpoint.load_weights(str(tmp_path), 1, "raw")[0]["a"], torch.full((3, 4), 1.0))
    assert torch.equal(checkpoint.load_weights(str(tmp_path), 2, "raw")[0]["a"], torch.full((3, 4), -9.0))


def test_a_save_that_fails_in_the_background_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "save", lambda *args: (_ for _ in ()).throw(OSError("no space left on device")))
    saver = saver_of(tmp_path, True, [])
    saver.save(1, tensors(1.0), {})
    with pytest.raises(OSError, match="no space left"):
        saver.wait()
    saver.check()  # once


def test_prune_keeps_the_newest_and_removes_leftovers(tmp_path: Path) -> None:
    for step in (2, 4, 10):
        save(tmp_path, step)
    (tmp_path / "checkpoints" / "step-12").mkdir()
    assert checkpoint.prune(str(tmp_path), 2) == [2]
    assert checkpoint.complete_steps(str(tmp_path)) == [4, 10]
    assert sorted(f.name for f in (tmp_path / "checkpoints").iterdir()) == ["step-10", "step-4"]


def test_what_is_asked_for_must_exist(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no run folder"):
        checkpoint.load_ema(str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="no checkpoint yet"):
        checkpoint.load_ema(str(tmp_path))
    save(tmp_path, 3)
    with pytest.raises(InputError, match=r"no checkpoint of step 5; there are 3"):
        checkpoint.load_ema(str(tmp_path), 5)


class Evil:
    def __reduce__(self) -> tuple:
        return (print, ("ran",))


def test_metadata_may_not_name_anything_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path, 1)
    folder = tmp_path / "checkpoints" / "step-1"
    (folder / ".metadata").write_bytes(pickle.dumps(Evil()))
    (folder / "state.json").write_text(
        json.dumps({"step": 1, "preset": "tiny", "files": checkpoint.sizes(str(folder))})
    )
    with pytest.raises(InputError, match=r"asks for builtins\.print"):
        checkpoint.load_ema(str(tmp_path))
    assert "ran" not in capsys.readouterr().out


def test_whoever_lost_the_lease_writes_nothing(tmp_path: Path) -> None:
    checkpoint.take_lease(str(tmp_path), "first")
    checkpoint.save(str(tmp_path), 1, tensors(1.0), {"step": 1, "preset": "tiny"}, holder="first")
    checkpoint.take_lease(str(tmp_path), "second")
    with pytest.raises(checkpoint.SupersededError):
        checkpoint.save(str(tmp_path), 2, tensors(2.0), {"step": 2, "preset": "tiny"}, holder="first")
    assert checkpoint.complete_steps(str(tmp_path)) == [1]


def test_through_an_arrow_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an object store is to us: no local paths, no open(), only pyarrow.fs."""
    import pyarrow.fs as pafs

    from pipelines.samples import storage

    remote = pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem())
    real = storage.locate
    monkeypatch.setattr(
        storage, "locate", lambda uri: (remote, str(uri)[7:]) if str(uri).startswith("mock://") else real(uri)
    )
    checkpoint.save("mock://bucket/run", 3, tensors(3.0), {"step": 3, "preset": "tiny"})
    assert (tmp_path / "bucket" / "run" / "checkpoints" / "step-3" / "state.json").is_file()
    assert torch.equal(checkpoint.load_ema("mock://bucket/run")[0]["b"], torch.arange(5) + 3.5)
