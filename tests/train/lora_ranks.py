"""parallel_ranks.py with adapters on its model: lora_ranks.py CASES.json OUT RANK RANKS PORT"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch

from sama.lora import add_lora
from sama.randomness import normal
from sama.transformer import SamaTransformer
from tests.train import parallel_ranks

PLAIN = parallel_ranks.model


def model(dtype: torch.dtype = torch.float32) -> SamaTransformer:
    """The toy with adapters that have left their start, where B is zero and A gets no gradient."""
    found = add_lora(PLAIN(), rank=3, alpha=6.0, targets=["to_q", "to_v", "to_out.0", "ffn.net.2"])
    with torch.no_grad():
        for name, parameter in found.named_parameters():
            if ".lora_B." in name:
                parameter.copy_(normal(2, name, parameter.shape) * 0.2)
    return found.train().to(dtype)


def run(what: Callable[..., object], *arguments: object) -> object:
    """A function of parallel_ranks on the model with adapters."""
    parallel_ranks.model = model
    try:
        return what(*arguments)
    finally:
        parallel_ranks.model = PLAIN


if __name__ == "__main__":
    run(parallel_ranks.main, *sys.argv[1:])
