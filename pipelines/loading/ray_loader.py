"""The plan through Ray Data: one row is one data rank's micro-batch, in plan order, decoded by a bounded task pool.

read tasks (no CPU, one at a time): the places of a run of steps, held back by a clock
  -> map tasks: fetch, decode and perturb one row, one row out
  -> streaming_split over the data ranks: row i goes to rank i mod ranks

One pass over the dataset is a segment of the plan, and `iterate` makes as many passes as there are: Ray Data keeps some
kilobytes of statistics for every block that a pass has made.
"""

from __future__ import annotations

import functools
import itertools
import os
import socket
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray.data import Datasource, ExecutionOptions, ReadTask
from ray.data.block import BlockMetadata
from ray.data.context import DataContext
from ray.train import DataConfig

from pipelines.config import LoaderSettings
from pipelines.config import MicroBatch as Sizes
from pipelines.loading import clock, heap, operator_state
from pipelines.loading.micro_batch import MicroBatch
from pipelines.loading.room import rows_ahead
from pipelines.loading.rows import build_row, micro_steps, places
from pipelines.loading.watching import Watchdog, stuck
from pipelines.mixture.plan import BatchPlan
from pipelines.progress import say

SEGMENT_ROWS = 1 << 15  # of one pass; between two of them the loader starts afresh
TASKS = 8  # read tasks of a segment: one that is lost is made again from its own beginning
TELL_EVERY = 16  # rows between two messages of the task that reads the plan to the clock
_PLACES = pa.schema(
    [("row", pa.int64()), ("step", pa.int64()), ("micro", pa.int32()), ("rank", pa.int32()), ("last", pa.bool_())]
)


def dataset(
    plan_folder: str, ranks: int, micro_batch: Sizes, start_step: int, stop_step: int, settings: LoaderSettings
) -> ray.data.Dataset:
    """The rows of the steps start_step..stop_step-1 of a saved plan, for `ranks` data ranks.

    Split it with `split`, or in Ray Train with `PlanSplit`, and read each part with `iterate`. No more than
    `settings.read_ahead_rows` rows (or what the split and the decoders need at least) are made ahead of the slowest
    rank.
    """
    handle, name = clock.start(ranks, rows_ahead(ranks, settings))
    rows = read_places(PlanRows(plan_folder, ranks, micro_batch, start_step, stop_step, handle))
    with DataContext.current(rows.context):
        return rows.map_batches(
            load_row,
            batch_size=1,
            batch_format="pyarrow",
            fn_args=(plan_folder, ranks, micro_batch.model_dump(), name),
            num_cpus=settings.decode_cpus,
            compute=ray.data.TaskPoolStrategy(settings.max_decoders),
        )


def read_places(source: PlanRows) -> ray.data.Dataset:
    """The places of all rows, in order, every row a block of its own."""
    context = DataContext.get_current().copy()
    context.target_max_block_size = 1  # every row is a block of its own: merged ones lose the order across ranks
    context.execution_no_progress_timeout_s = -1  # training may pause for as long as it likes
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options = _options()
    with DataContext.current(context):
        return ray.data.read_datasource(
            source,
            override_num_blocks=TASKS,
            concurrency=1,  # one run of steps after another
            num_cpus=0,  # it mostly waits for the clock; a CPU of its own would starve the decoders
        )


def split(rows: ray.data.Dataset, ranks: int) -> list[ray.data.DataIterator]:
    """The parts of a dataset of this module: row i goes to rank i mod ranks. All must be read at the same time."""
    return rows.streaming_split(ranks, equal=True)


class PlanSplit(DataConfig):
    """Gives training workers the rows of their data rank, in the plan's order.

    group_size: workers of one sequence-parallel group share a data rank. Data ranks = workers / group_size; worker r
    gets the part of data rank r / group_size where r is a multiple of it, every other one gets None. All workers call
    `ray.train.get_dataset_shard`.
    """

    def __init__(self, group_size: int = 1) -> None:
        super().__init__(execution_options=_options(), enable_shard_locality=False)
        self.group_size = group_size

    def configure(
        self, datasets: dict[str, ray.data.Dataset], world_size: int, worker_handles: Any, worker_node_ids: Any,
        **others: Any,
    ) -> list[dict[str, ray.data.DataIterator | None]]:  # fmt: skip
        """Ray Train calls this; one dictionary per worker."""
        if world_size % self.group_size:
            raise ValueError(f"{world_size} workers do not form groups of {self.group_size}")
        leaders = super().configure(datasets, world_size // self.group_size, worker_handles, worker_node_ids, **others)
        nothing: dict[str, ray.data.DataIterator | None] = dict.fromkeys(datasets)
        return [leaders[r // self.group_size] if r % self.group_size == 0 else dict(nothing) for r in range(world_size)]


def iterate(
    shard: ray.data.DataIterator,
    stall_warning_s: float = 120.0,
    on_stall: Callable[[str, str], None] | None = None,
) -> Iterator[MicroBatch]:
    """One rank's micro-batches from its part of the dataset. Their pixels are read-only.

    After a wait of `stall_warning_s` it says which stage is stuck, and calls on_stall(sentence, dump) from another
    thread; dump: where all rows are, and what Ray Data knows of itself.
    """
    # torch warns of read-only memory when it makes a tensor of it; nothing writes into a batch
    warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
    reader = _Reader(shard, on_stall)
    watchdog = Watchdog(stall_warning_s, reader.stalled)
    try:
        came, last = True, False
        while came and not last:
            came, tables = False, iter(shard.iter_batches(batch_size=1, batch_format="pyarrow", prefetch_batches=1))
            while True:
                with watchdog.wait():
                    table = next(tables, None)
                if table is None:
                    break
                came, last = True, table["last"][0].as_py()
                batch = reader.receive(table)
                del table
                yield batch
                del batch  # its memory goes back to the object store
    finally:
        watchdog.close()


class _Reader:
    """What one rank has received."""

    def __init__(self, shard: ray.data.DataIterator, on_stall: Callable[[str, str], None] | None) -> None:
        self._shard, self._on_stall = shard, on_stall
        self._taken = 0
        self._rank: int | None = None
        self._clock: Any = None
        self._answer: Any = None
        self._ahead = (0, 0)

    def receive(self, table: pa.Table) -> MicroBatch:
        batch = MicroBatch.from_table(table)
        if self._clock is None:
            self._clock, self._rank = ray.get_actor(table["clock"][0].as_py()), batch.rank
        self._taken += 1
        answer = self._clock.take.remote(batch.rank, self._taken)
        if batch.rank == 0:  # the answer to an earlier message: nobody waits for one
            if self._answer is None:
                self._answer = answer
            elif ray.wait([self._answer], timeout=0)[0]:
                self._ahead, self._answer = ray.get(self._answer), answer
        batch.rows_ahead, batch.bytes_ahead = self._ahead
        return batch

    def stalled(self, seconds: float) -> None:
        state = operator_state.ask(self._clock)
        stage, why = stuck(state, self._rank, self._taken)
        who = "a rank that has no row yet" if self._rank is None else f"rank {self._rank}"
        sentence = f"loader: {who} has waited {seconds:.0f} s for its row {self._taken}; stuck in {stage}: {why}"
        say(sentence)
        if self._on_stall is not None:
            self._on_stall(sentence, f"{sentence}\n\n{state}\n\n{operator_state.dump(self._shard)}")


class PlanRows(Datasource):
    """Rows (number, step, micro, rank, whether it is its rank's last one) of a plan, in order. Each pass over them is
    the segment that the clock says is due; each read task makes those of a run of steps.
    """

    def __init__(
        self, plan_folder: str, ranks: int, micro_batch: Sizes, start: int, stop: int, handle: ray.actor.ActorHandle
    ) -> None:
        self._args = (plan_folder, ranks, micro_batch.model_dump())
        self._start, self._stop, self._clock = start, stop, handle
        plan = _plan(plan_folder)
        most = max(micro_steps(plan, stream, ranks, micro_batch) for stream in plan.mixture.active()) * ranks
        self._steps = max(1, SEGMENT_ROWS // most)

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[ReadTask]:
        """The tasks of the segment that is due, some of them without a row. Ray asks at the start of every pass."""
        segment = ray.get(self._clock.segment.remote())
        first = min(self._start + segment * self._steps, self._stop)
        edges = [min(first + self._steps * task // TASKS, self._stop) for task in range(TASKS + 1)]
        found = []
        for task, (begin, end) in enumerate(itertools.pairwise(edges), 1):
            ends = segment if task == TASKS else None
            metadata = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
            make = functools.partial(_make_places, *self._args, self._start, self._stop, begin, end, ends, self._clock)
            found.append(ReadTask(make, metadata, schema=_PLACES))
        return found


def _make_places(
    plan_folder: str, ranks: int, micro_batch: dict[str, int], start: int, stop: int, first: int, last: int,
    segment: int | None, handle: Any,
) -> Iterator[pa.Table]:  # fmt: skip
    """The rows of the steps first..last-1. segment: the one that ends with them; the clock is told before the task
    ends, and so before the pass does."""
    plan, sizes = _plan(plan_folder), Sizes(**micro_batch)
    number, total = (_rows_before(plan, ranks, sizes, start, step) for step in (first, stop))
    limit = 0
    for place in places(plan, ranks, sizes, first, last):
        while number >= limit:
            limit = ray.get(handle.limit.remote(number))
        yield pa.table([[number], *([v] for v in place), [number >= total - ranks]], schema=_PLACES)
        number += 1
        if number % TELL_EVERY == 0:
            handle.made.options(num_returns=0).remote(number)
    if segment is not None:
        ray.get(handle.ended.remote(segment))


def _rows_before(plan: BatchPlan, ranks: int, sizes: Sizes, start: int, step: int) -> int:
    """Rows of the steps start..step-1, in closed form."""
    return sum(
        (plan.steps_of(stream, step) - plan.steps_of(stream, start)) * micro_steps(plan, stream, ranks, sizes) * ranks
        for stream in plan.mixture.active()
    )


def load_row(rows: pa.Table, plan_folder: str, ranks: int, micro_batch: dict[str, int], clock_name: str) -> pa.Table:
    """Make one row's micro-batch.

    in:  row (its number), step, micro, rank, last of one row
    out: the columns of micro_batch.SCHEMA; clock: the name of the clock that wants to know when it is taken; last: no
         row of this rank comes after it
    """
    row, step, micro, rank = (rows[n][0].as_py() for n in ("row", "step", "micro", "rank"))
    heap.keep()
    handle = _clock(clock_name)
    handle.decoding.options(num_returns=0).remote(row, _here())
    batch = build_row(_plan(plan_folder), step, micro, rank, ranks, Sizes(**micro_batch))
    handle.decoded.options(num_returns=0).remote(row, batch.nbytes)
    return batch.to_table().append_column("clock", pa.array([clock_name])).append_column("last", rows["last"])


@functools.lru_cache(maxsize=2)
def _clock(name: str) -> ray.actor.ActorHandle:
    return ray.get_actor(name)


@functools.lru_cache(maxsize=1)
def _here() -> str:
    return f"{socket.gethostname()} pid {os.getpid()}"


@functools.lru_cache(maxsize=2)
def _plan(folder: str) -> BatchPlan:
    return BatchPlan.open(folder)


def _options() -> ExecutionOptions:
    return ExecutionOptions(preserve_order=True)
