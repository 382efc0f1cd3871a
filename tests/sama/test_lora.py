"""LoRA: what it adds, what of it is trained, every naming of its files, and training under FSDP2 on two processes."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from safetensors.torch import load_file, save_file

from sama.checkpoints import to_official
from sama.errors import InputError
from sama.lora import (
    Lora,
    Pair,
    add_lora,
    load_lora,
    lora_state,
    merge_lora,
    merged,
    plain_name,
    reset_lora,
    save_lora,
    sort_keys,
)  # fmt: skip
from sama.randomness import normal
from sama.transformer import SamaTransformer
from tests.sama.test_transformer import SIZES, inputs, toy


def lively(model: SamaTransformer, seed: int = 5) -> SamaTransformer:
    """Give every trained parameter a value of its own: B is zero at the start."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.requires_grad:
                p.copy_(0.1 * normal(seed, plain_name(name), p.shape))
    return model


def adapted(**options) -> SamaTransformer:
    return lively(add_lora(toy(), **{"rank": 4, "alpha": 8.0, **options}))


def output(model: SamaTransformer) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs())[0]


def equal(one: Lora, other: Lora) -> bool:
    return (
        set(one.pairs) == set(other.pairs)
        and all(
            torch.equal(a.down, other.pairs[k].down) and torch.equal(a.up, other.pairs[k].up)
            and a.alpha == other.pairs[k].alpha
            for k, a in one.pairs.items()
        )
        and all(
            set(a) == set(b) and all(torch.equal(a[k], b[k]) for k in a)
            for a, b in ((one.whole, other.whole), (one.added, other.added))
        )
    )  # fmt: skip


def test_new_adapters_change_nothing_and_only_they_are_trained() -> None:
    plain = toy()
    model = add_lora(toy(), rank=4, alpha=8.0)
    assert torch.equal(output(model), output(plain))
    trained = {plain_name(n): p.numel() for n, p in model.named_parameters() if p.requires_grad}
    d, f = 48, SIZES["ffn_dim"]
    assert sum(n for k, n in trained.items() if "lora" in k) == 2 * 4 * (8 * (d + d) + 2 * (d + f))
    whole = {k.split(".")[0] for k in trained if "lora" not in k}
    assert whole == {"segment_embedding", "siglip_feat_mlp", "semantic_head"}
    assert {plain_name(n) for n, p in model.named_parameters() if not p.requires_grad} | {
        k for k in trained if "lora" not in k
    } == set(plain.state_dict())


def test_targets_and_whole_modules_are_chosen() -> None:
    model = add_lora(toy(), targets=["attn1.to_q"], whole=["scale_shift_table"])
    trained = {plain_name(n) for n, p in model.named_parameters() if p.requires_grad}
    pairs = {f"blocks.{i}.attn1.to_q.lora_{s}.weight" for i in (0, 1) for s in "AB"}
    assert trained == pairs | {"scale_shift_table"}
    with pytest.raises(InputError, match="to_x is the name of no linear layer"):
        add_lora(toy(), targets=["to_x"])
    with pytest.raises(InputError, match="rank and an alpha above 0"):
        add_lora(toy(), rank=0)
    with pytest.raises(InputError, match="has no adapters"):
        lora_state(toy())


def test_start_values_depend_on_seed_and_name_alone() -> None:
    torch.manual_seed(1)
    one = lora_state(add_lora(toy(), rank=4))
    torch.manual_seed(2)
    assert equal(one, lora_state(add_lora(toy(), rank=4)))
    assert not equal(one, lora_state(add_lora(toy(), rank=4, seed=1)))
    other = adapted()
    reset_lora(other)
    assert all(not p.up.any() and 0.1 < p.down.abs().max() <= 48**-0.5 for p in lora_state(other).pairs.values())


def test_merging_gives_what_the_adapters_gave() -> None:
    model = adapted()
    plain, lora = toy(), lora_state(model)
    assert (output(plain) - output(model)).abs().max() > 0.01
    name = "blocks.1.attn2.to_out.0"
    pair = lora.pairs[name]
    exact = plain.state_dict()[f"{name}.weight"].double() + 8 / 4 * pair.up.double() @ pair.down.double()
    got = merged(plain.state_dict(), lora)
    assert (got[f"{name}.weight"] - exact).abs().max() < 1e-6
    half = merged(plain.state_dict(), lora, 0.5)["semantic_head.proj.weight"]
    middle = (plain.semantic_head.proj.weight + lora.whole["semantic_head.proj.weight"]) / 2
    torch.testing.assert_close(half, middle)
    merge_lora(plain, lora)
    assert (output(plain) - output(model)).abs().max() < 1e-5
    assert torch.equal(plain.segment_embedding.weight, lora.whole["segment_embedding.weight"])


def test_merging_into_bfloat16_rounds_once() -> None:
    lora = lora_state(adapted(whole=[]))
    half = {k: v.bfloat16() for k, v in toy().state_dict().items()}
    key = "blocks.0.attn1.to_q"
    exact = half[f"{key}.weight"].float() + lora.pairs[key].change()
    assert torch.equal(merged(half, lora)[f"{key}.weight"], exact.bfloat16())


@pytest.mark.parametrize("naming", ["official", "diffusers"])
def test_files_come_back_exactly(naming: str, tmp_path: Path) -> None:
    lora = lora_state(adapted())
    save_lora(lora, tmp_path / "a.safetensors", naming)
    assert equal(load_lora(tmp_path / "a.safetensors"), lora)
    keys = set(load_file(tmp_path / "a.safetensors"))
    wanted = {
        "official": "diffusion_model.blocks.0.self_attn.q.lora_A.weight",
        "diffusers": "transformer.blocks.0.attn1.to_q.lora_A.weight",
    }[naming]
    assert wanted in keys
    other = "diffusers" if naming == "official" else "official"
    save_lora(load_lora(tmp_path / "a.safetensors"), tmp_path / "b.safetensors", other)
    assert equal(load_lora(tmp_path / "b.safetensors"), lora)


def test_the_official_naming_is_what_diffusers_converts(tmp_path: Path) -> None:
    """diffusers' own reader, which ComfyUI files go through, finds the same adapters with alpha worked in."""
    from diffusers.loaders.lora_conversion_utils import _convert_non_diffusers_wan_lora_to_diffusers

    lora = lora_state(adapted(whole=[]))
    save_lora(lora, tmp_path / "a.safetensors")
    theirs = _convert_non_diffusers_wan_lora_to_diffusers(load_file(tmp_path / "a.safetensors"))
    assert len(theirs) == 2 * len(lora.pairs)
    for name, pair in lora.pairs.items():
        change = theirs[f"transformer.{name}.lora_B.weight"] @ theirs[f"transformer.{name}.lora_A.weight"]
        torch.testing.assert_close(change, pair.change())


def test_the_diffusers_naming_loads_in_diffusers(tmp_path: Path) -> None:
    model = adapted(whole=[])
    save_lora(lora_state(model), tmp_path / "a.safetensors", "diffusers")
    theirs = toy()
    theirs.load_lora_adapter(str(tmp_path), weight_name="a.safetensors")
    assert "transformer.lora_alpha" in json.loads(_metadata(tmp_path / "a.safetensors"))
    torch.testing.assert_close(output(theirs), output(model))


def _metadata(path: Path) -> str:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return file.metadata()["lora_adapter_metadata"]


def test_namings_of_other_tools() -> None:
    down, up = normal(0, "a", (4, 48)), normal(0, "b", (48, 4))
    wanted = Lora({"blocks.1.attn2.to_out.0": Pair(down, up, 2.0)})
    for names in (
        ("diffusion_model.blocks.1.cross_attn.o.lora_down.weight", "lora_up.weight", ".alpha"),
        ("lora_unet_blocks_1_cross_attn_o.lora_down.weight", "lora_up.weight", ".alpha"),
        ("pipe.dit.blocks.1.cross_attn.o.lora_A.default.weight", "lora_B.default.weight", ".alpha"),
        ("base_model.model.blocks.1.attn2.to_out.0.lora_A.weight", "lora_B.weight", ".alpha"),
    ):
        module = names[0].split(".lora_")[0]
        state = {names[0]: down, f"{module}.{names[1]}": up, f"{module}{names[2]}": torch.tensor(2.0)}
        assert equal(sort_keys(state), wanted), names
    ffn = sort_keys({"lora_unet_blocks_0_ffn_2.lora_down.weight": down, "lora_unet_blocks_0_ffn_2.lora_up.weight": up})
    assert ffn.pairs["blocks.0.ffn.net.2"].alpha == 4.0  # no alpha: scale 1
    plain = {"diffusion_model.blocks.0.self_attn.q.diff": up, "diffusion_model.head.head.diff_b": up}
    assert set(sort_keys(plain).added) == {"blocks.0.attn1.to_q.weight", "proj_out.bias"}


def test_plain_differences_are_added_and_saved(tmp_path: Path) -> None:
    bias = normal(0, "b", (48,))
    lora = Lora({}, {}, {"blocks.0.attn1.to_q.bias": bias})
    save_lora(lora, tmp_path / "a.safetensors")
    assert equal(load_lora(tmp_path / "a.safetensors"), lora)
    before = toy().state_dict()
    assert torch.equal(
        merged(before, lora, 0.5)["blocks.0.attn1.to_q.bias"], before["blocks.0.attn1.to_q.bias"] + 0.5 * bias
    )
    with pytest.raises(InputError, match="write `official`"):
        save_lora(lora, tmp_path / "b.safetensors", "diffusers")


def test_files_that_do_not_fit_are_named(tmp_path: Path) -> None:
    whole = to_official(toy().state_dict())
    lora = lora_state(adapted())
    save_lora(lora, tmp_path / "a.safetensors")
    keys = load_file(tmp_path / "a.safetensors")
    q = "diffusion_model.blocks.0.self_attn.q"
    half = {k: v for k, v in keys.items() if k != f"{q}.lora_B.weight"}
    save_file(half, tmp_path / "half.safetensors")
    with pytest.raises(InputError, match=r"half of the LoRA of blocks\.0\.self_attn\.q\.weight"):
        load_lora(tmp_path / "half.safetensors")
    with pytest.raises(InputError, match="do not fit"):
        sort_keys({**keys, f"{q}.lora_B.weight": torch.zeros(48, 3)})
    with pytest.raises(InputError, match="holds no LoRA"):
        sort_keys(whole)
    wide = sort_keys({**keys, f"{q}.lora_A.weight": torch.zeros(4, 47)})
    with pytest.raises(InputError, match=r"blocks\.0\.self_attn\.q\.weight would be \(48, 47\) instead of \(48, 48\)"):
        merged(toy().state_dict(), wide)
    with pytest.raises(InputError, match=r"changes blocks\.7\.self_attn\.q\.weight, which the model lacks"):
        merged(toy().state_dict(), Lora({"blocks.7.attn1.to_q": lora.pairs["blocks.0.attn1.to_q"]}))
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "a.safetensors").read_bytes()[:-5])
    with pytest.raises(InputError, match="not a complete safetensors file"):
        load_lora(tmp_path / "cut.safetensors")
    with pytest.raises(InputError, match="not a naming"):
        save_lora(lora, tmp_path / "x.safetensors", "mine")


def gradients(model: SamaTransformer) -> dict[str, torch.Tensor]:
    velocity, semantic = model(**inputs())
    (velocity.square().mean() + semantic.abs().mean()).backward()
    found = {}
    for name, p in model.named_parameters():
        assert (p.grad is not None) == p.requires_grad, name
        if p.grad is not None:
            found[plain_name(name)] = p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad
    return found


def test_gradient_checkpointing_changes_nothing() -> None:
    wanted = gradients(adapted())
    model = adapted()
    model.enable_gradient_checkpointing()
    for name, gradient in gradients(model).items():
        assert torch.equal(gradient, wanted[name]), name


def _rank(rank: int, port: int, folder: str) -> None:
    import torch.distributed as dist
    from torch.distributed.fsdp import fully_shard

    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE="2")
    dist.init_process_group("gloo")
    model = adapted()
    # adapters, frozen weights and whole modules share their groups, and one of these is wider than two ranks divide
    for block in model.blocks:
        fully_shard([block.attn1, block.attn2, block.ffn])
    fully_shard(model)
    model.enable_gradient_checkpointing()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    found = gradients(model)
    optimizer.step()
    stepped = lora_state(model)
    reset_lora(model, seed=7)
    again = lora_state(model)
    if rank == 0:
        torch.save(found, f"{folder}/gradients.pt")
        save_lora(stepped, f"{folder}/stepped.safetensors")
        save_lora(again, f"{folder}/again.safetensors")
    dist.destroy_process_group()


def test_two_processes_train_what_one_does(tmp_path: Path) -> None:
    """FSDP2 with trained and frozen parameters in one group: gradients, an optimizer step, gathering, resetting."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    mp.spawn(_rank, (port, str(tmp_path)), nprocs=2)
    alone = adapted()
    wanted = gradients(alone)
    torch.optim.AdamW([p for p in alone.parameters() if p.requires_grad], lr=0.01).step()
    found = torch.load(tmp_path / "gradients.pt", weights_only=True)
    assert set(found) == set(wanted)
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-7)
    stepped, expected = load_lora(tmp_path / "stepped.safetensors"), lora_state(alone)
    for name, pair in expected.pairs.items():
        torch.testing.assert_close(stepped.pairs[name].up, pair.up, rtol=1e-4, atol=1e-4)
    for name, tensor in expected.whole.items():
        torch.testing.assert_close(stepped.whole[name], tensor, rtol=1e-4, atol=1e-4)
    reset_lora(alone, seed=7)
    again = load_lora(tmp_path / "again.safetensors")
    assert all(torch.equal(pair.down, lora_state(alone).pairs[k].down) for k, pair in again.pairs.items())
