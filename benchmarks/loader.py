"""Frames per second that reach the training process, beside what the same cores can decode at all.

    python benchmarks/loader.py --clips FOLDER [--workers 2] [--rounds 5] [--out loader.json]

The clips become a temporary data root and plan; everybody then delivers the same windows in the plan's order, scaled
to the bucket: `frames` of each clip, as many worker processes, warmed up, rounds interleaved, medians.

decord   the decode ceiling: a bare loop, one process per worker, decord decodes and resizes; nothing is delivered
own      the same bare loop with sama.video.decode
loader   sama's loader through Ray Data: decoded, perturbed, uint8, in the training process
wds      the webdataset library and PyTorch's DataLoader: decord decodes and resizes in workers, uint8, not perturbed
bytes    PyTorch's DataLoader: decord decodes, PIL resizes and numpy perturbs frame by frame, uint8
floats   PyTorch's DataLoader as trainers of this field write it: each frame is read by its number, resized and cropped
         with PIL, perturbed, and made a float32 tensor in [-1, 1] of its own; then they are stacked

CPU ms per frame counts all processes (Ray's own too): it says the same on a machine that others use as well, where
frames per second do not.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import psutil
import webdataset
from loader_data import make_plan, make_root, report, videos_below
from PIL import Image

from pipelines.config import LoaderSettings, RaySettings
from pipelines.config import MicroBatch as Sizes
from pipelines.mixture import BatchPlan
from pipelines.mixture.windows import file_frames
from pipelines.samples import shards, storage
from sama import video
from sama.media import centre_crop, cover_size

Item = tuple[tuple[str, int, int], list[int], tuple[int, int], tuple[int, int], str, int]


def items_of(plan: BatchPlan, count: int) -> list[Item]:
    """Place of the bytes, frame numbers, file size, bucket size, task and seed of the plan's first slots."""
    found: list[Item] = []
    for batch in plan:
        for slot in batch.slots:
            sample = plan.sample(slot.sample)
            place = (sample["target_uri"], sample["target_offset"], sample["target_size"])
            indices = file_frames(sample, "target", slot.start, batch.bucket.frames)
            size = (batch.bucket.height, batch.bucket.width)
            found.append((place, indices, (sample["height"], sample["width"]), size, slot.task, slot.seed))
            if len(found) == count:
                return found
    raise SystemExit("the plan is too short")


def with_decord(data: bytes, indices: list[int], native: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    import decord

    height, width = cover_size(*native, *size)
    reader = decord.VideoReader(io.BytesIO(data), width=width, height=height, num_threads=1)
    return reader.get_batch(indices).asnumpy()


# Bare loops: one process per worker, each every n-th item


def _bare(kind: str, items: list[Item], begin: Any, warm: int, spent: Any) -> None:
    before = 0.0
    for number, (place, indices, native, size, _, _) in enumerate(items):
        if number == warm:
            begin.wait()
            before = time.process_time()
        data = storage.read_range(*place)
        if kind == "decord":
            with_decord(data, indices, native, size)
        else:
            video.decode(data, indices, size)
    spent.put(time.process_time() - before)


def bare(kind: str, items: list[Item], workers: int, warm: int) -> tuple[float, float]:
    """Frames per second, and CPU seconds per frame, over the items behind the warm ones."""
    context = multiprocessing.get_context("spawn")
    begin, spent = context.Barrier(workers + 1), context.Queue()
    parts = [items[w::workers] for w in range(workers)]
    mine = [context.Process(target=_bare, args=(kind, part, begin, warm // workers, spent)) for part in parts]
    for process in mine:
        process.start()
    begin.wait()
    began = time.perf_counter()
    for process in mine:
        process.join()
        if process.exitcode:
            sys.exit(f"a bare {kind} process died")
    frames = sum(len(i[1]) for part in parts for i in part[warm // workers :])
    return frames / (time.perf_counter() - began), sum(spent.get() for _ in mine) / frames


# Loaders: each yields the frames of one clip; timed behind the warm ones


def timed(clips: Iterator[int], count: int, warm: int, strangers: set[int]) -> tuple[float, float]:
    for _ in range(warm):
        next(clips)
    began, before, frames = time.perf_counter(), cpu_seconds(strangers), 0
    for _ in range(count):
        frames += next(clips)
    return frames / (time.perf_counter() - began), (cpu_seconds(strangers) - before) / frames


def cpu_seconds(strangers: set[int]) -> float:
    """CPU time of this process and all below it but `strangers`."""
    me, total = psutil.Process(), 0.0
    for process in [me, *me.children(recursive=True)]:
        if process.pid not in strangers:
            with contextlib.suppress(psutil.Error):
                used = process.cpu_times()
                total += used.user + used.system
    return total


def through_loader(folder: str, steps: int, workers: int) -> Iterator[int]:
    from pipelines.loading.ray_loader import dataset, iterate, split

    settings = LoaderSettings(decode_cpus=1.0, max_decoders=workers, read_ahead_rows=8)
    (shard,) = split(dataset(folder, 1, Sizes(image=1, video=1), 0, steps, settings), 1)
    for batch in iterate(shard):
        yield batch.target.shape[0] * batch.target.shape[1]


def write_tars(items: list[Item], folder: str, workers: int) -> list[str]:
    """The same clips in the same order as webdataset wants them: one tar per worker, read to its end."""
    uris = []
    for w in range(workers):
        uri = os.path.join(folder, f"wds-{w}.tar")
        with shards.ShardWriter(uri) as writer:
            for number, (place, indices, native, size, _, _) in enumerate(items[w::workers]):
                told = json.dumps({"indices": indices, "native": native, "size": size}).encode()
                writer.add(f"{number:06d}", {"mp4": storage.read_range(*place), "json": told})
        uris.append(uri)
    return uris


def _decode_member(sample: dict[str, bytes]) -> Any:
    import torch

    told = json.loads(sample["json"])
    frames = with_decord(sample["mp4"], told["indices"], tuple(told["native"]), tuple(told["size"]))
    return torch.from_numpy(centre_crop(frames, *told["size"]))


def through_webdataset(uris: list[str], workers: int) -> Iterator[int]:
    from torch.utils.data import DataLoader

    data = webdataset.WebDataset(uris, shardshuffle=False, nodesplitter=None).map(_decode_member)
    for frames in DataLoader(data, batch_size=None, num_workers=workers, prefetch_factor=4):
        yield len(frames)


class ByFrame:
    """What one writes on the first day. floats: the frames leave as float32 in [-1, 1], else as uint8."""

    def __init__(self, items: list[Item], floats: bool) -> None:
        self.items, self.floats = items, floats

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, number: int) -> Any:
        import decord
        import torch

        place, indices, native, size, task, seed = self.items[number]
        reader = decord.VideoReader(io.BytesIO(storage.read_range(*place)), num_threads=1)
        height, width = cover_size(*native, *size)
        target = []
        read = (reader[i].asnumpy() for i in indices) if self.floats else reader.get_batch(indices).asnumpy()
        for frame in read:
            picture = Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC)
            left, top = (width - size[1]) // 2, (height - size[0]) // 2
            target.append(np.asarray(picture.crop((left, top, left + size[1], top + size[0]))))
        source = perturb_by_frame(target, task, np.random.default_rng(seed))
        if self.floats:
            return torch.stack([as_float(f) for f in source]), torch.stack([as_float(f) for f in target])
        return torch.from_numpy(np.stack(source)), torch.from_numpy(np.stack(target))


def as_float(frame: np.ndarray) -> Any:
    """(H, W, 3) uint8 -> (3, H, W) float32 in [-1, 1]."""
    import torch

    return torch.from_numpy(frame.astype(np.float32)).permute(2, 0, 1) * (2 / 255) - 1


def perturb_by_frame(frames: list[np.ndarray], task: str, rng: np.random.Generator) -> list[np.ndarray]:
    count = len(frames)
    if task == "speed":
        return [frames[min(2 * i, count - 1)] for i in range(count)]
    if task == "cube_inpainting":
        length = round(0.3 * count)
        start = int(rng.integers(1, count - length + 1))
        return [np.zeros_like(f) if start <= i < start + length else f for i, f in enumerate(frames)]
    if task != "tube_shuffle":
        return list(frames)
    half, height, width = count // 2, frames[0].shape[0] // 2, frames[0].shape[1] // 2
    order, out = rng.permutation(8), []
    for i in range(2 * half):
        made = np.empty_like(frames[0])
        for y in range(2):
            for x in range(2):
                at, (from_y, from_x) = (
                    divmod(int(order[4 * (i // half) + 2 * y + x]), 4)[0],
                    divmod(int(order[4 * (i // half) + 2 * y + x]) % 4, 2),
                )
                made[y * height : (y + 1) * height, x * width : (x + 1) * width] = frames[at * half + i % half][
                    from_y * height : (from_y + 1) * height, from_x * width : (from_x + 1) * width
                ]
        out.append(made)
    return out + frames[2 * half :]


def by_frame(items: list[Item], workers: int, floats: bool) -> Iterator[int]:
    from torch.utils.data import DataLoader

    data: Any = ByFrame(items, floats)
    for _, target in DataLoader(data, batch_size=None, num_workers=workers, prefetch_factor=2 if floats else 4):
        yield len(target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", required=True, help="a folder of videos")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--count", type=int, default=40, help="clips per round and contender")
    parser.add_argument("--frames", type=int, default=49)
    parser.add_argument("--area", type=int, default=832 * 480)
    parser.add_argument("--only", default="decord own loader wds bytes floats", help="contenders")
    parser.add_argument("--out")
    options = parser.parse_args()
    from pipelines import cluster_session

    workers, warm, count = options.workers, 4 * options.workers, options.count
    speeds: dict[str, list[float]] = {name: [] for name in options.only.split()}
    costs: dict[str, list[float]] = {name: [] for name in speeds}
    if "loader" in speeds:
        cluster_session.connect(RaySettings(num_cpus=options.workers + 2, object_store_mb=3000))
    with tempfile.TemporaryDirectory() as temporary:
        root = make_root(videos_below(options.clips, options.frames), os.path.join(temporary, "root"))
        folder = os.path.join(temporary, "plan")
        # longer than what is timed, so that nobody runs dry within it
        steps = count + warm + 8 * workers
        items = items_of(make_plan(root, folder, steps, 1, options.frames, options.area), steps)
        tars = write_tars(items, temporary, workers)
        clips: dict[str, Callable[[], Iterator[int]]] = {
            "loader": lambda: through_loader(folder, steps, workers),
            "wds": lambda: through_webdataset(tars, workers),
            "bytes": lambda: by_frame(items, workers, floats=False),
            "floats": lambda: by_frame(items, workers, floats=True),
        }
        for number in range(options.rounds):
            for name in speeds:
                loads = os.getloadavg()[0]
                made = bare(name, items[: warm + count], workers, warm) if name in ("decord", "own") else None
                # Ray's processes work for nobody but the loader
                strangers = set() if name == "loader" else {p.pid for p in psutil.Process().children(recursive=True)}
                speed, cost = timed(clips[name](), count, warm, strangers) if made is None else made
                speeds[name].append(speed)
                costs[name].append(cost)
                told = f"{speed:.0f} frames/s, {1000 * cost:.1f} CPU ms per frame (load before {loads:.1f})"
                print(f"round {number + 1} {name}: {told}", flush=True)
    ceiling = statistics.median(speeds["decord"]) if "decord" in speeds else float("nan")
    rows = [
        {
            "contender": name, "frames/s": statistics.median(found), "lowest": min(found), "highest": max(found),
            "of the ceiling": statistics.median(found) / ceiling,
            "CPU ms per frame": 1000 * statistics.median(costs[name]),
        }
        for name, found in speeds.items()
    ]  # fmt: skip
    report(rows, options.out)


if __name__ == "__main__":
    main()
