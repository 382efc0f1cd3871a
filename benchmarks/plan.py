"""Compile, open and read a batch plan over a synthetic index of real columns, up to 10 million rows.

    python benchmarks/plan.py                        # 1 thousand to 10 million rows; needs some 12 GB of disk
    python benchmarks/plan.py --rows 1000 1000000
    python benchmarks/plan.py --folder FOLDER        # keep the data roots there, and use those that are there

Everything runs in a process of its own. Compile: wall seconds, peak resident set. Open: seconds of `BatchPlan.open`
after the imports, and of the whole process; private memory (pages of no file) of the whole process after its first
batch. plan[k]: 300 random steps of 1,000,000, each read once, image batches of 448 and video batches of 112; the
median and the 99th percentile of milliseconds. Share error: the largest of any source over 10,000 batches of its
stream, counted slot by slot, and the largest on the way from the 100th batch on. At the end all plans are read in turns
by one process: does the size of the index matter?
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.samples import index, storage, tables

PART = 250_000  # rows of an index part
STEPS = 1_000_000
IMAGES = ("image-a", "image-b", "image-c", "image-d", "image-e")
VIDEOS = ("clips-a", "clips-b", "edits-a", "edits-b", "edits-c")
SIZES = ((832, 480), (480, 832), (640, 640), (1280, 720), (720, 960))
WORDS = ("make", "the", "sky", "a", "red", "car", "remove", "watercolor", "behind", "dog", "brighter", "street")


def mixture() -> dict[str, Any]:
    """Ten sources with weights that no small fraction meets."""
    weights = (0.317, 0.211, 0.193, 0.1501, 0.1289)
    streams = {
        name: [{"dataset": d, "selection": "all", "weight": w} for d, w in zip(sets, weights, strict=True)]
        for name, sets in (("image", IMAGES), ("video", VIDEOS))
    }
    pretext = {"none": 1, "cube_inpainting": 2, "speed": 3, "tube_shuffle": 4}
    return {
        "schema": "sama.mixture/1", "name": "synthetic", "stage": 0, "steps": STEPS,
        "streams": {
            "image": {"global_batch": 448, "sources": streams["image"]},
            "video": {"global_batch": 112, "window": "random", "pretext": pretext, "sources": streams["video"]},
        },
    }  # fmt: skip


def make_root(root: Path, rows: int) -> None:
    """An index of `rows` rows in ten datasets with all columns of the schema, and a selection that keeps 9 in 10."""
    index.open_root(str(root), heldout_share=0.01)
    rng = np.random.default_rng(rows)
    where = root / "selections" / "all" / "selection.parquet"
    where.parent.mkdir(parents=True)
    with pq.ParquetWriter(where, tables.SELECTION, compression="zstd") as selection:
        for dataset in IMAGES + VIDEOS:
            for first in range(0, rows // 10, PART):
                part = make_part(dataset, first, min(PART, rows // 10 - first), rng)
                storage.write_part(str(root / "index" / dataset), part, f"{first:09d}")
                selection.write_table(decide(part, rng))


def make_part(dataset: str, first: int, count: int, rng: np.random.Generator) -> pa.Table:
    kind = "image_edit" if dataset in IMAGES else "text_to_video" if dataset.startswith("clips") else "video_edit"
    sentences = np.asarray([" ".join(rng.choice(WORDS, 14)) for _ in range(4096)], object)
    numbers = np.arange(first, first + count)
    sizes = np.asarray(SIZES, np.int16)[rng.integers(len(SIZES), size=count)]
    columns: dict[str, Any] = {
        "key": [f"{dataset}-{n:09d}" for n in numbers.tolist()],
        "dataset": words(dataset, count), "kind": words(kind, count), "language": words("en", count),
        "category": pa.array(np.asarray(tables.CATEGORIES, object)[rng.integers(11, size=count)]),
        "license": words("CC-BY-4.0", count),
        "split": pa.array(np.asarray(["train", "heldout"], object)[(rng.random(count) < 0.01).astype(int)]),
        "source_group": pa.array(rng.integers(2**62, size=count)), "motion_preserving": pa.array(np.ones(count, bool)),
        "skip_head": pa.array(np.zeros(count, np.int16)), "skip_tail": pa.array(np.zeros(count, np.int16)),
        "pairing": words("index", count), "upstream_id": [str(n) for n in numbers.tolist()],
        "json_offset": pa.array(numbers * 200_000), "json_size": pa.array(np.full(count, 900)),
        "instruction" if kind != "text_to_video" else "caption": pa.array(sentences[rng.integers(4096, size=count)]),
        "sample_digest": random_digests(count, rng),
    }  # fmt: skip
    shards = np.asarray([f"{dataset}/{n:05d}.tar" for n in range(first // 1000, (first + count) // 1000 + 1)], object)
    for side in ("target",) if kind == "text_to_video" else ("source", "target"):
        columns |= {
            f"{side}_uri": pa.array(shards[(numbers - first) // 1000]),
            f"{side}_offset": pa.array(numbers * 200_000), f"{side}_size": pa.array(rng.integers(10**5, size=count)),
            f"{side}_sha256": random_digests(count, rng),
            f"{side}_width": pa.array(sizes[:, 0]), f"{side}_height": pa.array(sizes[:, 1]),
            f"{side}_fps": pa.array(np.full(count, 0 if kind == "image_edit" else 24, np.float32)),
            f"{side}_frames": pa.array(np.full(count, 1) if kind == "image_edit" else rng.integers(20, 200, count)),
            f"{side}_codec": words("h264", count), f"{side}_has_audio": pa.array(np.zeros(count, bool)),
        }  # fmt: skip
    return pa.table(
        [
            pa.array(columns[f.name]).cast(f.type) if f.name in columns else pa.nulls(count, f.type)
            for f in tables.INDEX
        ],
        schema=tables.INDEX,
    )


def words(word: str, count: int) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(count, np.int32)), [word])


def random_digests(count: int, rng: np.random.Generator) -> pa.Array:
    return pa.FixedSizeBinaryArray.from_buffers(tables.DIGEST, count, [None, pa.py_buffer(rng.bytes(32 * count))])


def decide(part: pa.Table, rng: np.random.Generator) -> pa.Table:
    count = part.num_rows
    kept = rng.random(count) < 0.9
    reasons = pa.ListArray.from_arrays(
        np.concatenate([[0], np.cumsum(~kept)]).astype(np.int32), ["low"] * (~kept).sum()
    )
    decision = pa.array(np.asarray(["rejected", "kept"], object)[kept.astype(int)])
    given = {"decision": decision, "reasons": reasons}
    return pa.table(
        [pa.array(given[f.name]).cast(f.type) if f.name in given else part[f.name] for f in tables.SELECTION],
        schema=tables.SELECTION,
    )


def compile_(root: str, out: str) -> dict[str, float]:
    from pipelines.mixture import BatchPlan

    began = time.perf_counter()
    plan = BatchPlan.from_file(f"{root}/mixture.json", data=root)
    compiled = time.perf_counter() - began
    plan.save(out)
    size = sum(f.stat().st_size for f in Path(out).iterdir())
    return {
        "compile_s": compiled, "and_save_s": time.perf_counter() - began, "disk_gb": size / 1e9,
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
    }  # fmt: skip


def open_(out: str) -> dict[str, float]:
    from pipelines.mixture import BatchPlan

    began = time.perf_counter()
    plan = BatchPlan.open(out)
    opened = time.perf_counter() - began
    _ = plan[STEPS // 2].slots[0], plan.sample(0)
    rollup = Path("/proc/self/smaps_rollup").read_text().split()
    private_mb = int(rollup[rollup.index("Anonymous:") + 1]) / 1e3  # what is not a page of some file
    return {"open_s": opened, "process_s": time.time() - psutil.Process().create_time(), "private_mb": private_mb}


def read_(out: str) -> dict[str, float]:
    from pipelines.mixture import BatchPlan

    plan = BatchPlan.open(out)
    found: dict[str, float] = {}
    for stream in ("image", "video"):
        rng = np.random.default_rng(0)
        steps = [s for s in rng.integers(STEPS, size=1200).tolist() if plan.place(s)[0] == stream][:320]
        times = []
        for step in steps:
            began = time.perf_counter()
            batch = plan[step]
            times.append(1000 * (time.perf_counter() - began))
            assert len(batch.slots) == plan.mixture.stream(stream).global_batch
        found |= {
            f"{stream}_ms": float(np.median(times[20:])),
            f"{stream}_p99_ms": float(np.quantile(times[20:], 0.99)),
        }
    return found


def flat_(*outs: str) -> dict[str, float]:
    """Median milliseconds of an image batch of each plan, all in one process that takes them in turns."""
    from pipelines.mixture import BatchPlan

    plans = [BatchPlan.open(out) for out in outs]
    steps = [s for s in np.random.default_rng(1).integers(STEPS, size=1600).tolist() if plans[0].place(s)[0] == "image"]
    times: list[list[float]] = [[] for _ in outs]
    for step in steps:
        for plan, spent in zip(plans, times, strict=True):
            began = time.perf_counter()
            _ = plan[step]
            spent.append(1000 * (time.perf_counter() - began))
    names = [Path(out).name.removeprefix("plan-") for out in outs]
    return {name: float(np.median(spent[100:])) for name, spent in zip(names, times, strict=True)}


def shares_(out: str) -> dict[str, float]:
    """The largest distance between a source's share and its weight after 10,000 batches, and on the way."""
    from pipelines.mixture import BatchPlan

    plan = BatchPlan.open(out)
    long_run = short_run = 0.0
    for stream in ("image", "video"):
        weights = np.asarray([s.weight for s in plan.mixture.stream(stream).sources])
        of_group = np.asarray([g.source for g in plan.groups])
        firsts = np.asarray([g.first for g in plan.groups])
        taken, batches, step = np.zeros(len(weights)), 0, 0
        while batches < 10_000:
            if plan.place(step)[0] == stream:
                rows = plan.rows_at(step)
                taken += np.bincount(of_group[np.searchsorted(firsts, rows, "right") - 1], minlength=len(weights))
                batches += 1
                if batches >= 100:
                    error = float(np.abs(taken / taken.sum() - weights / weights.sum()).max())
                    short_run = max(short_run, error)
            step += 1
        long_run = max(long_run, error)
    return {"share_error_10k": long_run, "share_error_from_100": short_run}


def alone(what: str, *words: str) -> dict[str, float]:
    """Run a part of this file in a process of its own."""
    command = [sys.executable, __file__, "--part", what, *words]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1000, 100_000, 1_000_000, 10_000_000])
    parser.add_argument("--folder")
    parser.add_argument("--part", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        what, *given = options.part
        parts: dict[str, Callable[..., dict[str, float]]] = {
            "compile": compile_, "open": open_, "read": read_, "shares": shares_, "flat": flat_,
        }  # fmt: skip
        print(json.dumps(parts[what](*given)))
        return
    outs: list[str] = []
    with tempfile.TemporaryDirectory() as temporary:
        for rows in options.rows:
            root = Path(options.folder or temporary) / f"root-{rows}"
            if not (root / "mixture.json").exists():
                make_root(root, rows)
                (root / "mixture.json").write_text(json.dumps(mixture()))
            out = os.path.join(temporary, f"plan-{rows}")
            measured = alone("compile", str(root), out) | alone("open", out) | alone("read", out)
            measured |= alone("shares", out) if rows == max(options.rows) else {}
            print(f"{rows:>10} rows: " + ", ".join(f"{n} {v:.4g}" for n, v in measured.items()), flush=True)
            outs.append(out)
        side_by_side = alone("flat", *outs)
        print("image batch, in turns: " + ", ".join(f"{n} rows {v:.3f} ms" for n, v in side_by_side.items()))


if __name__ == "__main__":
    main()
