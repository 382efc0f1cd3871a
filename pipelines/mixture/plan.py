"""The batch plan: a pure function from a step to its global batch, the same on any machine and for any restart."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.mixture import build, order, saved
from pipelines.mixture.batch import GlobalBatch, HeldOut, Slot
from pipelines.mixture.build import Compiled, Group
from pipelines.mixture.deal import Deal
from pipelines.mixture.mixture import EDIT, Mixture, VideoStream, load_mixture
from pipelines.mixture.store import take
from sama.video import Bucket

_TASK_BLOCK = 1000  # ratios of pretext tasks are kept exactly within at most this many draws


class BatchPlan:
    """`plan[step]` is the global batch of a step; `plan.sample(row)` says where a slot's bytes lie."""

    def __init__(self, compiled: Compiled) -> None:
        self._compiled, self.facts = compiled, compiled.facts
        self.mixture = Mixture.model_validate(compiled.facts["mixture"])
        self.groups = [Group(**{**g, "bucket": Bucket(*g["bucket"])}) for g in compiled.facts["groups"]]
        self._rows = compiled.rows
        self._last: GlobalBatch | None = None
        self._active = self.mixture.active()
        self._deal = Deal(self.mixture, self.groups)
        self._task_edges = {s: np.cumsum(np.asarray(self._task_weights(s), np.int64)) for s in self._active}
        seed = self.mixture.seed
        bases = [order.key_of(seed, "order", g.stream, g.source, g.dataset, *_shape(g.bucket)) for g in self.groups]
        self._bases = np.asarray(bases, np.uint64)
        self._task_bases = np.asarray([order.key_of(b, "tasks") for b in bases], np.uint64)
        self._firsts = np.asarray([g.first for g in self.groups], np.int64)
        self._sizes = np.asarray([g.size for g in self.groups], np.int64)
        words = self._rows.words["kind"]
        self._pretext_kind = words.index("text_to_video") if "text_to_video" in words else -2  # -1: null

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
        return self._deal.place(step)

    def steps_of(self, stream: str, stop: int) -> int:
        """How many of the steps 0..stop-1 are of this stream."""
        return self._deal.steps_of(stream, stop)

    def draws(self) -> list[int]:
        """How many samples each group gives over the whole run."""
        return self._deal.draws()

    def bucket_steps(self) -> dict[str, dict[Bucket, int]]:
        """Steps of each stream at each shape."""
        return self._deal.bucket_steps()

    def __getitem__(self, step: int) -> GlobalBatch:
        """The global batch of a step. IndexError outside 0..steps-1."""
        last = self._last
        if last is None or last.step != step:  # the micro-batches of one step ask for it one after the other
            last = self._last = self._batch(step)
        return last

    def _batch(self, step: int) -> GlobalBatch:
        (stream, bucket), (groups, draws) = self.place(step), self._deal.slots(step)
        rows, epochs = self._draw(groups, draws)
        records = self._rows.records[self._rows.order[rows]]
        tasks = self._tasks(stream, groups, draws, records["kind"])
        seeds = order.keys_of((self.mixture.seed, step), len(rows))
        drawn = np.asarray(seeds)
        columns = (
            rows.tolist(), self._rows.keys(records), self._rows.column("dataset", records), tasks,
            self._starts(stream, drawn, (records["length"] - bucket.frames).clip(0)), seeds,
            (order.uniform(drawn, "drop_instruction") < self.mixture.instruction_dropout).tolist(),
            (order.uniform(drawn, "drop_source") < self.mixture.source_dropout).tolist(), epochs.tolist(),
        )  # fmt: skip
        return GlobalBatch(step, stream, bucket, [Slot(*values) for values in zip(*columns, strict=True)])

    def rows_at(self, step: int) -> np.ndarray:
        """Rows of a step's slots alone (int64), for whoever counts: a fraction of the cost of the global batch."""
        return self._draw(*self._deal.slots(step))[0]

    def sample(self, row: int) -> dict[str, Any]:
        """Everything the plan knows of a row: key, dataset, kind, category, text, and per side uri, offset, size,
        sha256, frames and stride (see windows.file_frames)."""
        return self._rows.row(int(self._rows.order[row]))

    def substitute(self, slot: Slot, attempt: int) -> int:
        """Another row of the same source, shape and kind: what to read when a slot's media does not decode."""
        group = self.groups[self._group_of(slot.sample)]
        kind = self._kind(slot.sample)
        start = order.key_of(slot.seed, "substitute", attempt) % group.size
        for step in range(group.size):
            row = group.first + (start + step) % group.size
            if row != slot.sample and self._kind(row) == kind:
                return row
        return slot.sample

    def find(self, wanted: str) -> list[tuple[int, int, int]]:
        """(step, slot, epoch) of every time a sample is trained on, in step order.

        wanted: a key, a source_group or a source_url.
        """
        return sorted(seen for row in self.rows_found(wanted) for seen in self.seen(row))

    def rows_found(self, wanted: str) -> list[int]:
        """Rows of the plan with this key, source_group or source_url."""
        places = self._rows.find(wanted)
        return np.flatnonzero(np.isin(self._rows.order, places)).tolist() if places else []

    def seen(self, row: int) -> list[tuple[int, int, int]]:
        """(step, slot, epoch) of every time a row is trained on, in step order."""
        number = self._group_of(row)
        return sorted(self._seen(number, row - self.groups[number].first))

    def summary(self) -> dict[str, Any]:
        """What will be trained, counted: see `summary.summarise`."""
        from pipelines.mixture.summary import summarise

        return summarise(self)

    @cached_property
    def heldout(self) -> list[HeldOut]:
        """Held-out samples of the plan's sources, up to eligible.HELDOUT of each; any beginning of the list is
        balanced over the sources.

        text_to_video samples take the mixture's pretext tasks in turn, windows start at 0, nothing is dropped.
        """
        found: list[tuple[int, int, HeldOut]] = []
        counts: dict[tuple[str, int], int] = {}
        for told in self._rows.heldout:
            stream, source = told["stream"], (told["stream"], told["source"])
            turn = counts[source] = counts.get(source, -1) + 1
            row = self._rows.row(told["place"])
            names = self._task_names(stream)
            task = names[turn % len(names)] if row["kind"] == "text_to_video" else EDIT
            seed = order.key_of(self.mixture.seed, "heldout", row["key"])
            slot = Slot(-1, row["key"], row["dataset"], task, 0, seed, False, False, 0)
            found.append((turn, len(found), HeldOut(row, stream, Bucket(*told["bucket"]), slot)))
        return [item for _, _, item in sorted(found, key=lambda f: f[:2])]

    def rows_of(self, number: int, columns: list[str]) -> pa.Table:
        """Columns of one group's rows."""
        group = self.groups[number]
        return take(self._rows, columns, self._rows.order[group.first : group.first + group.size])

    def table_of(self, rows: np.ndarray, columns: list[str]) -> pa.Table:
        """Columns of any rows, in the order asked for."""
        return take(self._rows, columns, self._rows.order[rows])

    def _draw(self, groups: np.ndarray, draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Row and epoch of each draw: every epoch of a group is a new permutation of its rows."""
        sizes = self._sizes[groups]
        epochs, positions = np.divmod(draws, sizes)
        keys = order.epoch_keys(self._bases[groups], epochs)
        return self._firsts[groups] + order.permute(positions, sizes, keys), epochs

    def _group_of(self, row: int) -> int:
        """Number of the group that a row belongs to: groups follow each other without a gap."""
        return int(np.searchsorted(self._firsts, row, side="right")) - 1

    def _kind(self, row: int) -> int:
        return int(self._rows.records[self._rows.order[row]]["kind"])

    def _task_names(self, stream: str) -> list[str]:
        settings = self.mixture.stream(stream)
        return sorted(settings.pretext) if isinstance(settings, VideoStream) and settings.pretext else ["none"]

    def _task_weights(self, stream: str) -> list[int]:
        settings = self.mixture.stream(stream)
        ratios = settings.pretext if isinstance(settings, VideoStream) else {}
        return _block([ratios.get(n, 1.0) for n in self._task_names(stream)])

    def _tasks(self, stream: str, groups: np.ndarray, draws: np.ndarray, kinds: np.ndarray) -> list[str]:
        """Task of each draw: every block of draws of a group holds the ratios exactly, in a random order."""
        pretext = kinds == self._pretext_kind
        tasks = np.full(len(kinds), EDIT, object)
        if pretext.any():
            names, edges = self._task_names(stream), self._task_edges[stream]
            block, position = np.divmod(draws[pretext], int(edges[-1]))
            keys = order.epoch_keys(self._task_bases[groups[pretext]], block)
            dealt = order.permute(position, int(edges[-1]), keys)
            tasks[pretext] = np.asarray(names, object)[np.searchsorted(edges, dealt, side="right")]
        return tasks.tolist()

    def _starts(self, stream: str, seeds: np.ndarray, spare: np.ndarray) -> list[int]:
        settings = self.mixture.stream(stream)
        if not isinstance(settings, VideoStream) or settings.window == "head":
            return [0] * len(seeds)
        return (order.uniform(seeds, "window") * (spare + 1)).astype(np.int64).tolist()

    def _seen(self, number: int, position: int) -> list[tuple[int, int, int]]:
        size, total = self.groups[number].size, self._drawn[number]
        epochs = np.arange(-(-total // size))
        keys = order.epoch_keys(self._bases[number], epochs)
        places = order.permute(np.full(len(epochs), position), size, keys, inverse=True)
        draws = [(epoch, draw) for epoch, draw in enumerate((epochs * size + places).tolist()) if draw < total]
        return [(*self._deal.position(number, draw), epoch) for epoch, draw in draws]

    @cached_property
    def _drawn(self) -> list[int]:
        return self.draws()


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
