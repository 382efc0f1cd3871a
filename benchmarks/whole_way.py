"""How long each step of the whole way takes, and how much memory all its processes hold at the most.

    python benchmarks/whole_way.py                      # the procedural world
    python benchmarks/whole_way.py --clips FOLDER       # real clips
    python benchmarks/whole_way.py --short

Runs `sama demo` once in a temporary folder. Memory is the sum of proportional set sizes (shared pages
counted once) over the whole process tree, twice a second.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil


def tree_memory(root: psutil.Process) -> float:
    """Proportional set size of a process and all its descendants, bytes."""
    total = 0
    for process in [root, *root.children(recursive=True)]:
        try:
            total += process.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return total


def watch(pid: int, peak: list[float], stop: threading.Event) -> None:
    root = psutil.Process(pid)
    while not stop.wait(0.5):
        try:
            peak[0] = max(peak[0], tree_memory(root))
        except psutil.NoSuchProcess:
            return


def read(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def step_split(metrics: Path) -> dict[str, float]:
    """Mean seconds of each part of a step; the first steps, which warm up, are left out."""
    rows = read(metrics)[5:]
    parts = [name for name in rows[0] if name.startswith("time/")]
    return {name.removeprefix("time/"): sum(r[name] for r in rows) / len(rows) for name in parts}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips")
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--out", help="keep the demo's folder here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(options.out or Path(temporary) / "demo")
        command = [sys.executable, "-m", "pipelines.cli", "demo", "--out", str(out)]
        command += ["--clips", options.clips] if options.clips else []
        command += ["--short"] if options.short else []
        began = time.monotonic()
        process = subprocess.Popen(command, env={**os.environ, "PYTHONUNBUFFERED": "1"})
        peak, stop = [0.0], threading.Event()
        watcher = threading.Thread(target=watch, args=(process.pid, peak, stop))
        watcher.start()
        code = process.wait()
        stop.set()
        watcher.join()
        wall = time.monotonic() - began
        if code:
            sys.exit(f"sama demo ended with exit code {code}")
        rows = read(out / "timings.jsonl")
        splits = {stage: step_split(out / "runs" / stage / "metrics.jsonl") for stage in ("stage0", "stage1")}
    print(f"\n{platform.processor() or platform.machine()}, {os.cpu_count()} cores")
    print("| step | seconds | share |\n| --- | ---: | ---: |")
    for row in rows:
        print(f"| {row['step']} | {row['seconds']:.0f} | {row['seconds'] / wall:.0%} |")
    print(f"| whole | {wall:.0f} | 100% |")
    for stage, split in splits.items():
        print(f"{stage}, mean seconds of a step: " + ", ".join(f"{k} {v:.2f}" for k, v in split.items()))
    print(f"\npeak memory of all processes: {peak[0] / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
