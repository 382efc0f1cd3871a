"""How a run is spread over devices, and what of a global batch that wastes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sama.errors import InputError

if TYPE_CHECKING:
    from pipelines.planner.model import Lora


@dataclass(frozen=True)
class Layout:
    """workers: devices in all; sequence: devices that share a sample; replicas: copies of the sharded state (HSDP).

    lora: None trains all weights. text_live: the text encoder lives on the training devices. offload: states and
    optimizer on the host. checkpointing: none, block or selective.
    """

    workers: int
    sequence: int = 1
    replicas: int = 1
    precision: str = "bfloat16"
    checkpointing: str = "block"
    eight_bit: bool = False
    ema_on_cpu: bool = False
    offload: bool = False
    lora: Lora | None = None
    text_live: bool = True
    per_node: int = 8

    @property
    def shards(self) -> int:
        """Over how many devices parameters, gradients, optimizer and EMA are divided."""
        return self.workers // self.replicas

    @property
    def data_ranks(self) -> int:
        return self.workers // self.sequence

    def check(self, heads: int) -> None:
        """InputError for a layout that cannot be built."""
        check_heads(heads, self.sequence)
        check_layout(self.workers, self.replicas, self.sequence)

    def describe(self) -> str:
        """The layout as the settings that make it."""
        said = [f"train.workers={self.workers}"]
        said += [f"train.sequence_parallel={self.sequence}"] if self.sequence > 1 else []
        said += [f"train.hsdp_replicas={self.replicas}"] if self.replicas > 1 else []
        said += [f"train.activation_checkpointing={self.checkpointing}"]
        said += ["train.optimizer=adamw8bit"] if self.eight_bit else []
        said += ["train.ema_device=cpu"] if self.ema_on_cpu else []
        said += ["train.cpu_offload=true"] if self.offload else []
        said += [] if self.text_live else ["text.mode=cached"]
        return " ".join(said)


def check_layout(workers: int, replicas: int, sequence: int) -> None:
    """InputError unless the workers divide into replicas of whole sequence groups."""
    if workers % sequence:
        raise InputError(
            f"{workers} training workers do not form groups of train.sequence_parallel = {sequence}; "
            f"possible are {_listed(d for d in range(1, workers + 1) if workers % d == 0)}"
        )
    if (workers // sequence) % replicas:
        groups = workers // sequence
        raise InputError(
            f"train.hsdp_replicas = {replicas} does not divide the {groups} data ranks; "
            f"possible are {_listed(d for d in range(1, groups + 1) if groups % d == 0)}"
        )


def check_heads(heads: int, degree: int) -> None:
    """InputError unless every member gets the same number of attention heads."""
    if heads % degree:
        raise InputError(
            f"train.sequence_parallel = {degree} does not divide the model's {heads} attention heads; "
            f"possible are {_listed(d for d in range(1, heads + 1) if heads % d == 0)}"
        )


@dataclass(frozen=True)
class Rounds:
    """How a global batch is cut: micro_steps per rank, and the share of slots that are filler."""

    micro_steps: int
    wasted: float


def rounds(global_batch: int, data_ranks: int, micro_batch: int) -> Rounds:
    """Micro-steps of a global batch, and its filler: 112 clips on 64 ranks are 2 rounds, an eighth of them filler."""
    micro_steps = math.ceil(global_batch / (data_ranks * micro_batch))
    return Rounds(micro_steps, 1 - global_batch / (micro_steps * data_ranks * micro_batch))


def neighbours(layout: Layout, heads: int) -> list[Layout]:
    """Layouts on the same devices or more that need less memory per device, the cheapest change first."""
    found: list[Layout] = []
    current = layout
    if current.checkpointing == "none":
        found.append(replace(layout, checkpointing="selective"))
    current = replace(current, checkpointing="block")
    found.append(current)
    if current.text_live:
        current = replace(current, text_live=False)
        found.append(current)
    if not current.ema_on_cpu:
        found.append(replace(current, ema_on_cpu=True))
    if current.replicas > 1:
        current = replace(current, replicas=1)
        found.append(current)
    degrees = [d for d in (2, 4, 8) if d > layout.sequence and heads % d == 0 and layout.workers % d == 0]
    for degree in degrees:
        found.append(replace(current, sequence=degree))
    if degrees:
        current = replace(current, sequence=degrees[-1])
    if not current.eight_bit and current.lora is None:
        current = replace(current, eight_bit=True)
        found.append(current)
    current = replace(current, ema_on_cpu=True)
    found.append(current)
    found.append(replace(current, offload=True))
    for times in (2, 4, 8, 16):
        more = replace(current, workers=layout.workers * times, eight_bit=layout.eight_bit)
        found.append(replace(more, ema_on_cpu=layout.ema_on_cpu))
    return [f for f in dict.fromkeys(found) if f != layout]


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(str(n) for n in numbers)
