"""What the loader holds and costs as runs, ranks and indexes grow. Tiny clips, so that the machinery is what is seen.

python benchmarks/loader_scale.py memory --rows 1000     # bytes held over a run
python benchmarks/loader_scale.py ahead --rows 3000      # a slow consumer: rows made and not trained
python benchmarks/loader_scale.py places --rows 100000   # the same without media: plan, clock and split alone
python benchmarks/loader_scale.py ranks --ranks 64       # many data ranks: rows per second
python benchmarks/loader_scale.py index --clips FOLDER --sizes 1000 1000000 10000000   # cost of a row; no Ray
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from loader_data import DATASET, make_plan, make_root, report, videos_below

from pipelines import cluster_session
from pipelines.config import LoaderSettings, RaySettings
from pipelines.config import MicroBatch as Sizes
from pipelines.loading.room import rows_ahead
from pipelines.loading.rows import build_row
from pipelines.samples import storage, tables
from sama import video

ONE = Sizes(image=1, video=1)


def tiny_clips(count: int, frames: int, side: int) -> list[tuple[str, bytes, video.Probe]]:
    found = []
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 255, (frames, side, side, 3), np.uint8)
        data = video.encode(pixels, 16.0, crf=40)
        found.append((f"{number}.mp4", data, video.probe(data)))
    return found


def tiny_plan(folder: str, steps: int, batch: int, side: int = 32, frames: int = 5) -> str:
    root = make_root(tiny_clips(16, frames, side), os.path.join(folder, "root"))
    plan = os.path.join(folder, "plan")
    make_plan(root, plan, steps, batch, frames, side * side)
    return plan


def open_loader(plan: str, ranks: int, steps: int, settings: LoaderSettings) -> list[Any]:
    from pipelines.loading.ray_loader import dataset, split

    return split(dataset(plan, ranks, ONE, 0, steps, settings), ranks)


def clock_state() -> Any:
    from pipelines.loading.operator_state import ask

    return ask(None)


def store_bytes() -> float:
    """Bytes of the object store that were ever in use: pages of its shared memory, which are never given back."""
    total = 0.0
    for raylet in (p for p in psutil.Process().children(recursive=True) if "raylet" in p.name()):
        for file in Path(f"/proc/{raylet.pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                if "plasma" in os.readlink(file):
                    total += 512 * file.stat().st_blocks
    return total


def resident_mb(*titles: str) -> dict[str, float]:
    """Resident memory of this process and of Ray's processes by a part of their title."""
    found = {"this process, MB": psutil.Process().memory_info().rss / 1e6, **{f"{t}, MB": 0.0 for t in titles}}
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            told = " ".join(process.cmdline())
            for title in titles:
                if title in told:
                    found[f"{title}, MB"] += process.memory_info().rss / 1e6
    return found


def memory(folder: str, rows: int) -> list[dict[str, Any]]:
    """Every tenth of the run: the most that was held since the last, against 3 x prefetch x micro-batch."""
    from pipelines.loading.ray_loader import iterate

    settings = LoaderSettings(max_decoders=2, read_ahead_rows=16)
    prefetch = rows_ahead(1, settings)
    (shard,) = open_loader(tiny_plan(folder, rows, 1, side=256, frames=17), 1, rows, settings)
    out, peak, before = [], 0.0, store_bytes()
    for number, batch in enumerate(iterate(shard), 1):
        peak = max(peak, batch.bytes_ahead)
        time.sleep(0.05)  # a training step: the loader runs up to its bound
        if number % max(1, rows // 10) == 0:
            stored, bound = store_bytes() - before, 3 * prefetch * batch.nbytes
            out.append(
                {
                    "rows": number, "decoded and waiting, MB": peak / 1e6, "object store so far, MB": stored / 1e6,
                    "3 x prefetch x micro-batch, MB": bound / 1e6, "of it": stored / bound,
                    **resident_mb("load_row", "ray::IDLE"),
                }
            )  # fmt: skip
            peak = 0.0
    return out


def ahead(folder: str, rows: int) -> list[dict[str, Any]]:
    """The whole loader and a consumer that stops now and then."""
    from pipelines.loading.ray_loader import iterate

    settings = LoaderSettings(max_decoders=2, read_ahead_rows=64)
    (shard,) = open_loader(tiny_plan(folder, rows, 1), 1, rows, settings)
    return watched(iterate(shard), rows, rows_ahead(1, settings))


def places(folder: str, rows: int) -> list[dict[str, Any]]:
    """The loader without its decode tasks, a tenth of the cost: the rows are read from the plan, held back by the clock
    and handed out."""
    from pipelines.loading import clock, ray_loader

    bound = rows_ahead(1, LoaderSettings(read_ahead_rows=64))
    handle, _ = clock.start(1, bound)
    source = ray_loader.PlanRows(tiny_plan(folder, rows, 1), 1, ONE, 0, rows, handle)
    (shard,) = ray_loader.split(ray_loader.read_places(source), 1)

    def taken() -> Iterator[None]:
        number = 0
        while number < rows:  # a pass is a segment
            for _ in shard.iter_batches(batch_size=1, batch_format="pyarrow", prefetch_batches=1):
                number += 1
                handle.take.remote(0, number)
                yield

    return watched(taken(), rows, bound)


def watched(taken: Iterator[Any], rows: int, bound: int) -> list[dict[str, Any]]:
    """Takes all rows, stops for a second a hundred times. By tenth: the most rows made and not taken, and memory."""
    out, most, began = [], 0, time.perf_counter()
    for number, _ in enumerate(taken, 1):
        if number % max(1, rows // 100) == 0:
            time.sleep(1.0)
            state = clock_state()
            most = max(most, state.made - sum(state.taken))
        if number % max(1, rows // 10) == 0:
            told = {"rows": number, "most rows ahead": most, "bound": bound}
            out.append(told | resident_mb("SplitCoordinator", "RowClock") | {"seconds": time.perf_counter() - began})
            print(out[-1], flush=True)
            most = 0
    return out


def ranks(folder: str, rows: int, count: int) -> list[dict[str, Any]]:
    """Rows per second handed to `count` ranks that do nothing with them."""
    from pipelines.loading.ray_loader import iterate

    out = []
    for many in sorted({1, count}):
        where = os.path.join(folder, str(many))
        steps = max(2, rows // many)
        plan = tiny_plan(where, steps, many)
        shards = open_loader(plan, many, steps, LoaderSettings(max_decoders=2, read_ahead_rows=4 * many))
        lock, taken, times = threading.Lock(), [0], []

        def consume(shard: Any, lock: Any = lock, taken: Any = taken, times: Any = times) -> None:
            for _ in iterate(shard):
                with lock:
                    taken[0] += 1
                    times.append(time.perf_counter())

        with ThreadPoolExecutor(many) as pool:
            list(pool.map(consume, shards))
        first = len(times) // 4  # the start of the processes is not counted
        speed = (len(times) - 1 - first) / (times[-1] - times[first])
        out.append({"data ranks": many, "rows": len(times), "rows/s": speed, "ms per row": 1000 / speed})
    return out


def index_sizes(folder: str, clips: str, sizes: list[int], count: int) -> list[dict[str, Any]]:
    """CPU milliseconds of a row for indexes of several sizes, measured in turns.

    All rows are one real clip and one task, so that rows differ in nothing but their place in the plan.
    """
    clip, plans = videos_below(clips, 49)[:1], []
    for size in sizes:
        root = make_root(clip, os.path.join(folder, f"root-{size}"))
        enlarge(root, size)
        where = os.path.join(folder, f"plan-{size}")
        plans.append(make_plan(root, where, 1_000_000, 112, 49, 832 * 480, pretext={"tube_shuffle": 1}))
        shutil.rmtree(os.path.join(root, "index"))
        print(f"{size} rows: compiled", flush=True)
    whole: dict[int, list[float]] = {size: [] for size in sizes}
    own: dict[int, list[float]] = {size: [] for size in sizes}
    rng = np.random.default_rng(0)
    for number in range(count + 5):
        for size, plan in zip(sizes, plans, strict=True):
            step, rank = int(rng.integers(1_000_000)), int(rng.integers(112))
            before = time.thread_time()
            build_row(plan, step, 0, rank, 112, ONE)
            middle = time.thread_time()
            plan.sample(plan[int(rng.integers(1_000_000))].slots[rank].sample)
            if number >= 5:
                whole[size].append(1000 * (middle - before))
                own[size].append(1000 * (time.thread_time() - middle))
    base = statistics.median(whole[sizes[0]])
    return [
        {
            "rows in the index": size, "CPU ms of a row": statistics.median(whole[size]),
            "against the smallest": statistics.median(whole[size]) / base,
            "a global batch of 112 and its sample, CPU ms": statistics.median(own[size]),
        }
        for size in sizes
    ]  # fmt: skip


def enlarge(root: str, size: int) -> None:
    """Make an index of `size` rows out of a small one: the same media under new keys."""
    part = storage.list_files(storage.join(root, "index", DATASET), ".parquet")[0]
    small = storage.read_part(part, tables.INDEX)
    metadata = pq.read_schema(part).metadata
    storage.remove(part)
    with pq.ParquetWriter(os.path.join(root, "selections", "all", "selection.parquet"), tables.SELECTION) as selection:
        for first in range(0, size, 250_000):
            numbers = np.arange(first, min(size, first + 250_000))
            table = small.take(pa.array(numbers % small.num_rows))
            digests = pa.array([n.to_bytes(32, "big") for n in numbers.tolist()], tables.DIGEST)
            for name, values in (
                ("key", pa.array([f"clips-{n:09d}" for n in numbers.tolist()])),
                ("sample_digest", digests),
                ("source_group", pa.array(numbers)),
            ):
                table = table.set_column(table.schema.get_field_index(name), table.schema.field(name), values)
            storage.write_part(
                storage.join(root, "index", DATASET), table.replace_schema_metadata(metadata), f"{first:09d}"
            )
            kept = {"decision": ["kept"] * len(numbers), "reasons": [[]] * len(numbers)}
            selection.write_table(
                pa.table(
                    [pa.array(kept[f.name], f.type) if f.name in kept else table[f.name].cast(f.type)
                     for f in tables.SELECTION],
                    schema=tables.SELECTION,
                )
            )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("memory", "ahead", "places", "ranks", "index"))
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--ranks", type=int, default=64)
    parser.add_argument("--clips")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 1_000_000])
    parser.add_argument("--count", type=int, default=60, help="rows timed for each size of the index")
    parser.add_argument("--out")
    options = parser.parse_args()
    if options.what != "index":
        cluster_session.connect(RaySettings(num_cpus=4, object_store_mb=1500))
    with tempfile.TemporaryDirectory() as folder:
        if options.what == "index":
            if not options.clips:
                parser.error("index needs --clips")
            rows = index_sizes(folder, options.clips, options.sizes, options.count)
        elif options.what == "ranks":
            rows = ranks(folder, options.rows, options.ranks)
        else:
            rows = {"memory": memory, "ahead": ahead, "places": places}[options.what](folder, options.rows)
        report(rows, options.out)


if __name__ == "__main__":
    main()
