"""A LoRA run of the tiny preset: trained, killed, resumed, edited with, exported in every format, and merged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.config import Settings
from pipelines.edit.export import export
from pipelines.edit.load import load_run
from pipelines.train import checkpoint
from pipelines.train.local import train_here
from sama import video
from sama.checkpoints import load_diffusers, load_official, save_official
from sama.errors import InputError
from sama.lora import load_lora, merged
from tests.edit.conftest import lively_weights
from tests.train import runs
from tests.train.test_here import Killed, die_after

LORA = {"rank": 2, "alpha": 4.0, "targets": ["attn1.to_q", "attn1.to_v", "ffn.net.2"]}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, Path]:
    """(a run that died after its checkpoint and went on, the same run without the death, their folder)."""
    folder = tmp_path_factory.mktemp("lora")
    save_official(lively_weights(1), folder / "base.safetensors")  # its video head is not zero, as a fresh one's is
    data, mixture = runs.data_root(folder), runs.mixture(folder, "m", 4)
    how = {"lora": LORA, "checkpoint_every": 2, "heldout_every": 9, "strip_every": 9, "lr": 0.05}

    def settings(run: str, **changes) -> Settings:
        how_now = {**how, **changes}
        found = runs.settings(folder, run, mixture, data, **how_now)
        return found.model_copy(update={"weights": str(folder / "base.safetensors")})

    whole = train_here(settings("whole"))
    with pytest.MonkeyPatch.context() as patch:
        die_after(3, patch)
        with pytest.raises(Killed):
            train_here(settings("killed"))
    assert checkpoint.newest_step(str(folder / "killed")) == 2
    killed = train_here(settings("killed"))
    assert killed.final_step == 4
    with pytest.raises(InputError, match=r"was made with train\.lora\.rank 2, now it is 3"):
        train_here(settings("killed", lora={**LORA, "rank": 3}))
    return killed.run, whole.run, folder


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return set(one) == set(other) and all(torch.equal(one[k], other[k]) for k in one)


def test_checkpoints_hold_what_was_trained_and_the_base_is_kept_once(trained: tuple[str, str, Path]) -> None:
    run, _, _ = trained
    held = checkpoint.load_weights(run, None, "raw")[0]
    assert {k for k in held if "lora" not in k} == {
        k for k in lively_weights(1) if k.startswith(("segment_", "siglip_", "semantic_"))
    }
    assert len([k for k in held if ".lora_A." in k]) == 3 * 4
    base = checkpoint.read_full(f"{run}/base", "model.")
    start = lively_weights(1)
    assert same(base, {k: v for k, v in start.items() if k not in held})


def test_a_resumed_run_ends_like_one_that_was_not_killed(trained: tuple[str, str, Path]) -> None:
    run, other, _ = trained
    for which in ("ema", "raw"):
        assert same(load_run(run, which=which).tensors, load_run(other, which=which).tensors)
    start = lively_weights(1)
    found = load_run(run).tensors
    assert {k.split(".", 2)[-1] for k in start if k.startswith("blocks.") and not torch.equal(start[k], found[k])} == {
        "attn1.to_q.weight", "attn1.to_v.weight", "ffn.net.2.weight"
    }  # fmt: skip


def test_exports_are_merged_or_the_lora_alone(trained: tuple[str, str, Path]) -> None:
    run, _, folder = trained
    found = load_run(run)
    for to in ("official", "diffusers", "lora"):
        export(run, to, str(folder / to))
    assert same(load_official(folder / "official/sama.safetensors", "tiny").state_dict(), found.tensors)
    assert same(load_diffusers(folder / "diffusers").state_dict(), found.tensors)
    lora = load_lora(folder / "lora/lora.safetensors")
    assert same(merged(lively_weights(1), lora), found.tensors)
    card = (folder / "lora/README.md").read_text()
    assert "lora.safetensors" in card
    assert "--lora" in card


def test_edits_with_the_run_and_with_its_files_agree(trained: tuple[str, str, Path], tmp_path: Path) -> None:
    from pipelines.edit.command import edit

    run, _, folder = trained
    export(run, "lora", str(tmp_path / "lora"))
    clip = tmp_path / "clip.mp4"
    frames = np.random.default_rng(0).integers(0, 255, (5, 64, 64, 3)).astype(np.uint8)
    clip.write_bytes(video.encode(frames, 8))

    def bytes_of(name: str, **how) -> bytes:
        edit(str(clip), "Make it red.", out=str(tmp_path / name), steps=2, **how)
        return (tmp_path / name).read_bytes()

    base = {"weights": str(folder / "base.safetensors"), "preset": "tiny", "frames_per_window": 5}
    lora = str(tmp_path / "lora/lora.safetensors")
    ours = bytes_of("run.mp4", run=run)
    assert bytes_of("file.mp4", lora=[lora], **base) == ours
    assert bytes_of("half.mp4", lora=[f"{lora}:0.5"], **base) != ours
    plain = bytes_of("base.mp4", **base)
    assert plain != ours
    assert bytes_of("none.mp4", lora=[f"{lora}:0"], **base) == plain
    with pytest.raises(InputError, match="a scale"):
        edit(str(clip), "x", out=str(tmp_path / "x.mp4"), lora=[f"{lora}:much"], **base)
    with pytest.raises(InputError, match=r"no\.safetensors"):
        edit(str(clip), "x", out=str(tmp_path / "x.mp4"), lora=[str(tmp_path / "no.safetensors")], **base)


def test_what_a_lora_run_is_not(trained: tuple[str, str, Path], run_folder: Path, tmp_path: Path) -> None:
    run, _, folder = trained
    with pytest.raises(InputError, match="was not trained as LoRA"):
        export(str(run_folder), "lora", str(tmp_path / "x"))
    how = runs.settings(tmp_path, "next", runs.mixture(tmp_path, "n", 2), str(folder), init_from=run)
    with pytest.raises(InputError, match="was trained as LoRA; export it"):
        train_here(how)


def test_lora_from_another_runs_average_and_from_an_official_file(trained: tuple[str, str, Path], tmp_path: Path):
    """init_from and weights: the base is the average of a run, or the released naming's file."""
    run, _, folder = trained
    data, mixture = str(folder), runs.mixture(tmp_path, "m", 2)
    export(run, "official", str(tmp_path / "official"))
    file = str(tmp_path / "official/sama.safetensors")
    how = runs.settings(tmp_path, "full", mixture, data, heldout_every=9, strip_every=9, checkpoint_every=1)
    train_here(how.model_copy(update={"weights": file}))
    average = load_run(str(tmp_path / "full")).tensors
    tiny_step = {
        "heldout_every": 9, "strip_every": 9, "lr": 1e-12, "lora": LORA, "precision": "bfloat16",
        "activation_checkpointing": "block",
    }  # fmt: skip
    second = train_here(runs.settings(tmp_path, "second", mixture, data, init_from=str(tmp_path / "full"), **tiny_step))
    found = load_run(second.run)
    assert found.lora is not None
    assert all(torch.allclose(found.tensors[k], average[k], atol=1e-6) for k in average)
    assert all(p.down.any() and not torch.isnan(p.down).any() for p in found.lora.pairs.values())
    start = load_official(file, "tiny").state_dict()
    assert max((average[k] - start[k]).abs().max() for k in start) < 0.01  # two steps away
