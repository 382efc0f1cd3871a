"""What the members of a sequence group do together before the model: one reads, all encode.

The leader reads the group's micro-batch and sends it to the others. Each member then encodes some of the clips, prompts
and anchor frames, and all get all results.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist

from pipelines.train.parallel import World
from sama.objective import EncodedBatch

if TYPE_CHECKING:
    from pipelines.loading import MicroBatch
    from pipelines.train.encode import BatchEncoder

LARGE = 1 << 16  # bytes of an array that travels as a tensor, not in the message
KINDS = ("encode_target", "encode_source", "encode_text", "encode_semantic")
# FLOPs of a pixel in Wan's VAE, of a prompt of 512 tokens in UMT5-XXL, of a frame in SigLIP so400m; only ratios matter
COSTS = {"encode_target": 5.1e6, "encode_source": 5.1e6, "encode_text": 5.8e12, "encode_semantic": 0.6e12}


class SharedBatches:
    """The micro-batches of this process's group, on every member. read: the leader's own iterator, None elsewhere."""

    def __init__(self, read: Iterator[MicroBatch] | None, world: World) -> None:
        self.read, self.world = read, world

    def __iter__(self) -> SharedBatches:
        return self

    def __next__(self) -> MicroBatch:
        batch: MicroBatch | None = None
        error: BaseException | None = None
        if self.world.leader:
            assert self.read is not None
            try:
                batch = next(self.read, None)
            except Exception as found:
                error = found
        if self.world.sequence > 1:
            batch = share(batch, None if error is None else f"{type(error).__name__}: {error}", self.world)
        if error is not None:
            raise error
        if batch is None:
            raise StopIteration
        return batch


def share(batch: Any, error: str | None, world: World) -> Any:
    """The leader's micro-batch (a dataclass, or None) on every member. RuntimeError where the leader has an error."""
    large: dict[str, np.ndarray] = {}
    if batch is not None:
        fields = {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch)}
        large = {n: v for n, v in fields.items() if isinstance(v, np.ndarray) and v.nbytes >= LARGE}
    rest = dataclasses.replace(batch, **dict.fromkeys(large)) if large else batch
    box: list[Any] = [rest, {n: (v.shape, v.dtype.str) for n, v in large.items()}, error]
    dist.broadcast_object_list(box, group=world.group, group_src=0)
    rest, shapes, error = box
    if error is not None and not world.leader:
        raise RuntimeError(f"the reader of this sequence group failed: {error}")
    arrays = {}
    for name, (shape, kind) in shapes.items():
        if world.leader:
            arrays[name] = large[name]
            moved = torch.from_numpy(np.ascontiguousarray(large[name]).view(np.uint8).reshape(-1)).to(world.device)
        else:
            arrays[name] = np.empty(shape, np.dtype(kind))
            moved = torch.empty(arrays[name].nbytes, dtype=torch.uint8, device=world.device)
        dist.broadcast(moved, group=world.group, group_src=0)
        if not world.leader:
            arrays[name].view(np.uint8).reshape(-1)[:] = moved.cpu().numpy()
    if world.leader:
        return batch
    return dataclasses.replace(rest, **arrays) if arrays else rest


@dataclasses.dataclass
class _Call:
    """One call of an encoding method. rows: its argument, a tensor or a list; cost: of one row."""

    kind: str
    rows: Any
    cost: float


class GroupEncoder:
    """A BatchEncoder whose work is divided among the members of a sequence group.

    The inner encoder runs twice: first to learn what it would encode (which depends on its caches), then with the
    results at hand.
    """

    def __init__(self, inner: BatchEncoder, world: World) -> None:
        self.inner, self.world = inner, world

    @torch.no_grad()
    def __call__(self, batch: MicroBatch) -> EncodedBatch:
        calls: list[_Call] = []
        for kind in KINDS:
            setattr(self.inner, kind, self._noting(kind, calls))
        try:
            encoded = self.inner(batch)
            if not calls:
                return encoded
            for kind in KINDS:
                delattr(self.inner, kind)
            results = iter(self._encode(calls))
            for kind in KINDS:
                setattr(self.inner, kind, lambda rows: next(results))
            return self.inner(batch)
        finally:
            for kind in KINDS:
                self.inner.__dict__.pop(kind, None)

    def _noting(self, kind: str, calls: list[_Call]) -> Callable[[Any], torch.Tensor]:
        def note(rows: Any) -> torch.Tensor:
            size = float(np.prod(rows.shape[1:4])) if kind in ("encode_target", "encode_source") else 1.0
            calls.append(_Call(kind, rows, COSTS[kind] * size))
            return torch.zeros(len(rows), *([1] * (4 if size > 1 else 2)), device=self.world.device)

        return note

    def _encode(self, calls: Sequence[_Call]) -> list[torch.Tensor]:
        """The results of all calls: each member computes its rows, then each tells the others."""
        owners = divide([(c.cost, len(c.rows)) for c in calls], self.world.sequence)
        own: dict[int, torch.Tensor] = {}
        for number, call in enumerate(calls):
            mine = [row for row, owner in enumerate(owners[number]) if owner == self.world.member]
            if mine:
                rows = call.rows[mine] if isinstance(call.rows, torch.Tensor) else [call.rows[r] for r in mine]
                own[number] = getattr(self.inner, call.kind)(rows).contiguous()
        told: list[Any] = [None] * self.world.sequence
        dist.all_gather_object(told, {n: (tuple(t.shape), t.dtype) for n, t in own.items()}, group=self.world.group)
        return [self._assemble(n, owners[n], own.get(n), [t.get(n) for t in told]) for n in range(len(calls))]

    def _assemble(self, number: int, owners: list[int], own: torch.Tensor | None, told: list[Any]) -> torch.Tensor:
        rows: list[torch.Tensor | None] = [None] * len(owners)
        for member, facts in enumerate(told):
            if facts is None:
                continue
            ours = member == self.world.member
            part = own if ours else torch.empty(facts[0], dtype=facts[1], device=self.world.device)
            assert part is not None
            dist.broadcast(part, group=self.world.group, group_src=member)
            for row, found in zip([r for r, o in enumerate(owners) if o == member], part, strict=True):
                rows[row] = found
        return torch.stack([r for r in rows if r is not None])


def divide(work: Sequence[tuple[float, int]], members: int) -> list[list[int]]:
    """Which member does which row: for each call of (cost of a row, rows) the owner of every row.

    The largest piece goes to whoever has least so far; equal for equal input, so all members agree.
    """
    pieces = sorted(((cost, call, row) for call, (cost, rows) in enumerate(work) for row in range(rows)), reverse=True)
    owners = [[0] * rows for _, rows in work]
    load = [0.0] * members
    for cost, call, row in pieces:
        least = min(range(members), key=lambda m: (load[m], m))
        owners[call][row], load[least] = least, load[least] + cost
    return owners
