"""Weights of the transformer in and out: official single file <-> `SamaTransformer` <-> diffusers folder.

Only safetensors is read. A file that does not fit is refused with the first key that is wrong.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import WanTransformer3DModel

from sama.errors import InputError
from sama.names import from_official, official_key, our_key, sizes_of, to_official, transformer_config
from sama.presets import TINY_SEED, Preset, get_preset
from sama.randomness import generator
from sama.tensor_files import read_safetensors, write_safetensors
from sama.transformer import SamaTransformer, stays_float32

__all__ = [
    "build",
    "cast",
    "check",
    "from_official",
    "from_t2v",
    "load_diffusers",
    "load_official",
    "official_key",
    "our_key",
    "random_transformer",
    "read_safetensors",
    "save_diffusers",
    "save_official",
    "to_official",
    "transformer_config",
    "write_safetensors",
]

StateDict = Mapping[str, torch.Tensor]


def build(
    config: Mapping[str, Any] | Preset | str, state: StateDict, *, origin: str = "the state dict", **names: Any
) -> SamaTransformer:
    """A `SamaTransformer` that holds exactly these tensors (our names); they are taken over, not copied.

    InputError names the first key that is missing, unknown, wrongly shaped or not floating point.
    """
    with torch.device("meta"):
        model = SamaTransformer(**transformer_config(config))
    check(model, state, origin=origin, **names)
    model.load_state_dict(dict(state), assign=True)
    model.reset_buffers(next(iter(state.values())).device)
    return model.eval()


def check(model: torch.nn.Module, state: StateDict, *, origin: str = "the state dict", shown: Any = str) -> None:
    """Raise InputError for the first key of `state` that does not fit `model`; `shown` renames keys for the reader."""
    expected = model.state_dict()
    for key, wanted in expected.items():
        if key not in state:
            raise InputError(f"{origin} lacks {shown(key)}")
        if state[key].shape != wanted.shape:
            have, want = (tuple(t.shape) for t in (state[key], wanted))
            raise InputError(f"{origin}: {shown(key)} has shape {have} instead of {want}")
        if not state[key].is_floating_point():
            raise InputError(f"{origin}: {shown(key)} holds {state[key].dtype} instead of floating point numbers")
    for key in state:
        if key not in expected:
            raise InputError(f"{origin} has {shown(key)}, which the model lacks")


def load_official(
    source: str | os.PathLike | StateDict,
    config: Mapping[str, Any] | Preset | str | os.PathLike,
    *,
    dtype: torch.dtype | None = None,
    device: str = "cpu",
) -> SamaTransformer:
    """Read weights in the released checkpoint's names.

    source: a safetensors file, a folder with shards or their index.json, or a state dict; prefixes that wrappers
    leave (`model.diffusion_model.`, `pipe.dit.`, `module.`, ...) are taken off.
    config: a preset or its name, the path of a config.json, or sizes in the official (`dim`, `num_heads`, ...) or
    diffusers' naming; sizes that it does not give are read off the weights.
    dtype: cast to it; by default tensors stay as stored. Modulation tables, norms and the time embedding
    stay float32 then, as diffusers keeps them.
    """
    if isinstance(source, Mapping):
        raw, origin = source, "the state dict"
    else:
        raw, origin = read_safetensors(source, device), str(source)
    state: dict[str, torch.Tensor] = {}
    for key, tensor in raw.items():
        if our_key(key) in state:
            raise InputError(f"{origin} has {key} twice, under different prefixes")
        state[our_key(key)] = tensor
    sizes = _read_config(config)
    if isinstance(sizes, Mapping):
        sizes = transformer_config({**sizes_of({k: v.shape for k, v in state.items()}), **sizes})
    return build(sizes, cast(state, dtype), origin=origin, shown=official_key)


def _read_config(config: Mapping[str, Any] | Preset | str | os.PathLike) -> Mapping[str, Any] | Preset | str:
    if not isinstance(config, os.PathLike) and not (isinstance(config, str) and config.endswith(".json")):
        return config
    try:
        found = json.loads(Path(config).read_text())
    except (OSError, ValueError):
        raise InputError(f"{config} is not a readable config.json") from None
    if not isinstance(found, dict):
        raise InputError(f"{config} does not hold sizes by name")
    return found


def cast(state: StateDict, dtype: torch.dtype | None) -> dict[str, torch.Tensor]:
    """Cast to `dtype`, except what diffusers keeps in float32 (modulation, norms, time embedding)."""
    if dtype is None:
        return dict(state)
    return {k: v.to(torch.float32 if stays_float32(k) else dtype) for k, v in state.items()}


def save_official(model: SamaTransformer | StateDict, path: str | os.PathLike) -> None:
    """Write one safetensors file in the released checkpoint's names; it appears complete or not at all.

    Takes a model or a full state dict in our names.
    """
    state = model if isinstance(model, Mapping) else model.state_dict()
    write_safetensors(to_official(state), Path(path))


def save_diffusers(model: SamaTransformer, folder: str | os.PathLike) -> None:
    """Write config.json and safetensors as diffusers' `save_pretrained` does."""
    model.save_pretrained(str(folder), safe_serialization=True)


def load_diffusers(
    folder: str | os.PathLike, *, dtype: torch.dtype | None = None, device: str = "cpu"
) -> SamaTransformer:
    """Read a folder of `save_diffusers`, or a pipeline folder with that in `transformer/`."""
    place = Path(folder)
    if not (place / "config.json").is_file() and (place / "transformer" / "config.json").is_file():
        place = place / "transformer"
    config = _config_of(place)
    if config.get("_class_name") != "SamaTransformer":
        raise InputError(f"{folder} holds a {config.get('_class_name')}, not a SamaTransformer; start from it instead")
    return build(config, cast(read_safetensors(place, device), dtype), origin=str(place))


def from_t2v(
    preset: Preset | str | Mapping[str, Any],
    source: WanTransformer3DModel | str | os.PathLike | None = None,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> SamaTransformer:
    """The model that training starts from: a text-to-video backbone and fresh extra modules.

    source: a Wan transformer, a hub id or a folder; or official safetensors (a file, or shards). Extra modules that
    it brings, as an export or the released SAMA weights do, are kept. None takes the preset's own (preset `tiny` has
    none and starts from fixed random weights). seed: of the extra modules' start values. options: `role_encoding`,
    `semantic_position`. Without source and semantic tokens the result equals the backbone exactly.
    """
    config = {**transformer_config(preset), **options}
    if source is None and isinstance(preset, str | Preset):
        preset = get_preset(preset)
        if preset.random:
            return random_transformer(config)
        source = preset.components["transformer"].repo
    if source is None:
        raise InputError("a backbone to start from is needed: a hub id or a folder")
    found = source.state_dict() if isinstance(source, WanTransformer3DModel) else _open_weights(str(source), dtype)
    with torch.device("meta"):
        model = SamaTransformer(**config)
    state = cast({**_extras(config, seed), **found}, dtype)
    check(
        model, state, origin="the text-to-video backbone" if isinstance(source, WanTransformer3DModel) else str(source)
    )
    model.load_state_dict(state, assign=True)
    model.reset_buffers("cpu")
    return model


def _open_weights(source: str, dtype: torch.dtype) -> StateDict:
    """Weights by our names from a hub id, a diffusers folder of either class, or official safetensors."""
    place = Path(source)
    for folder in (place, place / "transformer"):
        if (folder / "config.json").is_file():
            if _config_of(folder).get("_class_name") == "SamaTransformer":
                return read_safetensors(folder)
            return _open_backbone(source, dtype).state_dict()
    if place.exists() or place.suffix in (".safetensors", ".json"):
        return from_official(read_safetensors(place))
    return _open_backbone(source, dtype).state_dict()


def _config_of(folder: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((folder / "config.json").read_text()))
    except (OSError, ValueError, TypeError):
        raise InputError(f"{folder} is not a diffusers folder: it has no readable config.json") from None


def _open_backbone(source: str, dtype: torch.dtype) -> WanTransformer3DModel:
    subfolder = None if (Path(source) / "config.json").is_file() else "transformer"
    try:
        return WanTransformer3DModel.from_pretrained(source, subfolder=subfolder, torch_dtype=dtype)
    except (OSError, ValueError) as error:
        raise InputError(f"{source} does not give a Wan transformer: {str(error).splitlines()[0]}") from None


def _extras(config: Mapping[str, Any], seed: int) -> dict[str, torch.Tensor]:
    """Start values of the modules that the backbone lacks, from `seed` alone."""
    with torch.random.fork_rng(devices=[]):
        model = SamaTransformer(**{**config, "num_layers": 0})
    model.reset_extras(generator(seed, "extra modules"))
    names = ("segment_embedding", "siglip_feat_mlp", "semantic_head")
    return {k: v for k, v in model.state_dict().items() if k.split(".")[0] in names}


PLACE, SHARPNESS = 6.0, 2.5  # how much of a query is its place, and how sharply attention falls off around it


def _same_place(heads: int, head_dim: int) -> torch.Tensor:
    """(heads x head_dim,) a constant in the fastest rotary pair of time, height and width: shared by queries
    and keys, it makes the attention logit fall with the distance between two tokens' positions."""
    side = 2 * (head_dim // 6)  # as Wan divides a head among the axes
    constant = torch.zeros(heads, head_dim)
    for start in (0, head_dim - 2 * side, head_dim - side):
        constant[:, start : start + 2] = PLACE
    return constant.flatten()


@torch.no_grad()
def random_transformer(config: Mapping[str, Any] | Preset | str, seed: int = TINY_SEED) -> SamaTransformer:
    """A model to train from nothing: each tensor is drawn from (seed, its name), so the order of
    construction and global random state do not matter. The video head starts at zero, as Wan's does, and
    self-attention starts out looking at its own place in source and target, as a trained backbone's has
    learned to: from nothing, most of a small run would go into that."""
    with torch.random.fork_rng(devices=[]):
        model = SamaTransformer(**transformer_config(config))
    for name, tensor in sorted(model.state_dict().items()):
        draw = generator(seed, name)
        if "scale_shift_table" in name:
            tensor.copy_(torch.randn(tensor.shape, generator=draw) * tensor.shape[-1] ** -0.5)
        elif name.endswith(("attn1.to_q.bias", "attn1.to_k.bias")):
            tensor.copy_(_same_place(model.config.num_attention_heads, model.config.attention_head_dim))
        elif name.endswith(("attn1.norm_q.weight", "attn1.norm_k.weight")):
            tensor.fill_(SHARPNESS)
        elif name.startswith(("proj_out.", "segment_embedding.")) or name.endswith(".bias"):
            tensor.zero_()
        elif "norm" in name:
            tensor.fill_(1.0)
        else:
            flat = torch.empty(tensor.shape[0], tensor[0].numel())
            tensor.copy_(torch.nn.init.xavier_uniform_(flat, generator=draw).view_as(tensor))
    state = _extras(transformer_config(config), seed)
    model.load_state_dict(state, strict=False)
    return model
