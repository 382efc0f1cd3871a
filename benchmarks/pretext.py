"""What each pretext task costs on a clip, as a multiple of one copy of the clip.

    OMP_NUM_THREADS=1 python benchmarks/pretext.py
    python benchmarks/pretext.py --frames 81 --height 480 --width 832

A copy is `frames.copy()` in the same process; tasks and copy take turns, 21 times, and the medians of the thread's CPU
time are compared, which other work on the machine disturbs least. The speed task is measured in both variants.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np

from sama.pretext import PERTURBATIONS, perturb


def cases(frames: np.ndarray) -> dict[str, Callable[[int], np.ndarray]]:
    """What is timed, by name; each takes the number of the turn, which seeds it."""

    def task(name: str, **options: object) -> Callable[[int], np.ndarray]:
        return lambda turn: perturb(name, frames, np.random.default_rng(turn), **options)

    found = {"copy": lambda turn: frames.copy()} | {name: task(name) for name in PERTURBATIONS}
    return found | {"speed (shorter)": task("speed", variant="shorter")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("frames", 49), ("height", 480), ("width", 832), ("turns", 21)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    shape = (options.frames, options.height, options.width, 3)
    frames = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    timed = cases(frames)
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    for turn in range(options.turns + 1):
        for name, run in timed.items():
            began = time.thread_time()
            run(turn)
            if turn:  # the first turn warms up
                seconds[name].append(time.thread_time() - began)
    copy = float(np.median(seconds["copy"]))
    print(f"{options.frames}x{options.height}x{options.width}, one copy: {1000 * copy:.1f} ms")
    for name, spent in seconds.items():
        print(f"{name:16} {1000 * np.median(spent):7.1f} ms  {np.median(spent) / copy:5.2f} copies")


if __name__ == "__main__":
    main()
