"""What our training loop adds to a step, what EMA costs, and how much of a wait for data is left to see.

    python benchmarks/train_step.py                       # preset tiny on this machine
    python benchmarks/train_step.py --preset wan2.1-t2v-1.3b --frames 81 --height 480 --width 832   # on a GPU
    torchrun --nproc-per-node 8 benchmarks/train_step.py --preset wan2.1-t2v-14b ...

Weights are random and batches are made up: nothing is loaded and Ray is not needed. Steps of our loop and of a bare
one alternate in one run, on the same model and the same batch in memory; the ratio is of their medians.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator

import numpy as np
import torch

from pipelines.config import TrainSettings
from pipelines.loading import MicroBatch
from pipelines.planner.devices import forward_flops
from pipelines.train import parallel, parallel_model
from pipelines.train.callbacks import Book
from pipelines.train.ema import Ema
from pipelines.train.loop import Parts, train_step
from pipelines.train.prefetch import Ahead
from pipelines.train.speed import PARTS, peak_flops
from sama.checkpoints import transformer_config
from sama.objective import EncodedBatch, TimestepSampler, losses
from sama.presets import get_preset
from sama.randomness import normal
from sama.transformer import SamaTransformer
from sama.video import Bucket


def main() -> None:
    args = parse()
    world = parallel.join()
    if world.device.type == "cpu":
        torch.set_num_threads(args.threads)
    parts = assemble(args, world)
    tokens = get_preset(args.preset).tokens(args.frames, args.height, args.width)
    rows = [("tokens per device", f"{tokens}"), ("device", device_name(world))]
    with tempfile.TemporaryDirectory() as run:
        rows += loop_against_bare(parts, args, run)
        if world.device.type == "cuda":
            rows += on_device(parts, args, tokens)
        rows += exposed_wait(args)
    if world.first:
        print("\n| what | value |\n| --- | ---: |")
        for name, value in rows:
            print(f"| {name} | {value} |")


def assemble(args: argparse.Namespace, world: parallel.World) -> Parts:
    """A random model of the preset, sharded, with optimizer and EMA, and a batch that is encoded already."""
    how = TrainSettings(
        precision=args.precision,
        activation_checkpointing=args.checkpointing,
        attention=args.attention,
        compile=args.compile,
        warmup_steps=0,
    )
    with torch.device("meta"):
        model = SamaTransformer(**transformer_config(get_preset(args.preset)))
    model.train()
    parallel_model.parallelize(model, world, how)
    model.to_empty(device=world.device)
    model.reset_buffers(world.device)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            one = parallel.local(parameter)
            one.normal_(0.0, 0.02) if parameter.ndim > 1 else one.fill_(float("norm" in name and "weight" in name))
    optimizer = torch.optim.AdamW(model.parameters(), lr=how.lr, fused=True)
    encoded = made_up(args, world)
    return Parts(
        run="benchmark",
        settings=how,
        world=world,
        model=model,
        ema=Ema(model, how.ema_decay),
        optimizer=optimizer,
        sampler=TimestepSampler(),
        encode=lambda batch: encoded,
        steps=1 << 40,
        tasks=["edit"],
        loss_weight={"video": 1.0},
    )


def made_up(args: argparse.Namespace, world: parallel.World) -> EncodedBatch:
    preset = get_preset(args.preset)
    shape = preset.latent_shape(args.frames, args.height, args.width)

    def draw(purpose: str, *sizes: int) -> torch.Tensor:
        return normal(7 + world.rank, purpose, sizes)[None].to(world.device)

    return EncodedBatch(
        draw("latents", *shape), draw("source", *shape), draw("text", preset.text_max_length, preset.text_dim),
        draw("semantic", preset.semantic_tokens, preset.semantic_dim), [7 + world.rank],
        torch.ones(1, device=world.device),
    )  # fmt: skip


def batches(parts: Parts) -> Iterator[MicroBatch]:
    """Endless micro-batches without pixels."""
    step, none = parts.progress.step, np.zeros((1, 0, 0, 0, 3), np.uint8)
    while True:
        yield MicroBatch(
            step=step, micro=0, rank=parts.world.data_rank, stream="video", bucket=Bucket(1, 8, 8), source=none,
            target=none, prompts=[""], tasks=["edit"], keys=["made-up"], datasets=[""], categories=[""],
            slots=np.zeros(1, np.int32), starts=np.zeros(1, np.int32), seeds=np.ones(1, np.int64),
            weights=np.ones(1, np.float32), drop_source=np.zeros(1, bool), real_global_batch=parts.world.data_size,
            micro_steps=1,
        )  # fmt: skip
        step += 1


def loop_against_bare(parts: Parts, args: argparse.Namespace, run: str) -> list[tuple[str, str]]:
    """Steps of both loops, taking turns."""
    book = Book(run, 0, None, print_lines=False) if parts.world.first else None
    feed = batches(parts)
    ours, bare, averaging = [], [], []
    for number in range(args.steps + args.warmup):
        began = now(parts.world)
        row, notes = train_step(parts, feed)
        parts.progress.step += 1
        if book is not None:
            book(parts, row, notes)
        middle = now(parts.world)
        spent = bare_step(parts)
        end = now(parts.world)
        if number >= args.warmup:
            ours.append(middle - began)
            bare.append(end - middle)
            averaging.append(spent)
    if book is not None:
        book.file.close()
    ratio = statistics.median(ours) / statistics.median(bare)
    return [
        ("seconds per step, our loop", f"{statistics.median(ours):.4f}"),
        ("seconds per step, bare loop", f"{statistics.median(bare):.4f}"),
        ("our loop over the bare one", f"{ratio:.3f} x"),
        ("EMA, share of a step", f"{statistics.median(averaging) / statistics.median(bare):.2%}"),
    ]


def bare_step(parts: Parts) -> float:
    """What any loop must do. Returns the seconds of the EMA update."""
    encoded = parts.encode(None)  # type: ignore[arg-type]
    parts.optimizer.zero_grad(set_to_none=True)
    losses(parts.model, encoded, parts.sampler, parts.settings.semantic_weight).total.sum().backward()
    torch.nn.utils.clip_grad_norm_(parts.model.parameters(), parts.settings.grad_clip)
    parts.optimizer.step()
    began = now(parts.world)
    parts.ema.update()
    return now(parts.world) - began


def on_device(parts: Parts, args: argparse.Namespace, tokens: int) -> list[tuple[str, str]]:
    """The split of a step, MFU and peak memory on a GPU."""
    torch.cuda.reset_peak_memory_stats()
    feed, rows = batches(parts), []
    for _ in range(args.steps):
        rows.append(train_step(parts, feed)[0])
        parts.progress.step += 1
    found = [(f"seconds, {p}", f"{statistics.median(r[f'time/{p}'] for r in rows):.3f}") for p in PARTS]
    peak, seconds = peak_flops(parts.world.device), [r["time/forward"] + r["time/backward"] for r in rows]
    if peak is not None:
        work = 3 * forward_flops(parts.model.config, tokens, get_preset(args.preset).text_max_length)
        found.append(("mfu_model", f"{work / (peak * statistics.median(seconds)):.1%}"))
    return [*found, ("peak memory", f"{torch.cuda.max_memory_allocated() / 1e9:.1f} GB allocated")]


def exposed_wait(args: argparse.Namespace) -> list[tuple[str, str]]:
    """A step that sleeps, fed by a loader that alone is twice as fast."""
    made, taken = args.sleep / 2, args.sleep

    def produce() -> Iterator[int]:
        for number in range(args.waits):
            time.sleep(made)
            yield number

    source = Ahead(produce)
    next(source)
    waited = 0.0
    for _ in range(args.waits - 1):
        began = time.perf_counter()
        next(source)
        waited += time.perf_counter() - began
        time.sleep(taken)
    source.close()
    return [("data wait, share of a step, loader twice as fast", f"{waited / ((args.waits - 1) * taken):.2%}")]


def now(world: parallel.World) -> float:
    if world.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def device_name(world: parallel.World) -> str:
    name = torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else "CPU"
    return f"{world.size} x {name}"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--frames", type=int, default=29)
    parser.add_argument("--height", type=int, default=128)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--precision", default=None, choices=["float32", "bfloat16"])
    parser.add_argument("--checkpointing", default="none", choices=["none", "block", "selective"])
    parser.add_argument("--attention", default=None, help="one of diffusers' attention backends")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--sleep", type=float, default=0.05)
    parser.add_argument("--waits", type=int, default=100)
    args = parser.parse_args()
    args.precision = args.precision or ("bfloat16" if torch.cuda.is_available() else "float32")
    return args


if __name__ == "__main__":
    main()
