"""What is known of devices, and the FLOPs of the transformer. Imports nothing heavy."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any

from sama.errors import InputError

GB = 1e9


@dataclass(frozen=True)
class Device:
    """peak: dense bfloat16 FLOP/s from the vendor's data sheet; memory: bytes a program can have."""

    name: str
    peak: float
    memory: float


# by the name that CUDA reports; memory is what the driver leaves, not what the box says
DEVICES = {
    d.name: d
    for d in (
        Device("NVIDIA A100-SXM4-40GB", 312e12, 39.4 * 2**30),
        Device("NVIDIA A100-SXM4-80GB", 312e12, 79.1 * 2**30),
        Device("NVIDIA A100 80GB PCIe", 312e12, 79.1 * 2**30),
        Device("NVIDIA H100 80GB HBM3", 989.4e12, 79.1 * 2**30),
        Device("NVIDIA H100 PCIe", 756e12, 79.1 * 2**30),
        Device("NVIDIA H200", 989.4e12, 139.8 * 2**30),
        Device("NVIDIA B200", 2250e12, 178.4 * 2**30),
    )
}
SHORT = {
    "a100-40": "NVIDIA A100-SXM4-40GB",
    "a100": "NVIDIA A100-SXM4-80GB",
    "h100": "NVIDIA H100 80GB HBM3",
    "h200": "NVIDIA H200",
    "b200": "NVIDIA B200",
}


def find(name: str) -> Device:
    """A device by CUDA's name or a short one (h200). InputError names the known ones."""
    full = SHORT.get(name.lower(), name)
    if full in DEVICES:
        return DEVICES[full]
    close = difflib.get_close_matches(name.lower(), SHORT, n=1)
    hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(SHORT)}"
    raise InputError(f"{name} is not a device in the table; {hint}")


def forward_flops(config: Any, tokens: int, text_tokens: int) -> float:
    """FLOPs of the transformer's forward pass for one sample (a multiply-add counts two).

    config: the transformer's (num_attention_heads, attention_head_dim, num_layers, ffn_dim). Counted: the matrix
    products of the blocks, attention included; embeddings, norms and heads are below a percent.
    """
    dim = config.num_attention_heads * config.attention_head_dim
    projections = 2 * tokens * (4 * dim * dim + 2 * dim * dim + 2 * dim * config.ffn_dim)  # self, cross q and o, ffn
    text = 2 * text_tokens * 2 * dim * dim
    scores = 4 * tokens * tokens * dim + 4 * tokens * text_tokens * dim
    return float(config.num_layers * (projections + text + scores))
