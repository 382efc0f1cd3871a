"""The transformer against the authors' golden cases, a float64 reference and the backbone it extends."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import load_file

from sama.checkpoints import build, from_t2v, load_official, to_official
from sama.errors import InputError
from sama.presets import get_preset
from sama.randomness import normal
from sama.transformer import SamaTransformer
from tests.sama import reference

GOLDEN = Path(__file__).resolve().parents[1] / "assets" / "golden"
CASES = sorted(p.parent.name for p in GOLDEN.glob("*/config.json"))
SIZES = {
    "num_attention_heads": 2,
    "attention_head_dim": 24,
    "text_dim": 20,
    "freq_dim": 32,
    "ffn_dim": 64,
    "num_layers": 2,
    "semantic_dim": 12,
    "semantic_hidden_dim": 16,
}


def toy(**options: str) -> SamaTransformer:
    """A small model with no weight at a special value, so that every part shows in the output."""
    with torch.device("meta"):
        model = SamaTransformer(**SIZES, **options)
    state = {
        k: normal(1, k, v.shape) * (0.2 if v.ndim < 2 else v[0].numel() ** -0.5)
        + (1.0 if k.endswith("norm.weight") else 0)
        for k, v in model.state_dict().items()
    }
    return build({**SIZES, **options}, state)


def inputs(batch: int = 2, anchors: int = 1, frames: int = 3) -> dict[str, Any]:
    return {
        "latents": normal(2, "latents", (batch, 16, frames, 4, 6)),
        "timestep": torch.tensor([713.0, 40.5, 999.0][:batch]),
        "text_embeds": normal(2, "text", (batch, 5, SIZES["text_dim"])),
        "source_latents": normal(2, "source", (batch, 16, frames, 4, 6)),
        "semantic_tokens": normal(2, "semantic", (batch, 65 * anchors, SIZES["semantic_dim"])),
    }


def described(model: SamaTransformer, given: dict[str, Any], **options: Any) -> tuple[torch.Tensor, Any]:
    """The float64 reference on the weights of `model`."""
    return reference.forward(
        to_official(model.state_dict()),
        SIZES["num_attention_heads"],
        given["latents"],
        given["timestep"],
        given["text_embeds"],
        given["source_latents"],
        given["semantic_tokens"],
        **options,
    )


@pytest.mark.parametrize("folder", CASES)
def test_golden_case(folder: str) -> None:
    config = json.loads((GOLDEN / folder / "config.json").read_text())
    case = load_file(GOLDEN / folder / "case.safetensors")
    model = load_official(GOLDEN / folder / "weights.safetensors", config)
    with torch.no_grad():
        velocity, semantic = model(
            case["latents"],
            case["timestep"],
            case["context"],
            source_latents=case.get("source_latents"),
            semantic_tokens=case.get("semantic_latents"),
        )
    assert (velocity - case["velocity"]).abs().max() < 1e-5
    assert (semantic is None) == ("semantic_velocity" not in case)
    if semantic is not None:
        assert (semantic - case["semantic_velocity"]).abs().max() < 1e-5


def test_every_shared_golden_case(shared: Path) -> None:
    """Whatever cases lie beside the checkout, also those made later: config.json and weights as they come."""
    found = sorted((shared / "golden").glob("*/config.json"))
    assert found
    for config in found:
        case = load_file(config.parent / "case.safetensors")
        model = load_official(config.parent / "weights.safetensors", config)
        names = {"context": "text_embeds", "semantic_latents": "semantic_tokens"}
        outputs = ("velocity", "semantic_velocity")
        given = {names.get(k, k): v for k, v in case.items() if k not in outputs}
        with torch.no_grad():
            velocity, semantic = model(**given)
        assert (velocity - case["velocity"]).abs().max() < 1e-5, config.parent.name
        if "semantic_velocity" in case:
            assert (semantic - case["semantic_velocity"]).abs().max() < 1e-5, config.parent.name


@pytest.mark.parametrize("folder", CASES)
def test_reference_reproduces_the_golden_cases(folder: str) -> None:
    config = json.loads((GOLDEN / folder / "config.json").read_text())
    case = load_file(GOLDEN / folder / "case.safetensors")
    weights = load_file(GOLDEN / folder / "weights.safetensors")
    velocity, semantic = reference.forward(
        weights,
        config["num_heads"],
        case["latents"],
        case["timestep"],
        case["context"],
        case.get("source_latents"),
        case.get("semantic_latents"),
    )
    assert (velocity - case["velocity"]).abs().max() < 1e-5
    if semantic is not None:
        assert (semantic - case["semantic_velocity"]).abs().max() < 1e-5


COMBINATIONS = [
    *itertools.product(("type_embedding", "shifted_rope", "none"), ("null", "identity", "temporal"), (1,), (True,)),
    ("type_embedding", "null", 3, True),
    ("type_embedding", "temporal", 3, True),
    ("type_embedding", "temporal", 2, False),
    ("shifted_rope", "identity", 2, False),
]


@pytest.mark.parametrize(("role", "position", "anchors", "with_source"), COMBINATIONS)
def test_every_option_follows_the_description(role: str, position: str, anchors: int, with_source: bool) -> None:
    model = toy(role_encoding=role, semantic_position=position)
    given = inputs(anchors=anchors)
    if not with_source:
        given["source_latents"] = None
    with torch.no_grad():
        velocity, semantic = model(**given)
    times = {1: [0], 2: [0, 2], 3: [0, 1, 2]}[anchors]  # 9 frames: anchors 0 | 0, 8 | 0, 4, 8
    wanted, wanted_semantic = described(
        model, given, role_encoding=role, semantic_position=position, anchor_times=times
    )
    assert semantic.shape == given["semantic_tokens"].shape
    assert (velocity - wanted).abs().max() < 1e-5
    assert (semantic - wanted_semantic).abs().max() < 1e-5


def test_options_differ_from_each_other() -> None:
    outputs = []
    for role, position in (
        ("type_embedding", "null"),
        ("none", "null"),
        ("shifted_rope", "null"),
        ("none", "identity"),
    ):
        with torch.no_grad():
            outputs.append(toy(role_encoding=role, semantic_position=position)(**inputs())[0])
    for one, other in itertools.combinations(outputs, 2):
        assert (one - other).abs().max() > 1e-3


def test_source_length_may_differ_from_target() -> None:
    model, given = toy(), inputs(frames=3)
    given["source_latents"] = given["source_latents"][:, :, :2]
    with torch.no_grad():
        velocity, _ = model(**given)
    wanted, _ = described(model, given)
    assert (velocity - wanted).abs().max() < 1e-5


def test_fresh_model_without_source_and_semantic_equals_the_backbone() -> None:
    preset = get_preset("tiny")
    names = ("semantic_dim", "semantic_hidden_dim")
    torch.manual_seed(3)
    backbone = WanTransformer3DModel(**{k: v for k, v in preset.transformer.items() if k not in names}).eval()
    model = from_t2v(preset, backbone).eval()
    latents, text = normal(1, "x", (2, 16, 3, 8, 6)), normal(1, "t", (2, 9, preset.text_dim))
    timestep = torch.tensor([900.0, 12.0])
    with torch.no_grad():
        wanted = backbone(latents, timestep, text, return_dict=False)[0]
        velocity, semantic = model(latents, timestep, text)
    assert semantic is None
    assert wanted.abs().max() > 0.1
    assert torch.equal(velocity, wanted)


def test_extra_modules_start_as_described() -> None:
    backbone_sizes = {k: v for k, v in SIZES.items() if not k.startswith("semantic")}
    model = from_t2v(SIZES, WanTransformer3DModel(**backbone_sizes))
    assert not model.segment_embedding.weight.any()
    bound = (6 / sum(model.semantic_head.proj.weight.shape)) ** 0.5
    for linear in (model.siglip_feat_mlp.fc1, model.siglip_feat_mlp.fc2, model.semantic_head.proj):
        bound = (6 / sum(linear.weight.shape)) ** 0.5
        assert 0.8 * bound < linear.weight.abs().max() <= bound
        assert 2e-4 < linear.bias.std() < 3e-3
    for norm in (model.siglip_feat_mlp.norm, model.semantic_head.norm):
        assert (norm.weight == 1).all()
        assert not norm.bias.any()


def test_gradient_checkpointing_changes_nothing() -> None:
    gradients = []
    for checkpointing in (False, True):
        model = toy().train()
        if checkpointing:
            model.enable_gradient_checkpointing()
        velocity, semantic = model(**inputs())
        (velocity.square().mean() + semantic.abs().mean()).backward()
        assert all(p.grad is not None for p in model.parameters())
        gradients.append([p.grad.clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_bf16_keeps_what_needs_float32_and_stays_close() -> None:
    model, given = toy(), inputs()
    table = model.blocks[0].scale_shift_table.detach().clone()
    wanted, _ = described(model, given)
    half = model.to(torch.bfloat16)
    assert half.rope.freqs_cos.dtype == half.rope.freqs_sin.dtype == torch.float32
    assert torch.equal(half.blocks[0].scale_shift_table, table)
    assert half.blocks[0].norm2.weight.dtype == torch.float32
    assert half.condition_embedder.time_embedder.linear_1.weight.dtype == torch.float32
    assert half.blocks[0].attn1.to_q.weight.dtype == half.semantic_head.proj.weight.dtype == torch.bfloat16
    with torch.no_grad():
        velocity, semantic = half(**given)
    assert velocity.dtype == semantic.dtype == torch.bfloat16
    error = (velocity.double() - wanted).square().mean().sqrt() / wanted.square().mean().sqrt()
    assert error < 0.03


def test_blocks_compile_without_graph_breaks() -> None:
    model, given = toy(), inputs()
    with torch.no_grad():
        wanted, _ = model(**given)
        for block in model.blocks:
            block.compile(fullgraph=True, backend="aot_eager")
        velocity, _ = model(**given)
    assert (velocity - wanted).abs().max() < 1e-5


def test_fsdp2_per_block_gives_the_same_gradients() -> None:
    import torch.distributed as dist
    from torch.distributed.fsdp import fully_shard

    def gradients(model: SamaTransformer) -> list[torch.Tensor]:
        velocity, semantic = model(**inputs())
        (velocity.square().mean() + semantic.abs().mean()).backward()
        return [p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad for p in model.parameters()]

    wanted = gradients(toy())
    alone = not dist.is_initialized()  # a test before this one may have left a group of this process
    if alone:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        model = toy()
        for block in model.blocks:
            fully_shard(block)
        fully_shard(model)
        model.enable_gradient_checkpointing()
        for got, want in zip(gradients(model), wanted, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-7)
    finally:
        if alone:
            dist.destroy_process_group()


def test_materialised_from_meta() -> None:
    model, given = toy(), inputs()
    with torch.device("meta"):
        empty = SamaTransformer(**SIZES)
    empty.to_empty(device="cpu")
    empty.load_state_dict(model.state_dict())
    empty.reset_buffers()
    with torch.no_grad():
        assert torch.equal(empty(**given)[0], model(**given)[0])


def test_samples_of_a_batch_do_not_see_each_other() -> None:
    model, both = toy(), inputs(batch=2)
    with torch.no_grad():
        together = model(**both)
        for i in range(2):
            alone = model(**{k: v[i : i + 1] for k, v in both.items()})
            for a, b in zip(alone, together, strict=True):
                torch.testing.assert_close(a[0], b[i], rtol=1e-4, atol=1e-5)


def test_bad_options_are_named() -> None:
    with pytest.raises(InputError, match="sideways is not a role encoding"):
        SamaTransformer(**SIZES, role_encoding="sideways")
    with pytest.raises(InputError, match="there are null, identity, temporal"):
        SamaTransformer(**SIZES, semantic_position="somewhere")
    given = inputs()
    given["semantic_tokens"] = given["semantic_tokens"][:, :64]
    with pytest.raises(InputError, match="64 semantic tokens"):
        toy(semantic_position="temporal")(**given)
