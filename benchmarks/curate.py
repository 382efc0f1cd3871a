"""What signals cost: their throughput over that of plain decoding, and what a second run over finished data costs.

    python benchmarks/curate.py CLIPS [--rounds 3] [--root ROOT]

CLIPS is a folder for `sama ingest clips`. Ceiling: decord decodes every frame of the same videos at the size that the
signals use, one thread, nothing else. Signals: `score` on the same rows, from reading the shard to the finished row.
Both run in this process, in turn, and the fastest round of each counts. Then `sama curate` runs twice on one Ray.
"""

from __future__ import annotations

import argparse
import io
import tempfile
import time
from pathlib import Path
from typing import Any

from pipelines.cli import quiet_dependencies


def decode_only(rows: list[dict[str, Any]]) -> int:
    """Decode and scale every frame of source and target; the number of frames."""
    import decord

    from pipelines.curate.look import small_size
    from pipelines.samples.index import media_of

    frames = 0
    for row in rows:
        for side in ("source", "target"):
            height, width = small_size(row[f"{side}_height"], row[f"{side}_width"])
            reader = decord.VideoReader(io.BytesIO(media_of(row, side)), width=width, height=height, num_threads=1)
            frames += len(reader.get_batch(range(len(reader))).asnumpy())
    return frames


def signals(rows: list[dict[str, Any]]) -> None:
    from pipelines.curate import stage

    for row in rows:
        found = stage.score(row)
        if found["status"] != "ok":
            raise RuntimeError(f"{row['key']}: {found['error']}")


def fastest(rounds: int, *works: Any) -> list[float]:
    """Seconds of the fastest round of each, run in turn."""
    seconds = [float("inf")] * len(works)
    for _ in range(rounds):
        for i, work in enumerate(works):
            began = time.monotonic()
            work()
            seconds[i] = min(seconds[i], time.monotonic() - began)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--root")
    parser.add_argument("--pairs", type=int, help="only so many, evenly spaced")
    parser.add_argument("--no-ray", action="store_true", help="only the throughput")
    options = parser.parse_args()
    quiet_dependencies()
    from pipelines.ingest.ingest import ingest
    from pipelines.samples.index import read_index

    with tempfile.TemporaryDirectory() as folder:
        root = options.root or folder
        if not (Path(root) / "root.json").exists():
            ingest("clips", str(options.clips), root)
        rows = [r for r in read_index(root).to_pylist() if r["kind"] == "video_edit" and r["target_codec"] == "h264"]
        rows = rows[:: -(-len(rows) // options.pairs)] if options.pairs else rows
        ceiling, mine = fastest(options.rounds, lambda: decode_only(rows), lambda: signals(rows))
        frames = decode_only(rows)
        print(f"{len(rows)} pairs, {frames} frames: decoding {frames / ceiling:.0f} frames/s, with signals")
        print(f"{frames / mine:.0f} frames/s on one core: {ceiling / mine:.2f} of the ceiling")
        if options.no_ray:
            return
        from pipelines.cluster_session import connect
        from pipelines.curate.curate import curate

        connect()
        took = []
        for _ in range(2):
            began = time.monotonic()
            curate(root)
            took.append(time.monotonic() - began)
        print(f"sama curate: {took[0]:.1f} s, again {took[1]:.2f} s ({took[1] / took[0]:.1%}), Ray running")


if __name__ == "__main__":
    main()
