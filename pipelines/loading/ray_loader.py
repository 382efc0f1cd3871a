"""The plan through Ray Data: one row is one data rank's micro-batch, in plan order, decoded by a bounded task pool.

read tasks (no CPU, one at a time): the places of a run of steps, held back by a clock
  -> map tasks: fetch, decode and perturb one row, one row out
  -> streaming_split over the data ranks: row i goes to rank i mod ranks
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Iterator
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
from pipelines.loading import clock
from pipelines.loading.micro_batch import MicroBatch
from pipelines.loading.rows import build_row, check_substitutes, micro_steps, places
from pipelines.mixture.plan import BatchPlan
from pipelines.progress import say

STEPS_PER_TASK = 256
_PLACES = pa.schema([("step", pa.int64()), ("micro", pa.int32()), ("rank", pa.int32())])


def dataset(
    plan_folder: str, ranks: int, micro_batch: Sizes, start_step: int, stop_step: int, settings: LoaderSettings
) -> ray.data.Dataset:
    """The rows of the steps start_step..stop_step-1 of a saved plan, for `ranks` data ranks.

    Split it with `split`, or in Ray Train with `PlanSplit`, and read each part with `iterate`. No more than
    `settings.read_ahead_rows` rows (or what the split and the decoders need at least) are made ahead of the slowest
    rank.
    """
    ahead = max(settings.read_ahead_rows, least_ahead(ranks, settings.max_decoders))
    handle, name = clock.start(ranks, ahead)
    source = PlanRows(plan_folder, ranks, micro_batch, start_step, stop_step, handle)
    context = DataContext.get_current().copy()
    context.target_max_block_size = 1  # every row is a block of its own: merged ones lose the order across ranks
    context.execution_no_progress_timeout_s = -1  # training may pause for as long as it likes
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options = _options()
    with DataContext.current(context):
        rows = ray.data.read_datasource(
            source,
            override_num_blocks=source.tasks,
            concurrency=1,  # one run of steps after another
            num_cpus=0,  # it mostly waits for the clock; a CPU of its own would starve the decoders
        )
        return rows.map_batches(
            load_row,
            batch_size=1,
            batch_format="pyarrow",
            fn_args=(plan_folder, ranks, micro_batch.model_dump(), name),
            num_cpus=settings.decode_cpus,
            compute=ray.data.TaskPoolStrategy(settings.max_decoders),
        )


def least_ahead(ranks: int, decoders: int) -> int:
    """Rows that must be on the way: each rank prefetches two, the split holds back a round."""
    return 4 * ranks + 2 * decoders


def split(rows: ray.data.Dataset, ranks: int) -> list[ray.data.DataIterator]:
    """The parts of a dataset of this module: row i goes to rank i mod ranks. All must be read at the same time."""
    return rows.streaming_split(ranks, equal=True)


class PlanSplit(DataConfig):
    """Gives every training worker the rows of its data rank, in the plan's order (data ranks = workers)."""

    def __init__(self) -> None:
        super().__init__(execution_options=_options(), enable_shard_locality=False)


def iterate(shard: ray.data.DataIterator, stall_warning_s: float = 120.0) -> Iterator[MicroBatch]:
    """One rank's micro-batches from its part of the dataset.

    Says so when it waits longer than `stall_warning_s`. StorageError when too many samples did not decode.
    """
    taken = substituted = slots = 0
    handle = None
    tables = iter(shard.iter_batches(batch_size=1, batch_format="pyarrow", prefetch_batches=1))
    while True:
        with _Watch(stall_warning_s, taken):
            table = next(tables, None)
        if table is None:
            return
        batch = MicroBatch.from_table(table)
        if handle is None:
            handle = ray.get_actor(table["clock"][0].as_py())
        del table
        taken += 1
        handle.take.remote(batch.rank, taken)
        substituted, slots = substituted + len(batch.substituted), slots + len(batch.keys)
        check_substitutes(substituted, slots)
        yield batch


class PlanRows(Datasource):
    """Rows (step, micro, rank) of a plan, in order; each read task makes those of a run of steps."""

    def __init__(
        self, plan_folder: str, ranks: int, micro_batch: Sizes, start: int, stop: int, handle: ray.actor.ActorHandle
    ) -> None:
        self._args = (plan_folder, ranks, micro_batch.model_dump())
        runs = [(s, min(s + STEPS_PER_TASK, stop)) for s in range(start, stop, STEPS_PER_TASK)]
        self._runs = runs or [(start, start)]
        self._start, self._clock = start, handle

    @property
    def tasks(self) -> int:
        return len(self._runs)

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[ReadTask]:
        """One task per run of steps, whatever parallelism Ray would like."""
        found = []
        for first, last in self._runs:
            metadata = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
            make = functools.partial(_make_places, *self._args, self._start, first, last, self._clock)
            found.append(ReadTask(make, metadata, schema=_PLACES))
        return found


def _make_places(
    plan_folder: str, ranks: int, micro_batch: dict[str, int], start: int, first: int, last: int, handle: Any
) -> Iterator[pa.Table]:
    plan, sizes = _plan(plan_folder), Sizes(**micro_batch)
    number = _rows_before(plan, ranks, sizes, start, first)
    limit = 0
    for place in places(plan, ranks, sizes, first, last):
        while number >= limit:
            limit = ray.get(handle.limit.remote(number))
        number += 1
        yield pa.table([[v] for v in place], schema=_PLACES)


def _rows_before(plan: BatchPlan, ranks: int, sizes: Sizes, start: int, step: int) -> int:
    """Rows of the steps start..step-1, in closed form."""
    return sum(
        (plan.steps_of(stream, step) - plan.steps_of(stream, start)) * micro_steps(plan, stream, ranks, sizes) * ranks
        for stream in plan.mixture.active()
    )


def load_row(rows: pa.Table, plan_folder: str, ranks: int, micro_batch: dict[str, int], clock_name: str) -> pa.Table:
    """Make one row's micro-batch.

    in:  step, micro, rank of one row
    out: the columns of micro_batch.SCHEMA, and clock: the name of the clock that wants to know when it is taken
    """
    step, micro, rank = (rows[n][0].as_py() for n in ("step", "micro", "rank"))
    batch = build_row(_plan(plan_folder), step, micro, rank, ranks, Sizes(**micro_batch))
    return batch.to_table().append_column("clock", pa.array([clock_name]))


@functools.lru_cache(maxsize=2)
def _plan(folder: str) -> BatchPlan:
    return BatchPlan.open(folder)


def _options() -> ExecutionOptions:
    return ExecutionOptions(preserve_order=True)


class _Watch:
    """Says that a wait is long while it lasts."""

    def __init__(self, seconds: float, taken: int) -> None:
        self._began = time.monotonic()
        self._timer = threading.Timer(seconds, self._warn, (seconds, taken))
        self._timer.daemon = True

    def __enter__(self) -> None:
        self._timer.start()

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()

    @staticmethod
    def _warn(seconds: float, taken: int) -> None:
        free = {k: v for k, v in ray.available_resources().items() if k in ("CPU", "object_store_memory")}
        say(f"loader: {seconds:.0f} s without row {taken} of this rank; free in the cluster: {free}")
