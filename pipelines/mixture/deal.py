"""Who gets which slot: steps dealt to streams and buckets, slots of a bucket to groups, all in closed form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.mixture.build import Group
from pipelines.mixture.mixture import Mixture
from pipelines.mixture.order import Interleave
from sama.video import Bucket


@dataclass(frozen=True)
class _Stream:
    """Groups of one stream as nested interleaves: steps to buckets, slots of a bucket to groups."""

    buckets: list[Bucket]
    turns: Interleave
    groups: list[list[int]]  # group numbers by bucket
    shares: list[Interleave]


class Deal:
    """Steps and slots of a mixture over its groups, and the way back."""

    def __init__(self, mixture: Mixture, groups: Sequence[Group]) -> None:
        self.steps, self._groups = mixture.steps, groups
        self._active = mixture.active()
        self._sizes = {s: mixture.stream(s).global_batch for s in self._active}
        self._schedule = Interleave([getattr(mixture.schedule, s) for s in self._active])
        self._streams = {s: self._nest(s) for s in self._active}

    def place(self, step: int) -> tuple[str, Bucket]:
        """Stream and shape of a step. IndexError outside 0..steps-1."""
        stream, number, _ = self._locate(step)
        return stream, self._streams[stream].buckets[number]

    def slots(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Group of each slot of a step, and how many samples the group gave before (int64)."""
        stream, number, turn = self._locate(step)
        inside, size = self._streams[stream], self._sizes[stream]
        leaves, draws = inside.shares[number].locate(turn * size + np.arange(size))
        return np.asarray(inside.groups[number])[leaves], draws

    def position(self, group: int, draw: int) -> tuple[int, int]:
        """The inverse of `slots`: step and slot of a group's draw."""
        found = self._groups[group]
        inside = self._streams[found.stream]
        at = inside.buckets.index(found.bucket)
        turn, slot = divmod(inside.shares[at].position(inside.groups[at].index(group), draw), self._sizes[found.stream])
        return self._schedule.position(self._active.index(found.stream), inside.turns.position(at, turn)), slot

    def steps_of(self, stream: str, stop: int) -> int:
        """How many of the steps 0..stop-1 are of this stream."""
        return self._schedule.count(self._active.index(stream), stop)

    def draws(self) -> list[int]:
        """How many samples each group gives over the whole run."""
        total = [0] * len(self._groups)
        for name, inside in self._streams.items():
            turns = self.steps_of(name, self.steps)
            for number, members in enumerate(inside.groups):
                slots = inside.turns.count(number, turns) * self._sizes[name]
                for i, group in enumerate(members):
                    total[group] = inside.shares[number].count(i, slots)
        return total

    def bucket_steps(self) -> dict[str, dict[Bucket, int]]:
        """Steps of each stream at each shape."""
        found: dict[str, dict[Bucket, int]] = {}
        for name, inside in self._streams.items():
            turns = self.steps_of(name, self.steps)
            found[name] = {b: inside.turns.count(i, turns) for i, b in enumerate(inside.buckets)}
        return found

    def _locate(self, step: int) -> tuple[str, int, int]:
        """Stream, number of its bucket, and how many earlier steps that bucket had."""
        if not 0 <= step < self.steps:
            raise IndexError(f"step {step} is not in 0..{self.steps - 1}")
        leaf, turn = self._schedule.locate(step)
        stream = self._active[int(leaf[0])]
        number, ordinal = self._streams[stream].turns.locate(turn)
        return stream, int(number[0]), int(ordinal[0])

    def _nest(self, stream: str) -> _Stream:
        mine = [(i, g) for i, g in enumerate(self._groups) if g.stream == stream]
        buckets = sorted({g.bucket for _, g in mine})
        groups = [[i for i, g in mine if g.bucket == b] for b in buckets]
        weights = [[self._groups[i].weight for i in members] for members in groups]
        return _Stream(buckets, Interleave([sum(w) for w in weights]), groups, [Interleave(w) for w in weights])
