"""Names of weights and sizes: the released (official Wan) naming <-> diffusers'.

The released checkpoint adds `segment_embedding`, `siglip_feat_mlp` and `semantic_head`, which have the same
names here. Method: section 2.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from sama.errors import InputError
from sama.presets import Preset, get_preset

T = TypeVar("T")

# official name -> ours, outside and inside a block; anything else keeps its name
_OUTER = {
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj",
    "head.head": "proj_out",
    "head.modulation": "scale_shift_table",
}
_ATTENTION = {"q": "to_q", "k": "to_k", "v": "to_v", "o": "to_out.0", "norm_q": "norm_q", "norm_k": "norm_k"}
_INNER = {
    **{f"self_attn.{a}": f"attn1.{b}" for a, b in _ATTENTION.items()},
    **{f"cross_attn.{a}": f"attn2.{b}" for a, b in _ATTENTION.items()},
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
    "norm3": "norm2",  # the norm before cross-attention; the other two have no weights
    "modulation": "scale_shift_table",
}
_SIZES = {  # official configuration name -> ours
    "num_heads": "num_attention_heads",
    "in_dim": "in_channels",
    "out_dim": "out_channels",
}
_SAME = (
    "patch_size",
    "num_attention_heads",
    "attention_head_dim",
    "in_channels",
    "out_channels",
    "text_dim",
    "freq_dim",
    "ffn_dim",
    "num_layers",
    "cross_attn_norm",
    "qk_norm",
    "eps",
    "rope_max_seq_len",
    "semantic_dim",
    "semantic_hidden_dim",
    "semantic_tokens_per_anchor",
    "role_encoding",
    "semantic_position",
)
_WHOLE = {
    "dim", "num_attention_heads", "attention_head_dim", "in_channels", "out_channels", "text_dim", "freq_dim",
    "ffn_dim", "num_layers", "rope_max_seq_len", "semantic_dim", "semantic_hidden_dim", "semantic_tokens_per_anchor",
}  # fmt: skip
_TOLD = {  # our configuration name -> parameter and axis that show it
    "dim": ("patch_embedding.weight", 0),
    "in_channels": ("patch_embedding.weight", 1),
    "text_dim": ("condition_embedder.text_embedder.linear_1.weight", 1),
    "freq_dim": ("condition_embedder.time_embedder.linear_1.weight", 1),
    "ffn_dim": ("blocks.0.ffn.net.0.proj.weight", 0),
    "semantic_dim": ("siglip_feat_mlp.fc1.weight", 1),
    "semantic_hidden_dim": ("siglip_feat_mlp.fc1.weight", 0),
}
# what wrappers put before a name, alone or one after the other, and into it
_BEFORE = re.compile(
    r"^(?:(?:model|diffusion_model|base_model|module|pipe|dit|transformer|state_dict|_orig_mod|_fsdp_wrapped_module)\.)+"
)
_WITHIN = re.compile(r"\b_(?:orig_mod|fsdp_wrapped_module|checkpoint_wrapped_module)\.")


def official_key(key: str) -> str:
    """Name in an official file of one of our parameters."""
    return _rename(key, {b: a for a, b in _OUTER.items()}, {b: a for a, b in _INNER.items()})


def our_key(key: str) -> str:
    """Our name of a parameter in an official file, whatever wrapper it was saved from; one of ours is passed on."""
    return _rename(_WITHIN.sub("", _BEFORE.sub("", key)), _OUTER, _INNER)


def _rename(key: str, outer: dict[str, str], inner: dict[str, str]) -> str:
    block = re.match(r"(blocks\.\d+\.)(.*)", key)
    head, rest, names = (block[1], block[2], inner) if block else ("", key, outer)
    stem, dot, leaf = rest.rpartition(".")
    if rest in names:
        return head + names[rest]
    return head + names[stem] + dot + leaf if stem in names else key


def to_official(state: Mapping[str, T]) -> dict[str, T]:
    """State dict in our names -> in the released checkpoint's names."""
    return {official_key(k): v for k, v in state.items()}


def from_official(state: Mapping[str, T]) -> dict[str, T]:
    """State dict in the released checkpoint's names -> in ours."""
    return {our_key(k): v for k, v in state.items()}


def transformer_config(config: Mapping[str, Any] | Preset | str) -> dict[str, Any]:
    """Keyword arguments of `SamaTransformer` from a preset, its name, or a configuration in either naming.

    Keys that say nothing about the transformer are passed over. InputError for sizes that cannot be.
    """
    if isinstance(config, str | Preset):
        return dict(get_preset(config).transformer)
    out = {_SIZES.get(k, k): v for k, v in config.items()}
    for key in _WHOLE & out.keys():
        if not isinstance(out[key], int) or out[key] < 0:
            raise InputError(f"{key} must be a whole number, not {out[key]!r}")
    if "dim" in out and "attention_head_dim" not in out:
        dim, heads = out["dim"], out.get("num_attention_heads")
        if not heads:
            raise InputError("the configuration gives no num_heads, which the weights do not tell")
        if dim % (2 * heads):
            raise InputError(f"dim {dim} does not divide into {heads} heads of an even width")
        out["attention_head_dim"] = dim // heads
    out = {k: v for k, v in out.items() if k in _SAME}
    if "patch_size" in out:
        out["patch_size"] = tuple(out["patch_size"])
    return out


def sizes_of(shapes: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """What the shapes of the weights (by our names) tell of a configuration: all but the heads and the epsilon."""
    found: dict[str, Any] = {}
    for key, (part, axis) in _TOLD.items():
        if part in shapes and len(shapes[part]) > axis:
            found[key] = int(shapes[part][axis])
    patch, head = shapes.get("patch_embedding.weight", ()), shapes.get("proj_out.weight", ())
    if len(patch) == 5 and len(head) == 2:
        found["patch_size"] = tuple(int(n) for n in patch[2:])
        found["out_channels"] = int(head[0]) // math.prod(found["patch_size"])
    blocks = [int(k.split(".")[1]) for k in shapes if re.match(r"blocks\.\d+\.", k)]
    return {**found, "num_layers": max(blocks) + 1} if blocks else found
