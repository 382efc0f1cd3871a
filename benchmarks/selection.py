"""Seconds and memory of `sama select` on a synthetic data root: index and signals, no media.

    python benchmarks/selection.py [--rows 10000000] [--datasets 5] [--root FOLDER]

The root is written first (not measured; kept and used again with --root). Then one process selects from it with the
default rules. Signals lie in another order than the index, as curation leaves them.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipelines.samples import index as indexes
from pipelines.samples import storage, tables

PART = 250_000  # rows of one part
CATEGORIES = ("add", "remove", "replace", "style", "background")


def write_root(root: str, rows: int, datasets: int) -> None:
    indexes.open_root(root, 0.01)
    rng = np.random.default_rng(0)
    each = rows // datasets
    for d in range(datasets):
        name = f"set-{d}"
        for start in range(0, each, PART):
            count = min(PART, each - start)
            digests = digests_of(rng, count)
            table = index_part(name, d * each + start, digests, rng)
            storage.write_part(storage.join(root, "index", name), table, f"{start:09d}")
            order = rng.permutation(count)
            signals = signals_part(digests.take(pa.array(order)), rng)
            storage.write_part(storage.join(root, "signals", name), signals, f"{rng.integers(2**62):016x}")


def digests_of(rng: np.random.Generator, count: int) -> pa.Array:
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(32), count, [None, pa.py_buffer(rng.bytes(32 * count))])


def index_part(dataset: str, first: int, digests: pa.Array, rng: np.random.Generator) -> pa.Table:
    """A part of plausible 480p pairs; one in fifty has another length."""
    count = len(digests)
    frames = rng.integers(49, 101, count)
    category = pa.array(CATEGORIES).take(pa.array(rng.integers(0, 5, count)))
    values: dict[str, pa.Array] = {
        "key": pa.array([f"{dataset}-{first + i:08d}" for i in range(count)]), "sample_digest": digests,
        "dataset": pa.array([dataset] * count), "kind": pa.array(["video_edit"] * count), "category": category,
        "split": pa.array(["train"] * count), "source_group": pa.array(rng.integers(0, 2**60, count)),
        "motion_preserving": pa.array(np.ones(count, bool)), "pairing": pa.array(["index"] * count),
        "instruction": pa.array(["Replace the dog by a cat and keep the rest."] * count),
    }  # fmt: skip
    for side in ("source", "target"):
        values |= {f"{side}_{n}": pa.array(np.full(count, v)) for n, v in (("width", 832), ("height", 480))}
        values |= {f"{side}_sha256": digests_of(rng, count), f"{side}_fps": pa.array(np.full(count, 16.0))}
        values[f"{side}_frames"] = pa.array(frames - (rng.random(count) < 0.02 if side == "target" else 0))
    columns = {}
    for field in tables.INDEX:
        columns[field.name] = (
            values[field.name].cast(field.type) if field.name in values else pa.nulls(count, field.type)
        )
    return pa.table(columns)


def signals_part(digests: pa.Array, rng: np.random.Generator) -> pa.Table:
    """Signals of clips most of which pass."""
    from pipelines.curate.signals import SIGNALS_VERSION

    count = len(digests)

    def near(mean: float, spread: float) -> pa.Array:
        return pa.array(rng.normal(mean, spread, count).astype(np.float32))

    borders = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(4 * count, np.int32)), 4)
    cuts = rng.random(count) < 0.05
    offsets = pa.array(np.concatenate([[0], np.cumsum(cuts)]), pa.int32())
    values: dict[str, pa.Array] = {
        "sample_digest": digests, "signals_version": pa.array(np.full(count, SIGNALS_VERSION), pa.int16()),
        "status": pa.array(["ok"] * count), "created_at": pa.array(np.full(count, 1_700_000_000_000_000)),
        "mad": near(20, 4), "changed_area": near(0.2, 0.05), "motion_source": near(3, 0.5),
        "motion_target": near(3, 0.5),
        "motion_ratio": near(1, 0.2), "blur_source": near(0.2, 0.05), "blur_target": near(0.3, 0.12),
        "structure_kept": near(0.95, 0.1), "text_strokes_source": near(0.1, 0.03),
        "text_strokes_target": near(0.1, 0.03), "static": pa.array(np.zeros(count, bool)),
        "black_border_source": borders, "black_border_target": borders,
    }  # fmt: skip
    for side in ("source", "target"):
        values[f"shot_cuts_{side}"] = pa.ListArray.from_arrays(
            offsets, pa.array(np.full(int(cuts.sum()), 9), pa.int32())
        )
    columns = {}
    for field in tables.SIGNALS:
        columns[field.name] = (
            values[field.name].cast(field.type) if field.name in values else pa.nulls(count, field.type)
        )
    return pa.table(columns)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--datasets", type=int, default=5)
    parser.add_argument("--root")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        from pipelines.curate.select import select

        began, cpu = time.monotonic(), time.process_time()
        summary = select(options.root, f"bench-{time.time_ns()}")
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        facts = {"seconds": time.monotonic() - began, "cpu_seconds": time.process_time() - cpu, "peak_gib": peak}
        print(json.dumps(facts | {"decisions": summary["decisions"]}))
        return
    with tempfile.TemporaryDirectory() as folder:
        root = options.root or folder
        if not (Path(root) / "root.json").exists():
            write_root(root, options.rows, options.datasets)
        command = [sys.executable, __file__, "--measure", "--root", root]
        facts = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    rows = sum(facts["decisions"].values())
    print(
        f"{rows} rows: {facts['seconds']:.1f} s ({facts['cpu_seconds']:.1f} s of CPU), {facts['peak_gib']:.2f} GiB peak"
    )
    print(facts["decisions"])


if __name__ == "__main__":
    main()
