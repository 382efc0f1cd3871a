"""Seconds, tokens and FLOPs of a training step."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from pipelines.planner.devices import DEVICES

PARTS = ("wait", "encode", "forward", "backward", "optimizer")


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


def peak_flops(device: torch.device) -> float | None:
    """Dense bfloat16 peak of a device, None when it is not in the table: no MFU rather than a wrong one."""
    found = DEVICES.get(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    return None if found is None else found.peak
