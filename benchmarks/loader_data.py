"""A temporary data root and its plan, made from a folder of clips; shared by the benchmarks of the loader."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.config import validate
from pipelines.mixture import BatchPlan, Mixture
from pipelines.samples import index, record, shards, storage, tables
from sama import video

DATASET = "clips"
PRETEXT = {"none": 1, "cube_inpainting": 2, "speed": 3, "tube_shuffle": 4}


def videos_below(folder: str, least_frames: int) -> list[tuple[str, bytes, video.Probe]]:
    """Name, bytes and facts of every video long enough, in name order; what does not decode is left out."""
    found = []
    for path in sorted(Path(folder).rglob("*")):
        if not path.is_file() or path.suffix.lower() not in (".mp4", ".mov", ".mkv", ".webm"):
            continue
        data = path.read_bytes()
        try:
            facts = video.probe(data)
        except video.MediaError:
            continue
        if facts.frames >= least_frames:
            found.append((str(path.relative_to(folder)), data, facts))
    if not found:
        raise SystemExit(f"{folder} has no video of {least_frames} frames")
    return found


def make_root(clips: list[tuple[str, bytes, video.Probe]], root: str) -> str:
    """One shard of captioned clips, its index, and a selection that keeps all."""
    index.open_root(root, 0.0)
    rows: list[dict[str, Any]] = []
    with shards.ShardWriter(storage.join(root, "shards", DATASET, "000.tar")) as writer:
        for number, (name, data, facts) in enumerate(clips):
            media = record.Media(
                sha256=hashlib.sha256(data).hexdigest(), width=facts.width, height=facts.height, fps=facts.fps,
                frames=facts.frames, codec=facts.codec, has_audio=facts.has_audio,
            )  # fmt: skip
            sample = record.Sample(
                key=record.make_key(DATASET, f"{number}-{name}"), upstream_id=name, dataset=DATASET,
                kind="text_to_video", caption=name, license="CC-BY-4.0", target=media,
                origin=record.Origin(manifest="folder", row=number),
            )  # fmt: skip
            places = writer.add(sample.key, {f"target.{video.media_type(data)}": data, "json": sample.to_json()})
            rows.append(record.index_row(sample, places, heldout_share=0.0))
    index.write_index(root, DATASET, rows, "000")
    kept = [
        {n: r[n] for n in ("key", "sample_digest", "dataset", "category")} | {"decision": "kept", "reasons": []}
        for r in rows
    ]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(kept, schema=tables.SELECTION), sink)
    storage.write_bytes(storage.join(root, "selections", "all", "selection.parquet"), sink.getvalue().to_pybytes())
    return root


def make_plan(
    root: str, folder: str, steps: int, batch: int, frames: int, area: int, pretext: dict[str, float] = PRETEXT
) -> BatchPlan:
    """A Stage 0 plan of video steps over all clips of the root, saved in `folder`."""
    source = {"dataset": DATASET, "selection": "all"}
    mixture = {
        "name": "loader", "stage": 0, "seed": 0, "steps": steps, "schedule": {"image": 0, "video": 1},
        "buckets": {"area": area, "multiple": 16, "frames": [frames]},
        "streams": {"video": {"global_batch": batch, "pretext": pretext, "sources": [source]}},
    }  # fmt: skip
    BatchPlan.from_mixture(validate(Mixture, mixture, "the benchmark's mixture"), root).save(folder)
    return BatchPlan.open(folder)


def report(rows: list[dict[str, Any]], out: str | None) -> None:
    """Print rows as a table, and write them as JSON where that is wanted."""
    names = list(dict.fromkeys(n for r in rows for n in r))
    print("| " + " | ".join(names) + " |\n|" + " --- |" * len(names))
    for row in rows:
        cells = [row.get(n, "") for n in names]
        print("| " + " | ".join(f"{c:.3g}" if isinstance(c, float) else str(c) for c in cells) + " |")
    if out:
        Path(out).write_text(json.dumps(rows, indent=1) + "\n")
