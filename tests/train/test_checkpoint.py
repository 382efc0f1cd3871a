"""Checkpoints: whole or not there, restricted in what they unpickle, pruned, leased."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch

from pipelines.train import checkpoint
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
    (tmp_path / "checkpoints" / "step-1" / ".metadata").write_bytes(pickle.dumps(Evil()))
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
