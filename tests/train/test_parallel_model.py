"""Recomputation, compilation and sharding on one process: what is kept, compiled, cast and gathered."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.models.attention_dispatch import attention_backend
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from pipelines.config import TrainSettings
from pipelines.train import parallel, parallel_model
from pipelines.train.ema import Ema
from pipelines.train.parallel import World
from pipelines.train.parallel_recompute import ATTENTION
from sama.errors import InputError
from sama.objective import EncodedBatch, TimestepSampler, losses
from sama.randomness import normal
from tests.train import parallel_ranks


@pytest.fixture(scope="module")
def world() -> World:
    torch.set_num_threads(1)
    return parallel.join(torch.device("cpu"))


def batch(time: int = 3, height: int = 4, width: int = 6, source: bool = True, samples: int = 1) -> EncodedBatch:
    def draw(*shape: int) -> torch.Tensor:
        return torch.stack([normal(s, "x", shape) for s in range(samples)])

    video = (16, time, height, width)
    return EncodedBatch(
        draw(*video), draw(*video) if source else None, draw(5, 16), draw(3, 8), list(range(samples)),
        torch.ones(samples),
    )  # fmt: skip


def built(world: World, **settings: Any) -> Any:
    how = TrainSettings.model_validate({"precision": "float32", "activation_checkpointing": "none", **settings})
    return parallel_model.parallelize(parallel_ranks.model(), world, how)


class Count(TorchDispatchMode):
    """Counts operations by name."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = self.products = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        self.attention += func in ATTENTION
        self.products += func in (torch.ops.aten.addmm.default, torch.ops.aten.mm.default)
        return func(*args, **(kwargs or {}))


def test_what_is_computed_again(world: World) -> None:
    """Two blocks, each with one self- and one cross-attention."""
    counts = {}
    for which in ("none", "block", "selective"):
        model = built(world, activation_checkpointing=which)
        with Count() as count:
            losses(model, batch(), TimestepSampler()).total.sum().backward()
        counts[which] = (count.attention, count.products)
    assert counts["none"][0] == 4
    assert counts["block"][0] == 8
    assert counts["selective"][0] == 6  # only cross-attention again
    assert counts["none"][1] < counts["block"][1] == counts["selective"][1]


def test_attention_goes_through_the_backend_that_was_chosen(world: World) -> None:
    counts, results = {}, {}
    for name in (None, "_native_math"):
        with attention_backend("native"):  # diffusers sets a model's choice for the whole process, too: put it back
            model = built(world, attention=name)
            with Count() as count:
                results[name] = losses(model, batch(), TimestepSampler()).total.sum().item()
        counts[name] = count.attention
    assert counts == {None: 4, "_native_math": 0}
    assert results["_native_math"] == pytest.approx(results[None], rel=1e-5)
    with pytest.raises(InputError, match=r"flahs is not an attention backend; did you mean flash\?"):
        built(world, attention="flahs")
    with pytest.raises(InputError, match=r"train.attention = _native_math: .* use block"):
        built(world, attention="_native_math", activation_checkpointing="selective")
    with pytest.raises(InputError, match=r"train.attention: sage cannot be used here: "):
        built(world, attention="sage")


def test_all_buckets_share_what_is_compiled(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fifteen shapes, two kinds of batch, two sizes: no more graphs than the first three made."""
    from torch._dynamo.utils import counters

    monkeypatch.setattr(parallel_model, "BACKEND", "eager")  # the same graphs
    torch._dynamo.reset()
    model = built(world, compile=True, activation_checkpointing="block")
    plain = built(world)

    def graphs(*shape: Any) -> int:
        loss = losses(model, batch(*shape), TimestepSampler()).total.sum()
        want = losses(plain, batch(*shape), TimestepSampler()).total.sum()
        loss.backward()
        assert loss.item() == pytest.approx(want.item(), rel=1e-5)
        return counters["stats"]["unique_graphs"]

    counters.clear()
    sides = [2 * n for n in range(2, 10)]
    shapes = [(1, h, w, True, 2) for h, w in zip(sides, reversed(sides), strict=True)]
    shapes += [(3, h, w, True, 1) for h, w in zip(sides, reversed(sides), strict=True)][:7]
    assert len(shapes) == 15
    found = [graphs(*shape) for shape in shapes]
    assert found[0] > 0
    assert found[-1] == found[8], found  # nothing after the first shape of each batch size
    assert graphs(3, 4, 6, False, 1) == found[-1]  # without a source it is only shorter
    print(f"{found} graphs")


@pytest.mark.parametrize("which", ["none", "block"])
def test_weights_are_gathered_twice_per_step(world: World, monkeypatch: pytest.MonkeyPatch, which: str) -> None:
    """Once forward and once backward, whether the forward pass is repeated or not."""
    model = built(world, activation_checkpointing=which, precision="bfloat16")
    gathered: list[str] = []
    state = type(model.blocks[0].attn1._get_fsdp_state()._fsdp_param_group)
    real = state.unshard

    def unshard(self: Any, async_op: bool = False) -> Any:
        if not self.is_unsharded and self._all_gather_result is None:
            gathered.append(self._module_fqn)
        return real(self, async_op)

    monkeypatch.setattr(state, "unshard", unshard)
    losses(model, batch(), TimestepSampler()).total.sum().backward()
    assert sorted({gathered.count(name) for name in gathered}) == [2], gathered
    with torch.no_grad():
        losses(model, batch(), TimestepSampler())
    assert all(isinstance(p, DTensor) for p in model.parameters())  # given back after a forward pass alone, too


def test_names_stay(world: World) -> None:
    want = [n for n, _ in parallel_ranks.model().named_parameters()]
    model = built(world, activation_checkpointing="selective", compile=True, precision="bfloat16")
    assert [n for n, _ in model.named_parameters()] == want
    assert list(model.state_dict()) == list(parallel_ranks.model().state_dict())


def test_inside_a_sharded_block_only_products_are_bfloat16(world: World) -> None:
    model = built(world, precision="bfloat16", activation_checkpointing="block")
    seen: dict[str, torch.dtype] = {}
    block, timing = model.blocks[1], model.condition_embedder

    def entering(module: Any, args: tuple) -> None:
        seen.update(hidden=args[0].dtype, text=args[1].dtype, modulation=args[2].dtype)
        seen.update(cos=args[3][0].dtype, sin=args[3][1].dtype, table=module.scale_shift_table.dtype)

    block.register_forward_pre_hook(entering)
    timing.time_embedder.register_forward_pre_hook(lambda m, args: seen.update(timestep=args[0].dtype))
    timing.time_proj.register_forward_hook(lambda m, args, out: seen.update(time=m.weight.dtype, time_out=out.dtype))
    block.norm1.register_forward_hook(lambda m, args, out: seen.update(norm1=out.dtype))
    block.norm2.register_forward_hook(lambda m, args, out: seen.update(norm2=out.dtype, norm2_weight=m.weight.dtype))
    block.attn1.to_q.register_forward_hook(
        lambda m, args, out: seen.update(query=out.dtype, query_weight=m.weight.dtype)
    )
    block.ffn.register_forward_hook(lambda m, args, out: seen.update(ffn=out.dtype))
    model.proj_out.register_forward_hook(lambda m, args, out: seen.update(head=m.weight.dtype, velocity=out.dtype))
    losses(model, batch(), TimestepSampler()).total.sum().backward()
    half = {n for n, dtype in seen.items() if dtype == torch.bfloat16}
    assert half == {"hidden", "text", "query", "query_weight", "ffn"}
    assert set(seen.values()) == {torch.bfloat16, torch.float32}
    assert {p.dtype for p in model.parameters()} == {p.grad.dtype for p in model.parameters()} == {torch.float32}


def test_offload_needs_an_accelerator(world: World) -> None:
    with pytest.raises(InputError, match="this worker has none"):
        built(world, cpu_offload=True)


def test_average_in_host_memory_is_the_same(world: World) -> None:
    model = built(world)
    here, there = Ema(model, 0.75), Ema(model, 0.75, "cpu")
    there._elsewhere = True  # on a machine of one device: take the way over the buffers all the same
    for _ in range(3):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.to_local().add_(0.5)
        here.update()
        there.update()
    for name, tensor in here.tensors.items():
        assert torch.equal(tensor.to_local(), there.tensors[name].to_local()), name
