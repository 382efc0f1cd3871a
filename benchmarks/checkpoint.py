"""How long training pauses for a checkpoint, written at once and written in the background.

    torchrun --nproc-per-node 2 benchmarks/checkpoint.py --mib 256 --folder /some/disk
    torchrun --nproc-per-node 8 benchmarks/checkpoint.py --mib 4096 --folder /shared/disk     # on GPUs

Each rank holds `--mib` MiB of sharded float32 tensors, as a training state does. Between two saves the rank computes
until the save before is on the disk, as training does for much longer. The pause is that of the slowest rank; the
first save in the background allocates the host buffers, and is told apart. In the background the pause is what training
is held up in the call and before the next update of the weights, which waits for the copies. Also said: how much slower
the computing is while a checkpoint is being copied and written behind it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Mapping

import torch
from torch.distributed.tensor import Shard, distribute_tensor

from pipelines.train import checkpoint, parallel
from pipelines.train.parallel import World
from pipelines.train.saver import Saver

TENSORS = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=256, help="state per rank")
    parser.add_argument("--step", type=float, default=1.0, help="seconds of forward and backward before an update")
    parser.add_argument("--saves", type=int, default=5)
    parser.add_argument("--folder", default=None, help="where checkpoints go; default: a temporary folder")
    args = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    world = parallel.join()
    rows = args.mib * 2**20 // 4 // TENSORS // 1024 * world.size
    state = {
        f"model.{i}": distribute_tensor(torch.full((rows, 1024), float(i)), world.mesh, [Shard(0)])
        for i in range(TENSORS)
    }
    with tempfile.TemporaryDirectory(dir=args.folder) as scratch:
        run = world.agree(scratch)
        at_once, _, _ = pauses(world, f"{run}/sync", state, args.saves, False, args.step)
        behind, alone, beside = pauses(world, f"{run}/async", state, args.saves, True, args.step)
    if world.first:
        usual, later = statistics.median(at_once), statistics.median(behind[1:])
        print(f"{world.size} ranks on {world.device.type}, {args.mib} MiB each, {args.saves} saves of each kind")
        print("| what | seconds |\n| --- | ---: |")
        print(f"| pause, written at once (median) | {usual:.3f} |")
        print(f"| pause, in the background, first save | {behind[0]:.3f} |")
        print(f"| pause, in the background, later saves (median) | {later:.3f} |")
        print(f"| later saves against written at once | {later / usual:.1%} |")
        print(f"| computing while a checkpoint is written, against computing alone | {beside / alone:.2f} times |")


def pauses(
    world: World, run: str, state: Mapping[str, torch.Tensor], saves: int, background: bool, step_seconds: float
) -> tuple[list[float], float, float]:
    """Seconds that each save held up the slowest rank; seconds per unit of computing alone, and beside a save."""
    saver = Saver(run, None, background, lambda: None, lambda *_: None)
    alone = statistics.median(compute(world.device) for _ in range(20))
    found, beside = [], []
    for step in range(1, saves + 1):
        world.barrier()
        began = time.monotonic()
        saver.save(step, state, {"step": step})
        mine = time.monotonic() - began
        if background:
            while time.monotonic() - began < step_seconds:  # forward and backward
                beside.append(compute(world.device))
            held = time.monotonic()
            saver.ready()  # here the optimizer would change the weights
            mine += time.monotonic() - held
        while saver.busy:
            beside.append(compute(world.device))
        saver.wait()
        found.append(max(world.gather(mine)))
        if world.first:
            checkpoint.prune(run, 1)
    return found, alone, statistics.median(beside) if beside else alone


def compute(device: torch.device) -> float:
    """Seconds of a fixed piece of arithmetic."""
    began = time.monotonic()
    a = torch.ones(512, 512, device=device)
    for _ in range(8):
        a = a @ a / 512
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.monotonic() - began


if __name__ == "__main__":
    main()
