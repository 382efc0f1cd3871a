"""The batch plan: a pure function from a step to its global batch, the same on any machine and for any restart."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.mixture import build, order, saved
from pipelines.mixture.batch import GlobalBatch, HeldOut, Slot
from pipelines.mixture.build import Compiled, Group
from pipelines.mixture.mixture import EDIT, Mixture, VideoStream, load_mixture
from pipelines.mixture.order import Interleave
from sama.video import Bucket

_TASK_BLOCK = 1000  # ratios of pretext tasks are kept exactly within at most this many draws


@dataclass(frozen=True)
class _Stream:
    """Groups of one stream as nested interleaves: steps to buckets, slots of a bucket to groups."""

    buckets: list[Bucket]
    turns: Interleave
    groups: list[list[int]]  # group numbers by bucket
    shares: list[Interleave]


class BatchPlan:
    """`plan[step]` is the global batch of a step; `plan.sample(row)` says where a slot's bytes lie."""

    def __init__(self, compiled: Compiled) -> None:
        self._compiled, self.facts = compiled, compiled.facts
        self.mixture = Mixture.model_validate(compiled.facts["mixture"])
        self.groups = [Group(**{**g, "bucket": Bucket(*g["bucket"])}) for g in compiled.facts["groups"]]
        self._rows, self._text, self._heldout = compiled.rows, compiled.text, compiled.heldout
        self._active = self.mixture.active()
        self._schedule = Interleave([getattr(self.mixture.schedule, s) for s in self._active])
        self._streams = {s: self._nest(s) for s in self._active}
        self._task_edges = {s: np.cumsum(np.asarray(self._task_weights(s), np.int64)) for s in self._active}
        seed = self.mixture.seed
        self._bases = [
            order.key_of(seed, "order", g.stream, g.source, g.dataset, *_shape(g.bucket)) for g in self.groups
        ]

    @classmethod
    def from_file(cls, mixture_yaml: str, data: str, overrides: list[str] | tuple[str, ...] = ()) -> BatchPlan:
        """Compile a mixture file (or shipped recipe) over the data root `data`. InputError says what is wrong."""
        return cls.from_mixture(load_mixture(mixture_yaml, overrides), data)

    @classmethod
    def from_mixture(cls, mixture: Mixture, data: str) -> BatchPlan:
        return cls(build.compile_plan(data, mixture))

    @classmethod
    def open(cls, folder: str) -> BatchPlan:
        """A saved plan, memory-mapped (a second, whatever its size)."""
        return cls(saved.read(folder))

    def save(self, folder: str) -> str:
        """Write the plan for workers to open; its folder. InputError where another plan lies."""
        return saved.write(self._compiled, folder)

    @property
    def digest(self) -> str:
        """sha256 (hex) of everything that decides what the steps hold."""
        return self.facts["digest"]

    @property
    def steps(self) -> int:
        return self.mixture.steps

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[GlobalBatch]:
        return (self[step] for step in range(self.steps))

    def place(self, step: int) -> tuple[str, Bucket]:
        """Stream and shape of a step, without its slots."""
        stream, number, _ = self._locate(step)
        return stream, self._streams[stream].buckets[number]

    def steps_of(self, stream: str, stop: int) -> int:
        """How many of the steps 0..stop-1 are of this stream."""
        return self._schedule.count(self._active.index(stream), stop)

    def __getitem__(self, step: int) -> GlobalBatch:
        """The global batch of a step. IndexError outside 0..steps-1."""
        stream, number, turn = self._locate(step)
        inside = self._streams[stream]
        settings = self.mixture.stream(stream)
        positions = turn * settings.global_batch + np.arange(settings.global_batch)
        leaves, draws = inside.shares[number].locate(positions)
        groups = np.asarray(inside.groups[number])[leaves]
        rows, epochs = self._draw(groups, draws)
        tasks = self._tasks(stream, groups, draws, rows)
        taken = self._rows.select(["key", "dataset", "length"]).take(pa.array(rows))
        keys, datasets = taken["key"].to_pylist(), taken["dataset"].cast(pa.string()).to_pylist()
        spare = (taken["length"].to_numpy() - inside.buckets[number].frames).clip(0)
        seeds = [order.key_of(self.mixture.seed, step, i) for i in range(len(rows))]
        without_text = order.uniform(np.asarray(seeds), "drop_instruction") < self.mixture.instruction_dropout
        without_source = order.uniform(np.asarray(seeds), "drop_source") < self.mixture.source_dropout
        columns = (
            rows.tolist(), keys, datasets, tasks, self._starts(stream, seeds, spare), seeds, without_text.tolist(),
            without_source.tolist(), epochs.tolist(),
        )  # fmt: skip
        slots = [Slot(*values) for values in zip(*columns, strict=True)]
        return GlobalBatch(step, stream, inside.buckets[number], slots)

    def sample(self, row: int) -> dict[str, Any]:
        """Everything the plan knows of a row: key, dataset, kind, category, text, and per side uri, offset, size,
        sha256, frames and stride (see windows.file_frames)."""
        return self._rows.slice(row, 1).to_pylist()[0] | self._text.slice(row, 1).to_pylist()[0]

    def substitute(self, slot: Slot, attempt: int) -> int:
        """Another row of the same source, shape and kind: what to read when a slot's media does not decode."""
        group = next(g for g in self.groups if g.first <= slot.sample < g.first + g.size)
        kind = self._rows["kind"][slot.sample].as_py()
        start = order.key_of(slot.seed, "substitute", attempt) % group.size
        for step in range(group.size):
            row = group.first + (start + step) % group.size
            if row != slot.sample and self._rows["kind"][row].as_py() == kind:
                return row
        return slot.sample

    def find(self, wanted: str) -> list[tuple[int, int, int]]:
        """(step, slot, epoch) of every time a sample is trained on, in step order.

        wanted: a key, a source_group or a source_url.
        """
        mask, seen = np.zeros(self._rows.num_rows, bool), []
        for column in (self._rows["key"], self._rows["source_group"].cast(pa.string()), self._text["source_url"]):
            mask |= pc.fill_null(pc.equal(column, wanted), False).to_numpy()
        for row in np.flatnonzero(mask).tolist():
            number = next(i for i, g in enumerate(self.groups) if g.first <= row < g.first + g.size)
            seen += self._seen(number, row - self.groups[number].first)
        return sorted(seen)

    def summary(self) -> dict[str, Any]:
        """What will be trained, counted: see `summary.summarise`."""
        from pipelines.mixture.summary import summarise

        return summarise(self)

    @cached_property
    def heldout(self) -> list[HeldOut]:
        """Held-out samples of the plan's sources; any beginning of the list is balanced over the sources.

        text_to_video samples take the mixture's pretext tasks in turn, windows start at 0, nothing is dropped.
        """
        found: list[tuple[int, int, HeldOut]] = []
        counts: dict[tuple[str, int], int] = {}
        for row in self._heldout.to_pylist():
            source = (row["stream"], row.pop("source_number"))
            turn = counts[source] = counts.get(source, -1) + 1
            stream, sizes = row.pop("stream"), [row.pop(f"bucket_{n}") for n in ("frames", "height", "width")]
            names = self._task_names(stream)
            task = names[turn % len(names)] if row["kind"] == "text_to_video" else EDIT
            seed = order.key_of(self.mixture.seed, "heldout", row["key"])
            slot = Slot(-1, row["key"], row["dataset"], task, 0, seed, False, False, 0)
            found.append((turn, len(found), HeldOut(row, stream, Bucket(*sizes), slot)))
        return [item for _, _, item in sorted(found, key=lambda f: f[:2])]

    def rows_of(self, number: int, columns: list[str]) -> pa.Table:
        """Columns of one group's rows."""
        group = self.groups[number]
        return self._rows.select(columns).slice(group.first, group.size)

    def draws(self) -> list[int]:
        """How many samples each group gives over the whole run."""
        total = [0] * len(self.groups)
        for leaf, name in enumerate(self._active):
            inside = self._streams[name]
            turns = self._schedule.count(leaf, self.steps)
            for number, members in enumerate(inside.groups):
                slots = inside.turns.count(number, turns) * self.mixture.stream(name).global_batch
                for i, group in enumerate(members):
                    total[group] = inside.shares[number].count(i, slots)
        return total

    def bucket_steps(self) -> dict[str, dict[Bucket, int]]:
        """Steps of each stream at each shape."""
        found: dict[str, dict[Bucket, int]] = {}
        for leaf, name in enumerate(self._active):
            inside, turns = self._streams[name], self._schedule.count(leaf, self.steps)
            found[name] = {b: inside.turns.count(i, turns) for i, b in enumerate(inside.buckets)}
        return found

    def _nest(self, stream: str) -> _Stream:
        mine = [(i, g) for i, g in enumerate(self.groups) if g.stream == stream]
        buckets = sorted({g.bucket for _, g in mine})
        groups = [[i for i, g in mine if g.bucket == b] for b in buckets]
        weights = [[self.groups[i].weight for i in members] for members in groups]
        return _Stream(buckets, Interleave([sum(w) for w in weights]), groups, [Interleave(w) for w in weights])

    def _locate(self, step: int) -> tuple[str, int, int]:
        """Stream, number of its bucket, and how many earlier steps that bucket had."""
        if not 0 <= step < self.steps:
            raise IndexError(f"step {step} is not in 0..{self.steps - 1}")
        leaf, turn = self._schedule.locate(step)
        stream = self._active[int(leaf[0])]
        number, ordinal = self._streams[stream].turns.locate(turn)
        return stream, int(number[0]), int(ordinal[0])

    def _draw(self, groups: np.ndarray, draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Row and epoch of each draw: every epoch of a group is a new permutation of its rows."""
        rows, epochs = np.zeros_like(draws), np.zeros_like(draws)
        for number in np.unique(groups).tolist():
            group, at = self.groups[number], groups == number
            epochs[at], positions = np.divmod(draws[at], group.size)
            keys = order.epoch_keys(self._bases[number], epochs[at])
            rows[at] = group.first + order.permute(positions, group.size, keys)
        return rows, epochs

    def _task_names(self, stream: str) -> list[str]:
        settings = self.mixture.stream(stream)
        return sorted(settings.pretext) if isinstance(settings, VideoStream) and settings.pretext else ["none"]

    def _task_weights(self, stream: str) -> list[int]:
        settings = self.mixture.stream(stream)
        ratios = settings.pretext if isinstance(settings, VideoStream) else {}
        return _block([ratios.get(n, 1.0) for n in self._task_names(stream)])

    def _tasks(self, stream: str, groups: np.ndarray, draws: np.ndarray, rows: np.ndarray) -> list[str]:
        """Task of each draw: every block of draws of a group holds the ratios exactly, in a random order."""
        pretext = pc.equal(self._rows["kind"].take(pa.array(rows)).cast(pa.string()), "text_to_video").to_numpy()
        tasks = np.full(len(rows), EDIT, object)
        if not pretext.any():
            return tasks.tolist()
        names, edges = self._task_names(stream), self._task_edges[stream]
        for number in np.unique(groups[pretext]).tolist():
            at = (groups == number) & pretext
            block, position = np.divmod(draws[at], int(edges[-1]))
            keys = order.epoch_keys(order.key_of(self._bases[number], "tasks"), block)
            dealt = order.permute(position, int(edges[-1]), keys)
            tasks[at] = np.asarray(names, object)[np.searchsorted(edges, dealt, side="right")]
        return tasks.tolist()

    def _starts(self, stream: str, seeds: list[int], spare: np.ndarray) -> list[int]:
        settings = self.mixture.stream(stream)
        if not isinstance(settings, VideoStream) or settings.window == "head":
            return [0] * len(seeds)
        return (order.uniform(np.asarray(seeds), "window") * (spare + 1)).astype(np.int64).tolist()

    def _seen(self, number: int, position: int) -> list[tuple[int, int, int]]:
        group = self.groups[number]
        leaf, inside = self._active.index(group.stream), self._streams[group.stream]
        at = inside.buckets.index(group.bucket)
        member, batch = inside.groups[at].index(number), self.mixture.stream(group.stream).global_batch
        found, total = [], self.draws()[number]
        for epoch in range(-(-total // group.size)):
            keys = order.epoch_keys(self._bases[number], np.asarray([epoch]))
            draw = epoch * group.size
            draw += int(order.permute(np.asarray([position]), group.size, keys, inverse=True)[0])
            if draw < total:
                turn, slot = divmod(inside.shares[at].position(member, draw), batch)
                found.append((self._schedule.position(leaf, inside.turns.position(at, turn)), slot, epoch))
        return found


def heldout(plan: BatchPlan | Mixture, root: str | None = None) -> list[HeldOut]:
    """Held-out samples of a plan, or of a mixture over a data root."""
    if isinstance(plan, Mixture):
        if root is None:
            raise ValueError("a mixture has held-out samples only over a data root")
        plan = BatchPlan.from_mixture(plan, root)
    return plan.heldout


def _block(ratios: list[float]) -> list[int]:
    whole = order.integer_weights(ratios)
    if sum(whole) <= _TASK_BLOCK:
        return whole
    return [max(1, round(r * _TASK_BLOCK / sum(ratios))) for r in ratios]


def _shape(bucket: Bucket) -> tuple[int, int, int]:
    return bucket.frames, bucket.height, bucket.width
