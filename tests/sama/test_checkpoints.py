"""Weights in every format come back exactly; files that do not fit are refused by their first bad key."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import load_file, save_file

from sama.checkpoints import (
    build,
    from_t2v,
    load_diffusers,
    load_official,
    random_transformer,
    read_safetensors,
    save_diffusers,
    save_official,
    to_official,
    transformer_config,
)
from sama.errors import InputError
from sama.presets import get_preset
from sama.transformer import SamaTransformer

GOLDEN = Path(__file__).resolve().parents[1] / "assets" / "golden" / "no_semantic"


@pytest.fixture(scope="module")
def config() -> dict:
    return json.loads((GOLDEN / "config.json").read_text())


@pytest.fixture
def official() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / "weights.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return set(one) == set(other) and all(torch.equal(one[k], other[k]) and one[k].dtype == other[k].dtype for k in one)


def test_official_round_trip_is_exact(config: dict, official: dict, tmp_path: Path) -> None:
    save_official(load_official(GOLDEN / "weights.safetensors", config), tmp_path / "out" / "model.safetensors")
    assert same(load_file(tmp_path / "out" / "model.safetensors"), official)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["model.safetensors"]


def test_diffusers_round_trip_is_exact(
    config: dict, official: dict, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("diffusers"), "propagate", True)  # so that its warnings are seen here
    model = load_official(official, config)
    save_diffusers(model, tmp_path / "pipeline" / "transformer")
    assert json.loads((tmp_path / "pipeline/transformer/config.json").read_text())["_class_name"] == "SamaTransformer"
    for folder in (tmp_path / "pipeline", tmp_path / "pipeline" / "transformer"):
        again = load_diffusers(folder)
        assert same(again.state_dict(), model.state_dict())
        assert transformer_config(again.config) == transformer_config(model.config)
    save_official(load_diffusers(tmp_path / "pipeline"), tmp_path / "back.safetensors")
    assert same(load_file(tmp_path / "back.safetensors"), official)
    theirs = SamaTransformer.from_pretrained(tmp_path / "pipeline", subfolder="transformer")
    assert same(theirs.state_dict(), model.state_dict())
    assert not caplog.records


def test_options_survive_the_diffusers_folder(tmp_path: Path) -> None:
    small = {**get_preset("tiny").transformer, "num_layers": 1}
    model = random_transformer({**small, "role_encoding": "shifted_rope", "semantic_position": "temporal"})
    save_diffusers(model, tmp_path)
    again = load_diffusers(tmp_path)
    assert (again.config.role_encoding, again.config.semantic_position) == ("shifted_rope", "temporal")
    assert not any(k.startswith("segment_embedding") for k in again.state_dict())


def test_bfloat16_keeps_the_float32_parts(config: dict, official: dict, tmp_path: Path) -> None:
    model = load_official(official, config, dtype=torch.bfloat16)
    assert model.blocks[0].attn1.to_q.weight.dtype == torch.bfloat16
    assert torch.equal(model.blocks[0].scale_shift_table, official["blocks.0.modulation"])
    save_official(model, tmp_path / "half.safetensors")
    assert same(load_official(tmp_path / "half.safetensors", config).state_dict(), model.state_dict())


def test_prefixes_and_shards_are_understood(config: dict, official: dict, tmp_path: Path) -> None:
    wanted = load_official(official, config).state_dict()
    prefixed = {f"model.diffusion_model.{k}": v for k, v in official.items()}
    assert same(load_official(prefixed, config).state_dict(), wanted)
    keys = sorted(official)
    for i in range(2):
        save_file({k: official[k] for k in keys[i::2]}, tmp_path / f"part-{i}.safetensors")
    assert same(load_official(tmp_path, config).state_dict(), wanted)
    save_file({keys[0]: official[keys[0]]}, tmp_path / "part-2.safetensors")
    with pytest.raises(InputError, match=f"{keys[0]} in two files"):
        load_official(tmp_path, config)
    with pytest.raises(InputError, match=r"head\.head\.bias twice"):
        load_official({**official, "module.head.head.bias": official["head.head.bias"]}, config)


@pytest.mark.parametrize(
    "prefix", ["model.", "diffusion_model.", "pipe.dit.", "dit.", "module.model.", "transformer.", "_orig_mod."]
)
def test_wrappers_leave_prefixes(config: dict, official: dict, prefix: str) -> None:
    wanted = load_official(official, config).state_dict()
    assert same(load_official({f"{prefix}{k}": v for k, v in official.items()}, config).state_dict(), wanted)
    inner = {k.replace("blocks.0.", "blocks.0._checkpoint_wrapped_module."): v for k, v in official.items()}
    assert same(load_official(inner, config).state_dict(), wanted)
    ours = load_official(official, config).state_dict()  # our own names are understood too
    assert same(load_official(ours, config).state_dict(), wanted)


def test_an_index_names_the_shards(config: dict, official: dict, tmp_path: Path) -> None:
    wanted, keys = load_official(official, config).state_dict(), sorted(official)
    files = {k: f"model-{i % 2}.safetensors" for i, k in enumerate(keys)}
    for name in set(files.values()):
        save_file({k: official[k] for k in keys if files[k] == name}, tmp_path / name)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": files}))
    (tmp_path / "other.safetensors").write_bytes(b"not of this model")
    assert same(load_official(index, config).state_dict(), wanted)
    assert same(load_official(tmp_path, config).state_dict(), wanted)
    index.write_text(json.dumps({"weight_map": {**files, "extra.weight": "model-0.safetensors"}}))
    with pytest.raises(InputError, match=r"extra\.weight is in model-0\.safetensors, and it is not"):
        load_official(index, config)
    index.write_text(json.dumps({"weight_map": files}))
    (tmp_path / "model-1.safetensors").unlink()
    with pytest.raises(InputError, match=rf"model-1\.safetensors does not exist; {keys[1]} is in it"):
        load_official(index, config)
    index.write_text(json.dumps({"weight_map": {keys[0]: "../elsewhere.safetensors"}}))
    with pytest.raises(InputError, match="not the index"):
        load_official(index, config)


def test_sizes_that_the_configuration_leaves_out_are_read_off_the_weights(config: dict, official: dict) -> None:
    wanted = load_official(official, config).state_dict()
    few = {"dim": config["dim"], "num_heads": config["num_heads"], "eps": config["eps"]}
    assert same(load_official(official, few).state_dict(), wanted)
    assert same(load_official(official, GOLDEN / "config.json").state_dict(), wanted)
    assert same(load_official(str(GOLDEN / "weights.safetensors"), str(GOLDEN / "config.json")).state_dict(), wanted)
    heads = {"num_heads": config["num_heads"]}
    assert same(load_official(official, heads).state_dict(), wanted)
    with pytest.raises(InputError, match=r"not a readable config\.json"):
        load_official(official, str(GOLDEN / "no.json"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_heads": None}, "gives no num_heads"),
        ({"num_heads": 0}, "gives no num_heads"),
        ({"num_heads": 5}, "dim 96 does not divide into 5 heads"),
        ({"num_heads": 32}, "dim 96 does not divide into 32 heads of an even width"),
        ({"ffn_dim": "192"}, "ffn_dim must be a whole number, not '192'"),
        ({"text_dim": -1}, "text_dim must be a whole number, not -1"),
        ({"num_layers": 2.0}, r"num_layers must be a whole number, not 2\.0"),
    ],
)
def test_sizes_that_cannot_be_are_named(config: dict, official: dict, change: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        load_official(official, {k: v for k, v in {**config, **change}.items() if v is not None})


def test_channels_and_patches_are_read_off_the_weights() -> None:
    sizes = {**get_preset("tiny").transformer, "num_layers": 1, "in_channels": 48, "out_channels": 48}
    model = random_transformer({**sizes, "patch_size": (1, 1, 2)})
    again = load_official(to_official(model.state_dict()), {"num_heads": 4})
    assert transformer_config(again.config) == transformer_config(model.config)


def test_training_starts_from_official_files_and_exports(tmp_path: Path) -> None:
    """A backbone's own official file gets fresh extra modules; SAMA weights, in either format, keep theirs."""
    sizes = {**get_preset("tiny").transformer, "num_layers": 1}
    model = random_transformer(sizes, seed=3)
    extras = ("segment_embedding", "siglip_feat_mlp", "semantic_head")
    save_official(model, tmp_path / "sama.safetensors")
    save_diffusers(model, tmp_path / "folder" / "transformer")
    for source in ("sama.safetensors", "folder", "folder/transformer"):
        assert same(from_t2v(sizes, str(tmp_path / source)).state_dict(), model.state_dict())
    backbone = {k: v for k, v in model.state_dict().items() if not k.startswith(extras)}
    save_official(backbone, tmp_path / "wan.safetensors")
    started = from_t2v(sizes, str(tmp_path / "wan.safetensors"), seed=1).state_dict()
    assert same({k: v for k, v in started.items() if k in backbone}, backbone)
    fresh = [k for k in started if k not in backbone]
    assert len(fresh) == 11
    assert not torch.equal(started["semantic_head.proj.weight"], model.state_dict()["semantic_head.proj.weight"])
    with pytest.raises(InputError, match="does not exist"):
        from_t2v(sizes, str(tmp_path / "no.safetensors"))


def test_first_bad_key_is_named_as_in_the_file(config: dict, official: dict) -> None:
    key = "blocks.1.cross_attn.norm_k.weight"
    with pytest.raises(InputError, match=f"lacks {key}"):
        load_official({k: v for k, v in official.items() if k != key}, config)
    with pytest.raises(InputError, match=rf"{key} has shape \(95,\) instead of \(96,\)"):
        load_official({**official, key: official[key][:-1]}, config)
    with pytest.raises(InputError, match=r"has blocks\.1\.self_attn\.k_img\.weight, which the model lacks"):
        load_official({**official, "blocks.1.self_attn.k_img.weight": official[key]}, config)
    with pytest.raises(InputError, match=f"{key} holds torch.int64"):
        load_official({**official, key: official[key].long()}, config)
    with pytest.raises(InputError, match=r"blocks\.0\.ffn\.0\.weight has shape"):
        load_official(official, {**config, "ffn_dim": 128})


def test_half_written_and_missing_files(config: dict, tmp_path: Path) -> None:
    whole = (GOLDEN / "weights.safetensors").read_bytes()
    for size in (0, 5, 2000, len(whole) - 1):
        (tmp_path / "cut.safetensors").write_bytes(whole[:size])
        with pytest.raises(InputError, match=r"cut\.safetensors is not a complete safetensors file"):
            load_official(tmp_path / "cut.safetensors", config)
    with pytest.raises(InputError, match="does not exist"):
        load_official(tmp_path / "nowhere.safetensors", config)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no safetensors file"):
        read_safetensors(tmp_path / "empty")
    with pytest.raises(InputError, match=r"no readable config\.json"):
        load_diffusers(tmp_path / "empty")


def test_a_failed_save_leaves_the_old_file(
    config: dict, official: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.safetensors"
    save_official(load_official(official, config), path)
    before = path.read_bytes()

    def full_disk(tensors: dict, name: str, metadata: dict) -> None:
        Path(name).write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr("sama.tensor_files.save_file", full_disk)
    with pytest.raises(OSError, match="no space left"):
        save_official(load_official(official, config), path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def test_a_plain_backbone_folder_is_not_a_sama_folder(tmp_path: Path) -> None:
    preset = get_preset("tiny")
    sizes = {k: v for k, v in preset.transformer.items() if not k.startswith("semantic")}
    WanTransformer3DModel(**sizes).save_pretrained(tmp_path / "transformer")
    with pytest.raises(InputError, match="holds a WanTransformer3DModel"):
        load_diffusers(tmp_path)


def test_from_t2v_reads_folders_and_refuses_other_sizes(tmp_path: Path) -> None:
    preset = get_preset("tiny")
    sizes = {k: v for k, v in preset.transformer.items() if not k.startswith("semantic")}
    backbone = WanTransformer3DModel(**sizes)
    backbone.save_pretrained(tmp_path / "transformer")
    models = [from_t2v(preset, s) for s in (backbone, tmp_path, tmp_path / "transformer")]
    for model in models:
        assert same(model.state_dict(), models[0].state_dict())
        assert {k for k, v in backbone.state_dict().items() if torch.equal(v, model.state_dict()[k])} == set(
            backbone.state_dict()
        )
    assert not torch.equal(
        from_t2v(preset, backbone, seed=1).semantic_head.proj.weight, models[0].semantic_head.proj.weight
    )
    with pytest.raises(InputError, match=r"the text-to-video backbone: patch_embedding\.weight has shape|scale_shift"):
        from_t2v({**preset.transformer, "attention_head_dim": 16}, backbone)
    with pytest.raises(InputError, match="nowhere does not give a Wan transformer"):
        from_t2v(preset, tmp_path / "nowhere")


def test_tiny_starts_from_fixed_numbers_and_touches_no_random_state() -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    one = from_t2v("tiny")
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    other = from_t2v("tiny")
    assert same(one.state_dict(), other.state_dict())
    assert not one.proj_out.weight.any()
    assert not one.segment_embedding.weight.any()
    for name, parameter in one.named_parameters():
        assert torch.isfinite(parameter).all(), name
        if parameter.ndim > 1 and not name.startswith(("proj_out", "segment_embedding")):
            assert parameter.std() > 1e-3, name


def test_configuration_in_either_naming() -> None:
    ours = transformer_config("wan2.1-t2v-14b")
    names = {"num_heads": 40, "dim": 5120, "in_dim": 16, "out_dim": 16, "patch_size": [1, 2, 2], "shapes": {}}
    same_keys = ("text_dim", "freq_dim", "ffn_dim", "num_layers", "semantic_dim", "semantic_hidden_dim")
    assert transformer_config({**names, **{k: ours[k] for k in same_keys}}) == ours


def test_official_names_of_a_whole_model(config: dict, official: dict) -> None:
    with torch.device("meta"):
        model = SamaTransformer(**transformer_config(config))
    assert {k: v.shape for k, v in to_official(model.state_dict()).items()} == {k: v.shape for k, v in official.items()}


def test_build_takes_the_tensors_over(config: dict, official: dict) -> None:
    model = load_official(official, config)
    again = build(config, model.state_dict())
    assert again.proj_out.weight.data_ptr() == model.proj_out.weight.data_ptr()
