"""AdamW with 8-bit moments, where torchao is installed: it trains, and a resumed run does the same steps."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest
import torch

from pipelines.train import parallel, state
from sama.errors import InputError
from tests.train import toy_ranks

SIZES = {**toy_ranks.SIZES, "num_attention_heads": 4, "attention_head_dim": 16, "ffn_dim": 128}  # weights of 4,096


@pytest.mark.skipif(importlib.util.find_spec("torchao") is not None, reason="torchao is installed")
def test_without_torchao_the_extra_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"adamw8bit needs torchao: pip install 'sama-pipelines\[eightbit\]'"):
        toy_ranks.assemble(str(tmp_path), parallel.join(torch.device("cpu")), 1, optimizer="adamw8bit")


def test_a_resumed_run_does_the_same_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torchao")
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)  # torchao compiles every shape
    monkeypatch.setattr(toy_ranks, "SIZES", SIZES)
    world = parallel.join(torch.device("cpu"))
    how = {"optimizer": "adamw8bit", "checkpoint_every": 2}
    straight = toy_ranks.run_to(os.fspath(tmp_path / "a"), world, 5, **how)
    toy_ranks.run_to(os.fspath(tmp_path / "b"), world, 3, **how)
    resumed = toy_ranks.run_to(os.fspath(tmp_path / "b"), world, 5, resume=2, **how)
    packed = [s for s in straight.optimizer.state.values() if hasattr(s["exp_avg"].to_local(), "codes")]
    assert len(packed) > 4
    for (name, ours), theirs in zip(straight.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(ours.to_local(), theirs.to_local()), name
    exact = toy_ranks.run_to(os.fspath(tmp_path / "c"), world, 5, checkpoint_every=2)
    moved = {
        n: (p.full_tensor() - q)
        for (n, p), q in zip(exact.model.named_parameters(), toy_ranks.model().parameters(), strict=True)
    }
    for name, parameter in straight.model.named_parameters():
        difference = (parameter.full_tensor() - dict(exact.model.named_parameters())[name].full_tensor()).norm()
        assert difference < 0.3 * moved[name].norm() + 1e-6, name
    assert set(state.training_tensors(straight)) == set(state.training_tensors(exact))
