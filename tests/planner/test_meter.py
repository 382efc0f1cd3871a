"""The meter against bytes and FLOPs that a person can count."""

from __future__ import annotations

import torch
from torch import nn

from pipelines.planner import meter


def test_a_chain_of_products_keeps_its_inputs() -> None:
    with torch.device("meta"):
        first, second = nn.Linear(64, 256, bias=False), nn.Linear(256, 32, bias=False)
        x = torch.empty(10, 64)
    there = [*first.parameters(), *second.parameters(), x]
    read = meter.memory(lambda: second(torch.relu(first(x))), there)
    assert read.kept == 4 * (10 * 256 + 10 * 32)  # relu's result, needed by relu and the second layer; the output
    assert read.peak == 4 * (10 * 256 * 2 + 10 * 32) or read.peak == 4 * 10 * 256 * 2


def test_what_was_there_before_is_not_counted_and_what_dies_is_given_back() -> None:
    x = torch.empty(1000, device="meta")

    def run() -> torch.Tensor:
        for _ in range(5):
            y = x * 2.0
        return y[:10]

    read = meter.memory(run, [x])
    assert read.kept == 4000  # a slice holds the whole
    assert read.peak <= 8000


def test_attention_does_not_keep_its_scores() -> None:
    q, k, v = (torch.empty(1, 4, 1000, 32, device="meta", requires_grad=True) for _ in range(3))
    read = meter.memory(lambda: nn.functional.scaled_dot_product_attention(q, k, v), [q, k, v])
    assert read.kept == 4 * 4 * 1000 * (32 + 1)
    assert meter.flops(lambda: nn.functional.scaled_dot_product_attention(q, k, v)) == 4 * 4 * 1000 * 1000 * 32


def test_attention_is_put_back() -> None:
    real = nn.functional.scaled_dot_product_attention
    try:
        with meter.fused_attention():
            raise ValueError
    except ValueError:
        pass
    assert nn.functional.scaled_dot_product_attention is real


def test_convolutions_and_products_are_counted() -> None:
    conv = nn.Conv2d(3, 8, 3, padding=1, bias=False, device="meta")
    x = torch.empty(2, 3, 16, 16, device="meta")
    assert meter.flops(lambda: conv(x)) == 2 * 2 * 8 * 16 * 16 * 3 * 9
