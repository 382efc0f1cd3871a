"""Bounds how far the plan is read ahead of training: rows are tiny, so Ray's own limits on bytes never hold them."""

from __future__ import annotations

import asyncio
import time
import uuid

import ray

from pipelines.loading.watching import State

PATIENCE_S = 10.0  # a question is answered at least this often, so that nothing waits on a dead caller
PREFIX = "sama-row-clock-"


class RowClock:
    """Knows where every row is; rows below ranks * slowest rank + ahead may be made.

    Rows are counted from the start of the dataset; row i is taken by rank i mod ranks. An asyncio actor: any number of
    callers may wait at once.
    """

    def __init__(self, ranks: int, ahead: int) -> None:
        self._taken = [0] * ranks
        self._ahead = ahead
        self._made = self._segment = 0
        self._running: dict[int, tuple[float, str]] = {}
        self._decoded: dict[int, int] = {}
        self._bytes = 0
        self._moved = asyncio.Condition()

    async def take(self, rank: int, rows: int) -> tuple[int, int]:
        """A rank has taken `rows` rows since the start. Rows made and bytes decoded that no rank has taken yet."""
        for turn in range(self._taken[rank], rows):
            self._forget(turn * len(self._taken) + rank)
        async with self._moved:
            self._taken[rank] = max(self._taken[rank], rows)
            self._moved.notify_all()
        return max(0, self._made - sum(self._taken)), self._bytes

    async def limit(self, row: int) -> int:
        """Rows below this number may be made. Waits a while for the limit to pass `row`."""
        self._made = max(self._made, row)
        try:
            async with asyncio.timeout(PATIENCE_S), self._moved:
                await self._moved.wait_for(lambda: self._limit() > row)
        except TimeoutError:
            pass
        return self._limit()

    async def made(self, rows: int) -> None:
        """The first `rows` rows have been made."""
        self._made = max(self._made, rows)

    async def segment(self) -> int:
        """Number of the segment of the plan that the next pass is to make."""
        return self._segment

    async def ended(self, segment: int) -> None:
        """All rows of a segment have been made, perhaps a second time."""
        self._segment = max(self._segment, segment + 1)

    async def decoding(self, row: int, where: str) -> None:
        """A task has begun with a row."""
        if not self._is_taken(row):
            self._running[row] = (time.monotonic(), where)

    async def decoded(self, row: int, size: int) -> None:
        """A row of `size` bytes is ready."""
        self._running.pop(row, None)
        if not self._is_taken(row) and row not in self._decoded:
            self._decoded[row] = size
            self._bytes += size

    async def state(self) -> State:
        """Where the rows are."""
        now = time.monotonic()
        running = {row: (now - since, where) for row, (since, where) in sorted(self._running.items())}
        return State(self._made, self._limit(), list(self._taken), running, sorted(self._decoded), self._bytes)

    def _is_taken(self, row: int) -> bool:
        turn, rank = divmod(row, len(self._taken))
        return turn < self._taken[rank]

    def _forget(self, row: int) -> None:
        self._running.pop(row, None)
        self._bytes -= self._decoded.pop(row, 0)

    def _limit(self) -> int:
        return len(self._taken) * min(self._taken) + self._ahead


def start(ranks: int, ahead: int) -> tuple[ray.actor.ActorHandle, str]:
    """A new clock and the name that finds it; it lives as long as somebody holds the handle."""
    name = f"{PREFIX}{uuid.uuid4().hex}"
    return ray.remote(RowClock).options(name=name, num_cpus=0).remote(ranks, ahead), name
