"""A list of servers: who gets the next request, how many at once, how often, and who is ill."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

ILL_AFTER = 3  # failures in a row
FIRST_LOOK_S, LONGEST_LOOK_S = 1.0, 60.0  # pauses between looks at an endpoint that is ill


class SilentError(Exception):
    """No endpoint has been well for longer than one is willing to wait."""


class Endpoint:
    """One server and its state."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.busy, self.failures = 0, 0
        self.ill = False
        self.resting_until = 0.0


class Endpoints:
    """Places for requests. `alive` looks at an endpoint that is ill; when it answers, it is used again."""

    def __init__(
        self, urls: Sequence[str], in_flight: int, rate: float | None,
        alive: Callable[[Endpoint], Awaitable[bool]], give_up_s: float = 300.0,
    ) -> None:  # fmt: skip
        self.all = [Endpoint(url) for url in urls]
        self._in_flight, self._alive, self._give_up_s = in_flight, alive, give_up_s
        self._interval = 1.0 / rate if rate else 0.0
        self._next = 0.0
        self._changed = asyncio.Condition()
        self._healers: set[asyncio.Task] = set()

    @contextlib.asynccontextmanager
    async def place(self) -> AsyncIterator[Endpoint]:
        """Wait for a place at the well endpoint with the fewest requests. SilentError when none is."""
        endpoint = await self._take()
        try:
            await self._turn()
            yield endpoint
        finally:
            endpoint.busy -= 1
            async with self._changed:
                self._changed.notify()

    async def _take(self) -> Endpoint:
        ill_since = None
        while True:
            now = time.monotonic()
            well = [e for e in self.all if not e.ill]
            free = [e for e in well if e.busy < self._in_flight and e.resting_until <= now]
            if free:
                endpoint = min(free, key=lambda e: e.busy)
                endpoint.busy += 1
                return endpoint
            ill_since = None if well else ill_since or now
            if ill_since and now - ill_since > self._give_up_s:
                raise SilentError(f"none of {len(self.all)} endpoints has answered for {self._give_up_s:g} s")
            rests = [e.resting_until - now for e in well if e.resting_until > now]
            async with self._changed:
                # a wake-up can be missed between the look above and the wait: look again soon in any case
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), min([*rests, 0.5]))

    async def _turn(self) -> None:
        """Keep to the rate: starts are spaced evenly."""
        if not self._interval:
            return
        now = time.monotonic()
        self._next = max(now, self._next) + self._interval
        await asyncio.sleep(self._next - self._interval - now)

    def rest(self, endpoint: Endpoint, seconds: float) -> None:
        """Send nothing there for a while: it said that there were too many requests."""
        endpoint.resting_until = max(endpoint.resting_until, time.monotonic() + seconds)

    def report(self, endpoint: Endpoint, healthy: bool) -> None:
        """What a request has shown."""
        endpoint.failures = 0 if healthy else endpoint.failures + 1
        if endpoint.failures >= ILL_AFTER and not endpoint.ill:
            endpoint.ill = True
            task = asyncio.get_running_loop().create_task(self._heal(endpoint))
            self._healers.add(task)
            task.add_done_callback(self._healers.discard)

    async def _heal(self, endpoint: Endpoint) -> None:
        pause = FIRST_LOOK_S
        while True:
            await asyncio.sleep(pause)
            if await self._alive(endpoint):
                endpoint.ill, endpoint.failures = False, 0
                async with self._changed:
                    self._changed.notify_all()
                return
            pause = min(2 * pause, LONGEST_LOOK_S)

    async def close(self) -> None:
        for task in list(self._healers):
            task.cancel()
        await asyncio.gather(*self._healers, return_exceptions=True)
