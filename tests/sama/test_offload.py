"""Blocks that visit a device one at a time: device `meta` stands for it, where a tensor left behind shows at once."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from sama.editing import EditPipeline
from sama.encoders import Encoders
from sama.offload import blocks_on
from tests.edit.conftest import lively_weights
from tests.sama.test_transformer import inputs, toy

AWAY = torch.device("meta")


def homes(model: torch.nn.Module) -> list[tuple[str, int]]:
    return [(t.device.type, t.data_ptr()) for t in itertools.chain(model.parameters(), model.buffers())]


def test_blocks_visit_the_device_one_at_a_time() -> None:
    model = toy()
    before = homes(model)
    there: list[int] = []

    def count(*_: object) -> None:
        there.append(sum(b.attn1.to_q.weight.device == AWAY for b in model.blocks))

    given = {k: v.to(AWAY) for k, v in inputs().items()}
    with torch.no_grad(), blocks_on(model, AWAY):
        assert model.proj_out.weight.device == model.rope.freqs_cos.device == AWAY
        count()
        for block in model.blocks:
            block.attn1.register_forward_hook(count)
        velocity, semantic = model(**given)
        count()
    assert velocity.device == semantic.device == AWAY
    assert there == [0, *[1] * len(model.blocks), 0]
    assert homes(model) == before
    assert not any(b._forward_pre_hooks or b._forward_hooks for b in model.blocks)


def test_a_forward_that_fails_leaves_the_weights_at_home() -> None:
    model = toy()
    before = homes(model)
    given = {k: v.to(AWAY) for k, v in inputs().items()}

    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    model.blocks[1].ffn.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"), torch.no_grad(), blocks_on(model, AWAY):
        model(**given)
    assert homes(model) == before


def test_an_edit_by_block_changes_no_pixel() -> None:
    from sama.checkpoints import build

    frames = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), dtype=np.uint8)
    edits = []
    for by_block in (False, True):
        pipeline = EditPipeline(
            build("tiny", lively_weights(1)), Encoders.from_preset("tiny"), "cpu" if by_block else None, by_block
        )
        edits.append(pipeline.edit(frames, "Make it red.", steps=2, progress=False))
    np.testing.assert_array_equal(*edits)
