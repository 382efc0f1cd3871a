"""The parts of preset `tiny` that come from no hub: shipped files, and encoders with fixed random weights."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sama.presets import TINY_SEED
from sama.randomness import generator


def shipped(name: str) -> Path:
    """Folder of a part that ships with this package: `vae` or `tokenizer`."""
    return Path(str(resources.files("sama"))) / "assets" / "tiny" / name


def random_encoder(cls: Any, config: Any, name: str) -> nn.Module:
    """A model whose weights follow from TINY_SEED and their names alone.

    Scaled so that signals keep a deviation near 1 through the layers: what a trained encoder also has.
    """
    with torch.random.fork_rng(devices=[]):  # the construction draws numbers that are replaced below
        model = cls(config)
    state = {}
    for key, parameter in model.state_dict().items():
        draw = torch.randn(parameter.shape, generator=generator(TINY_SEED, f"{name}/{key}"))
        if "norm" in key:
            draw = torch.ones_like(draw) if key.endswith("weight") else torch.zeros_like(draw)
        elif key.endswith("bias"):
            draw = torch.zeros_like(draw)
        elif key.endswith("SelfAttention.q.weight"):  # T5 does not divide attention logits by sqrt(d)
            draw *= (parameter.shape[1] * config.d_kv) ** -0.5
        elif key.endswith("position_embedding.weight"):  # small beside the content, as what differs must show
            draw *= 0.1
        elif "embed_tokens" not in key and not key.endswith(("shared.weight", "probe")):
            draw *= parameter[0].numel() ** -0.5
        state[key] = draw
    if "shared.weight" in state and "encoder.embed_tokens.weight" in state:
        state["encoder.embed_tokens.weight"] = state["shared.weight"]
    model.load_state_dict(state)
    return model
