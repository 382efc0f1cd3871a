"""Every way to compute the model, forward and backward, against the float64 reference: the largest relative error."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers.models.attention_dispatch import attention_backend

from sama.checkpoints import to_official
from sama.lora import add_lora, plain_name
from sama.names import our_key
from sama.transformer import SamaTransformer
from tests.sama import reference
from tests.sama.test_transformer import SIZES, inputs, toy

FLOAT32, BFLOAT16 = 1e-5, 0.02  # of the root mean square of what is compared
BFLOAT16_GRADIENT = 0.06  # of the worst of all parameters

Results = tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]


def loss_of(velocity: torch.Tensor, semantic: torch.Tensor) -> torch.Tensor:
    """Smooth, so that rounding shows in its size alone."""
    return velocity.to(torch.float64).square().mean() + semantic.to(torch.float64).square().mean()


@pytest.fixture(scope="module")
def wanted() -> Results:
    weights = {k: v.double().requires_grad_() for k, v in to_official(toy().state_dict()).items()}
    given = inputs()
    velocity, semantic = reference.forward(
        weights, SIZES["num_attention_heads"], given["latents"], given["timestep"], given["text_embeds"],
        given["source_latents"], given["semantic_tokens"],
    )  # fmt: skip
    assert semantic is not None
    loss_of(velocity, semantic).backward()
    return velocity.detach(), semantic.detach(), {our_key(k): v.grad for k, v in weights.items()}


def computed(model: SamaTransformer) -> Results:
    velocity, semantic = model(**inputs())
    loss_of(velocity, semantic).backward()
    return velocity, semantic, {plain_name(n): p.grad for n, p in model.named_parameters() if p.grad is not None}


def error(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got.detach().double() - want).square().mean().sqrt() / want.square().mean().sqrt())


def errors(got: Results, want: Results) -> tuple[float, float]:
    """Of the outputs, and of the gradient of the worst parameter."""
    assert set(got[2]) == set(want[2])
    # the keys' bias moves all logits of a query alike and so nothing: its gradient is rounding on both sides
    moved = [n for n, g in want[2].items() if not n.endswith("to_k.bias") and g.square().mean() > 0]
    return max(error(got[i], want[i]) for i in (0, 1)), max(error(got[2][n], want[2][n]) for n in moved)


def checkpointed(model: SamaTransformer) -> SamaTransformer:
    model.enable_gradient_checkpointing()
    return model


def compiled(model: SamaTransformer) -> SamaTransformer:
    """As in training: each block in place, whole graphs. Half precision is traced only: compiling takes long."""
    exact = model.blocks[0].attn1.to_q.weight.dtype == torch.float32
    backend = "inductor" if exact and shutil.which("g++") else "aot_eager"
    torch._dynamo.reset()
    for block in model.blocks:
        block.compile(fullgraph=True, backend=backend)
    return model


def half(model: SamaTransformer) -> SamaTransformer:
    return model.to(torch.bfloat16)


WAYS: list[tuple[str, list[Callable[[SamaTransformer], SamaTransformer]], float, float]] = [
    ("float32", [], FLOAT32, FLOAT32),
    ("checkpointed", [checkpointed], FLOAT32, FLOAT32),
    ("bfloat16", [half], BFLOAT16, BFLOAT16_GRADIENT),
    ("bfloat16 checkpointed", [half, checkpointed], BFLOAT16, BFLOAT16_GRADIENT),
    ("compiled checkpointed", [checkpointed, compiled], FLOAT32, FLOAT32),
    ("compiled bfloat16", [half, compiled], BFLOAT16, BFLOAT16_GRADIENT),
]


@pytest.mark.parametrize(
    ("steps", "forward", "backward"),
    [pytest.param(*w[1:], id=w[0], marks=pytest.mark.slow if compiled in w[1] else ()) for w in WAYS],
)
def test_error_is_bounded(
    steps: list[Callable[[SamaTransformer], SamaTransformer]], forward: float, backward: float, wanted: Results
) -> None:
    model = toy().train()
    for step in steps:
        model = step(model)
    of_outputs, of_gradients = errors(computed(model), wanted)
    print(f"outputs {of_outputs:.1e} gradients {of_gradients:.1e}")
    assert of_outputs < forward
    assert of_gradients < backward
    if half in steps:  # and it is half precision that was measured
        assert of_outputs > FLOAT32


@pytest.mark.parametrize("name", ["native", "_native_math", "flex"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_attention_backends(name: str, dtype: torch.dtype, wanted: Results) -> None:
    model = toy().train().to(dtype)
    forward, backward = (FLOAT32, FLOAT32) if dtype == torch.float32 else (BFLOAT16, BFLOAT16_GRADIENT)
    with attention_backend(name):
        try:
            if name == "flex":  # on a CPU it has no backward pass
                with torch.no_grad():
                    got = model(**inputs())
                assert max(error(got[i], wanted[i]) for i in (0, 1)) < forward
                return
            found = computed(model)
        except (RuntimeError, NotImplementedError) as reason:
            pytest.skip(f"{name} does not run here: {str(reason).splitlines()[0]}")
    of_outputs, of_gradients = errors(found, wanted)
    assert of_outputs < forward
    assert of_gradients < backward


def test_the_backend_of_a_model_is_set_as_in_diffusers(wanted: Results) -> None:
    model = toy()
    with attention_backend("native"):  # diffusers sets it for the whole process, too: put it back
        model.set_attention_backend("_native_math")
    used: list[Any] = [block.attn1.processor._attention_backend for block in model.blocks]
    assert {str(getattr(u, "value", u)) for u in used} == {"_native_math"}
    assert errors(computed(model), wanted)[0] < FLOAT32


def test_adapters_at_their_start_have_the_models_error(wanted: Results) -> None:
    model = add_lora(toy().train(), rank=2)
    velocity, semantic, gradients = computed(model)
    assert max(error(velocity, wanted[0]), error(semantic, wanted[1])) < FLOAT32
    assert error(gradients["semantic_head.proj.weight"], wanted[2]["semantic_head.proj.weight"]) < FLOAT32


def test_the_statistic_sees_an_error(wanted: Results) -> None:
    model = toy()
    with torch.no_grad():
        model.blocks[1].attn2.to_v.weight[0, 0] += 0.03
    assert errors(computed(model), wanted)[0] > FLOAT32
