"""The loop on toy batches: one process, several, killed and resumed, in bfloat16."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from pipelines.train import checkpoint, parallel, state
from pipelines.train.loop import train_step
from pipelines.train.optimizers import learning_rate
from pipelines.train.parallel import World
from pipelines.train.records import METRICS, read_rows
from sama.objective import TimestepSampler, losses
from tests.train import toy_ranks


@pytest.fixture(scope="module")
def world() -> World:
    torch.set_num_threads(1)
    return parallel.join(torch.device("cpu"))


def rows_of(run: Path) -> list[dict]:
    return list(read_rows(str(run / METRICS)))


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def test_a_step_equals_the_plain_computation(world: World, tmp_path: Path) -> None:
    parts = toy_ranks.assemble(str(tmp_path), world, 3, grad_clip=0.5, ema_decay=0.75)
    plain = toy_ranks.model()
    plain.train()
    optimizer = torch.optim.AdamW(plain.parameters(), lr=5e-4)
    start = {n: p.detach().clone() for n, p in plain.named_parameters()}
    slots = list(toy_ranks.batches(world, 0, 1, micro_batch=toy_ranks.GLOBAL))
    assert len(slots) == 1
    found = losses(plain, toy_ranks.encode(slots[0]), TimestepSampler())
    found.total.mean().backward()
    norm = nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
    optimizer.step()

    row, notes = train_step(parts, toy_ranks.batches(world, 0, 3))
    assert row["train/loss"] == pytest.approx(found.total.mean().item(), rel=1e-5)
    assert row["train/loss_fm"] == pytest.approx(found.fm.mean().item(), rel=1e-5)
    assert row["train/loss_sem"] == pytest.approx(found.semantic.mean().item(), rel=1e-5)
    assert row["train/loss_fm/speed"] == pytest.approx(found.fm[1::2].mean().item(), rel=1e-5)
    assert row["train/grad_norm"] == pytest.approx(float(norm), rel=1e-4)
    assert row["train/lr"] == 5e-4
    assert row["seen/image_samples"] == toy_ranks.GLOBAL
    assert row["seen/video_samples"] == 0
    assert row["seen/tokens"] == toy_ranks.GLOBAL * (4 + 3 + 4)
    assert notes.tokens_per_device == 5 * 11
    for name, parameter in parts.model.named_parameters():
        want = dict(plain.named_parameters())[name].detach()
        assert torch.allclose(whole(parameter.detach()), want, atol=2e-5), name
        average = start[name] + 0.25 * (want - start[name])
        assert torch.allclose(whole(parts.ema.tensors[name]), average, atol=2e-5), name


def test_resume_is_bit_identical(world: World, tmp_path: Path) -> None:
    straight = toy_ranks.run_to(str(tmp_path / "a"), world, 6, checkpoint_every=2)
    toy_ranks.run_to(str(tmp_path / "b"), world, 5, checkpoint_every=3)  # dies after step 5, checkpoint 3 is complete
    checkpoint.prune(str(tmp_path / "b"), 99)
    resumed = toy_ranks.run_to(str(tmp_path / "b"), world, 6, resume=3, checkpoint_every=3)
    for name, tensor in state.training_tensors(straight).items():
        assert torch.equal(whole(tensor), whole(state.training_tensors(resumed)[name])), name
    keys = [k for k in rows_of(tmp_path / "a")[0] if k.startswith(("train/", "seen/"))]
    ours, theirs = rows_of(tmp_path / "a"), rows_of(tmp_path / "b")
    assert [r["step"] for r in theirs] == list(range(6))
    assert [[r.get(k) for k in keys] for r in ours] == [[r.get(k) for k in keys] for r in theirs]
    assert resumed.progress.updates == 6


def test_keep_last(world: World, tmp_path: Path) -> None:
    toy_ranks.run_to(str(tmp_path), world, 5, checkpoint_every=1, keep_last=2)
    assert checkpoint.complete_steps(str(tmp_path)) == [4, 5]


def test_steps_that_are_not_finite_change_nothing_and_are_fatal_in_a_row(world: World, tmp_path: Path) -> None:
    parts = toy_ranks.assemble(str(tmp_path), world, 100)
    before = {n: t.clone() for n, t in state.training_tensors(parts).items()}
    good = parts.encode
    parts.encode = lambda batch: _poisoned(good(batch))
    for step in range(10):
        parts.progress.step = step
        train_step(parts, toy_ranks.batches(world, step, 100))
    assert (parts.progress.updates, parts.progress.skipped_in_a_row) == (0, 10)
    for name, tensor in state.training_tensors(parts).items():
        assert torch.equal(tensor.to_local(), before[name].to_local()), name
    with pytest.raises(RuntimeError, match="11 steps in a row"):
        train_step(parts, toy_ranks.batches(world, 9, 100))


def _poisoned(encoded):
    encoded.latents.fill_(float("inf"))
    return encoded


def test_a_batch_that_is_not_the_next_is_refused(world: World, tmp_path: Path) -> None:
    parts = toy_ranks.assemble(str(tmp_path), world, 3)
    with pytest.raises(RuntimeError, match=r"expected micro-batch .* \(0, 0, 0\), the loader gave \(1, 0, 0\)"):
        train_step(parts, toy_ranks.batches(world, 1, 3))
    with pytest.raises(RuntimeError, match="the loader gave None"):
        train_step(parts, iter(()))


def test_learning_rate_warms_up_and_stays(world: World, tmp_path: Path) -> None:
    settings = toy_ranks.assemble(str(tmp_path), world, 1, lr=2e-5, warmup_steps=4).settings
    assert [learning_rate(settings, s, 1) for s in (0, 1, 3, 4, 1000)] == pytest.approx([5e-6, 1e-5, 2e-5, 2e-5, 2e-5])


def test_bfloat16_is_for_matrix_products_only(world: World, tmp_path: Path) -> None:
    exact = toy_ranks.assemble(str(tmp_path), world, 1)
    parts = toy_ranks.assemble(str(tmp_path), world, 1, precision="bfloat16")
    seen: dict[str, torch.dtype] = {}
    block = parts.model.blocks[0]
    block.register_forward_pre_hook(lambda m, args: seen.update(modulation=args[2].dtype, rope=args[3][0].dtype))

    def look(module, args, output) -> None:
        seen.update(table=block.scale_shift_table.dtype, query=block.attn1.to_q.weight.dtype)
        seen.update(
            norm=block.norm2.weight.dtype, time=parts.model.condition_embedder.time_embedder.linear_1.weight.dtype
        )

    block.ffn.register_forward_hook(look)
    row, _ = train_step(parts, toy_ranks.batches(world, 0, 1))
    assert seen == {
        "modulation": torch.float32, "rope": torch.float32, "table": torch.float32, "query": torch.bfloat16,
        "norm": torch.float32, "time": torch.float32,
    }  # fmt: skip
    assert {p.dtype for p in parts.model.parameters()} == {torch.float32}
    want, _ = train_step(exact, toy_ranks.batches(world, 0, 1))
    assert row["train/loss"] == pytest.approx(want["train/loss"], rel=0.02)


@pytest.mark.slow
def test_two_ranks_train_like_one_and_their_checkpoint_loads_on_one(world: World, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    script = str(Path(__file__).parent / "toy_ranks.py")
    commands = [
        [sys.executable, script, str(tmp_path / "two"), "4", str(r), "2", port, "float32", "-", "1", "1"]
        for r in range(2)
    ]
    pipe = subprocess.PIPE
    ranks = [subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) for command in commands]
    outs = [p.communicate(timeout=240) for p in ranks]
    assert [p.returncode for p in ranks] == [0, 0], outs
    held = [json.loads(out.splitlines()[-1])["local"] for out, _ in outs]
    one = toy_ranks.run_to(str(tmp_path / "one"), world, 4, checkpoint_every=2)
    total = sum(p.numel() for p in one.model.parameters())
    assert sum(held) == total
    assert max(held) < 0.6 * total  # each rank holds its share only
    for ours, theirs in zip(rows_of(tmp_path / "one"), rows_of(tmp_path / "two"), strict=True):
        assert set(ours) == set(theirs)
        for key in (k for k in ours if k.startswith(("train/", "seen/"))):
            assert theirs[key] == pytest.approx(ours[key], rel=1e-4, abs=1e-6), key
    # saved on two ranks at step 2, resumed on one
    resumed = toy_ranks.run_to(str(tmp_path / "two"), world, 4, resume=2, checkpoint_every=2)
    for name, tensor in state.training_tensors(one).items():
        found = whole(state.training_tensors(resumed)[name])
        assert torch.allclose(found, whole(tensor), rtol=1e-3, atol=1e-5), name
    averaged, _, info = checkpoint.load_ema(str(tmp_path / "two"))
    assert info["step"] == 4
    assert set(averaged) == {n for n, _ in one.model.named_parameters()}
