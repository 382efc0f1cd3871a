"""What the loader says of itself: numbers for every step, and which stage is stuck when nothing comes. Without Ray."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipelines.loading.micro_batch import MicroBatch

STAGES = ("fetch", "decode", "perturb")
SUMMED = (*STAGES, "fetched_bytes", "frames", "rows_ahead", "bytes_ahead")  # what `measures` gives, in this order
SHOWN = 8  # rows that are listed at the most


def measures(batch: MicroBatch) -> list[float]:
    """One row's part of the step's numbers: to be summed over micro-steps and data ranks, in the order of SUMMED.

    What is ahead is the whole loader's, so only data rank 0 tells it, at the first micro-step.
    """
    tells = batch.rank == 0 and batch.micro == 0
    ahead = [float(batch.rows_ahead), float(batch.bytes_ahead)] if tells else [0.0, 0.0]
    return [*(batch.timings.get(s, 0.0) for s in STAGES), float(batch.fetched_bytes), float(batch.frames), *ahead]


def metrics(sums: Sequence[float], seconds: float) -> dict[str, float]:
    """The columns of metrics.jsonl from summed `measures`. seconds: of the whole step.

    loader/{fetch,decode,perturb}_s: seconds of CPU work, over all slots of the step, wherever it was done.
    loader/frames_per_s, loader/mb_per_s: frames decoded and bytes fetched for the step, over its seconds.
    loader/rows_ahead, loader/bytes_ahead: made and not yet taken when the step began; 0 without Ray.
    """
    told = dict(zip(SUMMED, sums, strict=True))
    return {
        **{f"loader/{s}_s": told[s] for s in STAGES},
        "loader/frames_per_s": told["frames"] / seconds,
        "loader/mb_per_s": told["fetched_bytes"] / seconds / 1e6,
        "loader/rows_ahead": told["rows_ahead"],
        "loader/bytes_ahead": told["bytes_ahead"],
    }


@dataclass(frozen=True)
class State:
    """Where the rows of a dataset are, counted from its start; row i is for rank i mod ranks.

    made: rows generated, as far as told; limit: rows that may be; taken: by each rank; running: row -> (seconds since
    its decoding began, where); decoded: ready, and not taken.
    """

    made: int
    limit: int
    taken: list[int]
    running: Mapping[int, tuple[float, str]]
    decoded: list[int]
    bytes_ahead: int

    def __str__(self) -> str:
        running = [f"row {r} for {s:.0f} s on {where}" for r, (s, where) in list(self.running.items())[:SHOWN]]
        return (
            f"rows made {self.made}, allowed {self.limit}, taken by rank {self.taken}; "
            f"decoding {len(self.running)} ({', '.join(running)}); "
            f"decoded and waiting {len(self.decoded)} ({self.bytes_ahead} bytes): {self.decoded[:SHOWN]}"
        )


def stuck(state: State | None, rank: int | None, taken: int) -> tuple[str, str]:
    """(stage, sentence) for a rank that has waited for its row number `taken`.

    Stages: clock, consumer, generation, decode pending, decode running, split. rank None: it has no row yet and does
    not know its number; then the first row is what is missing.
    """
    if state is None:
        return "clock", "the clock that paces the loader does not answer"
    ranks = len(state.taken)
    row = taken * ranks + (rank or 0)
    if row in state.decoded:
        return "split", f"row {row} is decoded and was not handed over"
    if row in state.running:
        seconds, where = state.running[row]
        return "decode running", f"row {row} is being fetched and decoded for {seconds:.0f} s on {where}"
    if row >= state.limit:
        slow = min(range(ranks), key=lambda r: state.taken[r])
        return "consumer", f"rank {slow} has taken only {state.taken[slow]} rows, which holds back row {row}"
    if row >= state.made:
        return "generation", f"row {row} may be made and was not: the task that reads the plan does not run"
    return "decode pending", f"row {row} waits for a decode task: the cluster has no free CPU or object store for it"


class Watchdog:
    """Calls `report(waited)` from a thread when a wait has lasted `seconds`, and again at twice, four times ... of it.

    waited: seconds of this wait so far. Close it.
    """

    def __init__(self, seconds: float, report: Callable[[float], None]) -> None:
        self._seconds, self._report = seconds, report
        self._since: float | None = None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="loader watchdog", daemon=True)
        self._thread.start()

    @contextmanager
    def wait(self) -> Iterator[None]:
        """While in here, this rank waits."""
        self._since = time.monotonic()
        try:
            yield
        finally:
            self._since = None

    def close(self) -> None:
        self._closed.set()

    def _watch(self) -> None:
        watched, due = None, self._seconds
        while not self._closed.wait(min(1.0, self._seconds / 4)):
            since = self._since
            if since != watched:
                watched, due = since, self._seconds
            waited = 0.0 if since is None else time.monotonic() - since
            if waited > due:
                due = 2 * waited
                self._report(waited)
