"""What a plan says of one optimizer step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sama.video import Bucket


@dataclass(frozen=True)
class Slot:
    """One sample of a global batch. `sample` is a row of the plan, `start` the first frame of its window."""

    sample: int
    key: str
    dataset: str
    task: str  # edit, or a pretext task
    start: int
    seed: int  # 63 bits: every random draw of this slot is keyed by it
    drop_instruction: bool
    drop_source: bool
    epoch: int


@dataclass(frozen=True)
class GlobalBatch:
    """One optimizer step: one stream, one shape."""

    step: int
    stream: str
    bucket: Bucket
    slots: list[Slot]


@dataclass(frozen=True)
class HeldOut:
    """A sample that no plan trains on, with all that a slot has. `sample` is as `BatchPlan.sample` gives it."""

    sample: dict[str, Any]
    stream: str
    bucket: Bucket
    slot: Slot
