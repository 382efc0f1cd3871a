"""How far copies of a clip are from it, how near other clips come, and what the search costs.

    python benchmarks/near_duplicates.py CLIPS [--rows 1000000]

CLIPS is a folder with a manifest.jsonl. Every second source is encoded anew at CRF 35, at half size, cut to half its
length, and at 16 frames a second. Scenes of the procedural world are all different. The search runs over random
fingerprints of which a tenth are copies with up to five bits of each frame turned.
"""

from __future__ import annotations

import argparse
import io
import json
import resource
import time
from pathlib import Path

import av
import numpy as np
from PIL import Image

from pipelines.curate import look, near, prints
from sama import video

FRAMES, SCENES = 49, 150


def encoded(frames: np.ndarray, fps: float, crf: int) -> bytes:
    sink = io.BytesIO()
    frames = frames[:, : frames.shape[1] // 2 * 2, : frames.shape[2] // 2 * 2]
    with av.open(sink, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=round(fps), options={"crf": str(crf)})
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode(None))
    return sink.getvalue()


def copies(data: bytes) -> dict[str, bytes]:
    facts = video.probe(data)
    count = min(facts.frames, FRAMES)
    frames = video.decode(data, range(count), look.small_size(facts.height, facts.width))
    size = (frames.shape[2] // 4 * 2, frames.shape[1] // 4 * 2)
    small = np.stack([np.asarray(Image.fromarray(f).resize(size, Image.Resampling.BICUBIC)) for f in frames])
    slower = np.minimum(np.round(np.arange(int(count / facts.fps * 16)) / 16 * facts.fps).astype(int), count - 1)
    return {
        "CRF 35": encoded(frames, facts.fps, 35), "half size": encoded(small, facts.fps, 28),
        "half length": encoded(frames[: max(17, count // 2)], facts.fps, 28),
        "16 frames/s": encoded(frames[slower], 16, 28),
    }  # fmt: skip


def prints_of(data: bytes) -> np.ndarray:
    """Of the first seconds: no more is needed."""
    facts = video.probe(data)
    found = np.zeros(prints.POSITIONS, np.uint64)
    size = look.small_size(facts.height, facts.width)
    if facts.frames == 1:
        return prints.of_picture(look.luma(video.decode(data, [0], size))[0])
    for at in sorted({round(m * facts.fps) for m in prints.MOMENTS}):
        if at < facts.frames:
            prints.add(found, facts.fps, at, look.luma(video.decode(data, [at], size)))
    return found


def bits(one: np.ndarray, two: np.ndarray) -> float:
    common = (one != prints.NONE) & (two != prints.NONE)
    return float(np.bitwise_count(one ^ two)[common].mean()) if common.sum() >= near.COMMON else float("inf")


def real(folder: Path) -> None:
    rows = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    sources = list(dict.fromkeys(r["source"] for r in rows if r["kind"] != "image_pair"))
    seen = {name: prints_of((folder / name).read_bytes()) for name in sources}
    moved: dict[str, list[float]] = {}
    for name in sources[::2]:
        for how, data in copies((folder / name).read_bytes()).items():
            moved.setdefault(how, []).append(bits(seen[name], prints_of(data)))
    for how, found in moved.items():
        known = [b for b in found if np.isfinite(b)]
        print(f"{how}: {len(known)} clips, mean {np.mean(known):.1f} bits, most {max(known):.1f}")
    apart = sorted((bits(seen[a], seen[b]), a, b) for i, a in enumerate(sources) for b in sources[:i])
    for distance, one, two in apart[:6]:
        print(f"{distance:.1f} bits between {one} and {two}")


def made_up() -> None:
    from pipelines.demo import world

    seen = [look.see(world.render(world.random_scene(i), 25, 64, 96), 8.0).prints for i in range(SCENES)]
    print(f"{SCENES} scenes of the procedural world: {len(near.neighbours(np.stack(seen))[0])} pairs taken for one")


def search(rows: int) -> None:
    rng = np.random.default_rng(0)
    hashes = rng.integers(1, 2**63, (rows, prints.POSITIONS), dtype=np.int64).view(np.uint64)
    copy = np.arange(rows - rows // 10, rows)
    of = rng.integers(0, rows - rows // 10, len(copy))
    hashes[copy] = hashes[of]
    for _ in range(5):
        turned = np.uint64(1) << rng.integers(0, 64, (len(copy), prints.POSITIONS)).astype(np.uint64)
        hashes[copy] ^= np.where(rng.random(turned.shape) < 0.8, turned, np.uint64(0))
    names, groups = np.arange(rows).astype(np.uint64), np.arange(rows)
    began, cpu = time.monotonic(), time.process_time()
    table = near.groups_of(names, groups, hashes, groups, np.ones(rows, np.int32), np.zeros(rows, bool))
    seconds, cpu, peak = (
        time.monotonic() - began,
        time.process_time() - cpu,
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    )
    label = np.full(rows, -1)
    label[table["source_group"].to_numpy()] = table["near_group"].to_numpy()
    found = np.mean((label[copy] >= 0) & (label[copy] == label[of]))
    origin = np.arange(rows)
    origin[copy] = of
    wrong = int((origin[table["source_group"].to_numpy()] != origin[table["near_group"].to_numpy()]).sum())
    print(f"{rows} clips searched in {seconds:.1f} s ({cpu:.1f} s of CPU), peak {peak:.2f} GiB")
    print(f"{found:.3%} of the copies found, {wrong} others taken for one", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", type=Path)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--only-search", action="store_true")
    options = parser.parse_args()
    search(options.rows)
    if not options.only_search:
        made_up()
        real(options.clips)


if __name__ == "__main__":
    main()
