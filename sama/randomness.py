"""Random numbers that depend on names alone: (seed, purpose) in, the same draw out, on any number of workers.

Everything is drawn on the CPU in float32 at its full shape; callers slice or move it afterwards. No
function here reads or writes a process's or a device's random state.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch


def generator(seed: int, purpose: str) -> torch.Generator:
    """A fresh CPU generator for one purpose, such as "noise" or "timestep".

    Two purposes of one seed, and two seeds of one purpose, are independent: the key is a digest of both.
    """
    digest = hashlib.sha256(f"{int(seed)}/{purpose}".encode()).digest()
    return torch.Generator(device="cpu").manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def normal(seed: int, purpose: str, shape: Sequence[int]) -> torch.Tensor:
    """Standard normal numbers of `shape`, float32, on the CPU."""
    return torch.randn(tuple(shape), generator=generator(seed, purpose), dtype=torch.float32, device="cpu")


def uniform(seed: int, purpose: str) -> float:
    """One number in [0, 1)."""
    return float(torch.rand((), generator=generator(seed, purpose), dtype=torch.float64, device="cpu"))
