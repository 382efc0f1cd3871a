"""`sama estimate` against what a training step really takes.

    python benchmarks/memory.py            # on this machine's CPU, or its GPU

Each case trains a few steps in a process of its own: random weights, a made-up batch, no encoders. Measured is the
peak of the process (CPU: resident memory beyond what the libraries take; GPU: what the allocator reserved).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

CASES = [  # heads, head dim, ffn, layers, frames, side, checkpointing, precision
    (8, 64, 2048, 8, 5, 128, "none", "float32"),
    (8, 64, 2048, 8, 17, 256, "none", "float32"),
    (8, 64, 2048, 8, 17, 256, "block", "float32"),
    (8, 64, 2048, 8, 17, 256, "selective", "float32"),
    (12, 64, 3072, 24, 1, 64, "block", "float32"),
]
STEPS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", type=int)
    args = parser.parse_args()
    if args.case is not None:
        print(json.dumps(measure(args.case)))
        return
    print("| model | clip | recomputation | precision | estimate | measured | estimate over measured |")
    print("| --- | --- | --- | --- | ---: | ---: | ---: |")
    for number, (heads, width, _, layers, frames, side, again, precision) in enumerate(CASES):
        found = in_a_process(number)
        print(
            f"| {layers} layers of {heads * width} | {frames}x{side}x{side} | {again} | {precision} | "
            f"{found['estimate'] / 1e6:.0f} MB | {found['measured'] / 1e6:.0f} MB | "
            f"{found['estimate'] / found['measured']:.2f} |",
            flush=True,
        )


def in_a_process(number: int) -> dict[str, float]:
    """Run one case. Freed memory goes back to the system at once, so that the peak is of what is alive."""
    env = {**os.environ, "MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    done = subprocess.run(
        [sys.executable, __file__, "--case", str(number)], env=env, check=True, stdout=subprocess.PIPE, text=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def measure(number: int) -> dict[str, float]:
    """{estimate, measured} in bytes."""
    import torch
    import train_step

    from pipelines.planner import memory
    from pipelines.planner.layout import Layout
    from pipelines.planner.model import Shape
    from pipelines.train import parallel
    from sama.presets import PRESETS, get_preset

    heads, width, ffn, layers, frames, side, again, precision = CASES[number]
    sizes = {"num_attention_heads": heads, "attention_head_dim": width, "ffn_dim": ffn, "num_layers": layers}
    tiny = get_preset("tiny")
    preset = replace(tiny, name="case", transformer={**tiny.transformer, **sizes})
    PRESETS["case"] = preset
    layout = Layout(1, checkpointing=again, precision=precision)
    cuda = torch.cuda.is_available()
    parts = memory.parts(
        preset, layout, [Shape("video", frames, side, side)], "cuda" if cuda else "cpu", accumulates=False
    )
    wanted = sum(p.bytes for p in parts if not p.allowance and p.name != "encoders")

    torch.set_num_threads(1)
    world = parallel.join()
    options = argparse.Namespace(
        preset="case", frames=frames, height=side, width=side, precision=precision, checkpointing=again,
        attention=None, compile=False,
    )  # fmt: skip
    before = resident()
    training = train_step.assemble(options, world)
    feed = train_step.batches(training)
    for _ in range(STEPS):
        train_step.train_step(training, feed)
        training.progress.step += 1
    if cuda:
        return {"estimate": wanted, "measured": float(torch.cuda.max_memory_reserved())}
    return {"estimate": wanted, "measured": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before}


def resident() -> float:
    """Bytes of this process in memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return float(pages * os.sysconf("SC_PAGE_SIZE"))


if __name__ == "__main__":
    main()
