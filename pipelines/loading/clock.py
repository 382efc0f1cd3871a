"""Bounds how far the plan is read ahead of training: rows are tiny, so Ray's own limits on bytes never hold them."""

from __future__ import annotations

import asyncio
import uuid

import ray

PATIENCE_S = 10.0  # a question is answered at least this often, so that nothing waits on a dead caller


class RowClock:
    """Knows how many rows every rank has taken; rows below ranks * slowest rank + ahead may be made.

    An asyncio actor: any number of callers may wait at once.
    """

    def __init__(self, ranks: int, ahead: int) -> None:
        self._taken = [0] * ranks
        self._ahead = ahead
        self._moved = asyncio.Condition()

    async def take(self, rank: int, rows: int) -> None:
        """A rank has taken `rows` rows since the start."""
        async with self._moved:
            self._taken[rank] = max(self._taken[rank], rows)
            self._moved.notify_all()

    async def limit(self, row: int) -> int:
        """Rows below this number may be made. Waits a while for the limit to pass `row`."""
        try:
            async with asyncio.timeout(PATIENCE_S), self._moved:
                await self._moved.wait_for(lambda: self._limit() > row)
        except TimeoutError:
            pass
        return self._limit()

    async def taken(self) -> list[int]:
        """Rows taken by each rank."""
        return list(self._taken)

    def _limit(self) -> int:
        return len(self._taken) * min(self._taken) + self._ahead


def start(ranks: int, ahead: int) -> tuple[ray.actor.ActorHandle, str]:
    """A new clock and the name that finds it; it lives as long as somebody holds the handle."""
    name = f"sama-row-clock-{uuid.uuid4().hex}"
    return ray.remote(RowClock).options(name=name, num_cpus=0).remote(ranks, ahead), name
