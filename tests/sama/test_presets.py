"""Sizes of the presets: parameter counts, sequence lengths, and agreement with the backbones' own files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from sama.checkpoints import transformer_config
from sama.errors import InputError
from sama.presets import PRESETS, get_preset
from sama.transformer import SamaTransformer

# parameters of the text-to-video backbones' released transformers
BACKBONES = {
    "wan2.1-t2v-1.3b": 1_418_996_800,
    "wan2.2-ti2v-5b": 4_999_787_712,
    "wan2.1-t2v-14b": 14_288_491_584,
}


def counted(name: str) -> tuple[int, int]:
    """Parameters by hand: (backbone, extra modules)."""
    c = PRESETS[name].transformer
    d, ffn, text, freq = PRESETS[name].dim, c["ffn_dim"], c["text_dim"], c["freq_dim"]
    attention = 4 * (d * d + d) + 2 * d
    block = 2 * attention + 2 * d + (2 * d * ffn + ffn + d) + 6 * d
    patch = 4 * c["in_channels"] * d + d
    embedders = (text * d + d) + (d * d + d) + (freq * d + d) + (d * d + d) + (d * 6 * d + 6 * d)
    head = d * 4 * c["out_channels"] + 4 * c["out_channels"] + 2 * d
    s, h = c["semantic_dim"], c["semantic_hidden_dim"]
    extra = 3 * d + (2 * s + s * h + h + h * d + d) + (2 * d + d * s + s)
    return c["num_layers"] * block + patch + embedders + head, extra


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_parameter_count_on_the_meta_device(name: str) -> None:
    with torch.device("meta"):
        model = SamaTransformer(**PRESETS[name].transformer)
    backbone, extra = counted(name)
    assert sum(p.numel() for p in model.parameters()) == backbone + extra
    if name in BACKBONES:
        assert backbone == BACKBONES[name]


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("wan2.1-t2v-1.3b", "wan2.1_t2v_1.3b"),
        ("wan2.2-ti2v-5b", "wan2.2_ti2v_5b"),
        ("wan2.1-t2v-14b", "wan2.1_t2v_14b"),
    ],
)
def test_sizes_are_the_backbones_own(shared: Path, name: str, file: str) -> None:
    theirs = transformer_config(json.loads((shared / "wan_configs" / f"{file}.json").read_text()))
    assert {k: PRESETS[name].transformer.get(k, 1e-6) for k in theirs} == theirs


def test_sequence_lengths() -> None:
    preset = get_preset("wan2.1-t2v-14b")
    assert preset.latent_shape(81, 480, 832) == (16, 21, 60, 104)
    assert preset.tokens(81, 480, 832) == 2 * 21 * 30 * 52 + 65
    assert preset.tokens(1, 480, 832, source=False, anchors=0) == 30 * 52
    assert get_preset("wan2.2-ti2v-5b").latent_shape(81, 480, 832) == (48, 21, 30, 52)
    assert get_preset("tiny").tokens(9, 64, 64) == 2 * 3 * 4 * 4 + 65


def test_sizes_that_do_not_fit() -> None:
    preset = get_preset("tiny")
    with pytest.raises(InputError, match="a clip of 8 frames cannot be encoded"):
        preset.latent_shape(8, 64, 64)
    with pytest.raises(InputError, match="a frame of 64x72 cannot be encoded: its sides must be multiples of 16"):
        preset.latent_shape(9, 64, 72)


def test_every_bucket_side_fits_its_model() -> None:
    for preset in PRESETS.values():
        preset.latent_shape(5, preset.multiple, 2 * preset.multiple)


def test_names() -> None:
    assert get_preset(get_preset("tiny")) is PRESETS["tiny"]
    with pytest.raises(InputError, match=r"did you mean wan2\.1-t2v-14b\?"):
        get_preset("wan2.1-t2v-14")
    with pytest.raises(InputError, match="there are tiny, "):
        get_preset("???")
    assert [p.name for p in PRESETS.values() if p.random] == ["tiny"]
    for preset in PRESETS.values():
        assert set(preset.components) == {"vae", "text_encoder", "tokenizer", "transformer", "vision"}
        assert all(c.licence for c in preset.components.values())
