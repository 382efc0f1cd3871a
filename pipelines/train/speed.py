"""Seconds, tokens and FLOPs of a training step."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

PARTS = ("wait", "encode", "forward", "backward", "optimizer")
# dense bfloat16 peak, FLOP/s, from the vendors' data sheets; a device that is not here gets no MFU, not a wrong one
PEAK_FLOPS = {
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA H100 80GB HBM3": 989.4e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H200": 989.4e12,
    "NVIDIA B200": 2250e12,
}


class Clock:
    """Seconds of the parts of one step.

    On a GPU the parts are marked by events on the stream and read once, when the step is over: nothing waits in
    between. Waiting for data is always the host's time.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._host: dict[str, float] = dict.fromkeys(PARTS, 0.0)
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []
        self._began = time.perf_counter()

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        if self._cuda and part != "wait":
            pair = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            pair[0].record()
            yield
            pair[1].record()
            self._events.append((part, *pair))
            return
        began = time.perf_counter()
        yield
        self._host[part] += time.perf_counter() - began

    def read(self) -> tuple[dict[str, float], float]:
        """(seconds by part, seconds of the whole step so far)."""
        if self._cuda:
            torch.cuda.synchronize()
        seconds = dict(self._host)
        for part, begin, end in self._events:
            seconds[part] += begin.elapsed_time(end) / 1000
        return seconds, time.perf_counter() - self._began


def tokens_of(latents: torch.Tensor, source: bool, semantic: int, patch: tuple[int, ...] = (1, 2, 2)) -> int:
    """Length of one sample's token sequence: [source ; semantic ; target]. latents: (B, C, T, H, W)."""
    video = math.prod(s // p for s, p in zip(latents.shape[2:], patch, strict=True))
    return video * (2 if source else 1) + semantic


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


def peak_flops(device: torch.device) -> float | None:
    """Dense bfloat16 peak of a device, None when it is not in the table."""
    return PEAK_FLOPS.get(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
