"""Small data roots for tests: an index and a selection, with real media where a test reads pixels."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.samples import index, record, shards, storage, tables
from sama import video


def entry(dataset: str, name: str, kind: str = "video_edit", **facts: Any) -> dict[str, Any]:
    """One index row whose media nobody reads."""
    digest = hashlib.sha256(f"{dataset}/{name}/target".encode()).digest()
    row = dict.fromkeys(tables.INDEX.names)
    row |= {
        "key": f"{dataset}-{name}", "dataset": dataset, "subset": None, "kind": kind, "category": "style",
        "license": "CC-BY-4.0", "split": "train", "source_group": int.from_bytes(digest[:7], "big"),
        "motion_preserving": True, "skip_head": 0, "skip_tail": 0, "pairing": "index", "upstream_id": name,
        "instruction": None if kind == "text_to_video" else f"edit {name}",
        "caption": f"a clip of {name}" if kind == "text_to_video" else None,
    }  # fmt: skip
    for side in ("source", "target"):
        if side == "source" and kind == "text_to_video":
            continue
        still = kind == "image_edit"
        row |= {
            f"{side}_uri": f"/nowhere/{dataset}.tar", f"{side}_offset": 512, f"{side}_size": 100,
            f"{side}_sha256": hashlib.sha256(f"{dataset}/{name}/{side}".encode()).digest(),
            f"{side}_width": 832, f"{side}_height": 480, f"{side}_fps": 0.0 if still else 16.0,
            f"{side}_frames": 1 if still else 49, f"{side}_codec": "h264", f"{side}_has_audio": False,
        }  # fmt: skip
    row |= facts
    row["sample_digest"] = hashlib.sha256(f"{dataset}/{name}".encode()).digest()
    return row


def write_root(root: Path, rows: Iterable[dict[str, Any]], selection: str = "all", parts: int = 2) -> str:
    """An index in several parts, and a selection that keeps every row (but those with `decision` given)."""
    rows = list(rows)
    decisions = [r.pop("decision", "kept") for r in rows]
    where = str(root)
    storage.write_bytes(
        storage.join(where, "root.json"), json.dumps({"schema": index.ROOT_SCHEMA, "heldout_share": 0.1})
    )
    for dataset in {r["dataset"] for r in rows}:
        mine = [r for r in rows if r["dataset"] == dataset]
        for part in range(parts):
            index.write_index(where, dataset, mine[part::parts], f"{part:03d}")
    write_selection(where, selection, rows, decisions)
    return where


def write_selection(root: str, name: str, rows: list[dict[str, Any]], decisions: list[str]) -> None:
    table = pa.Table.from_pylist(
        [
            {n: r[n] for n in ("key", "sample_digest", "dataset", "category")} | {"decision": d, "reasons": []}
            for r, d in zip(rows, decisions, strict=True)
        ],
        schema=tables.SELECTION,
    )
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    storage.write_bytes(storage.join(root, "selections", name, "selection.parquet"), sink.getvalue().to_pybytes())


def clip(seed: int, frames: int, height: int, width: int) -> np.ndarray:
    """A smooth moving pattern (T, H, W, 3) uint8, another for every seed."""
    t, y, x = np.meshgrid(np.arange(frames), np.arange(height), np.arange(width), indexing="ij")
    rng = np.random.default_rng(seed)
    waves = [np.sin(rng.uniform(0.05, 0.2) * (x + seed) + rng.uniform(0.05, 0.2) * y + 0.3 * t + c) for c in range(3)]
    return (127 + 100 * np.stack(waves, axis=-1)).astype(np.uint8)


def write_media_root(
    root: Path,
    counts: dict[str, tuple[str, int]],
    frames: int = 12,
    size: tuple[int, int] = (48, 64),
    broken: Collection[str] = (),
) -> str:
    """Datasets with real media. counts: dataset -> (kind, number of samples); a tenth is held out by footage.

    broken: keys of samples whose target never was decodable: the index knows the digest of the broken bytes.
    """
    where, rows = str(root), []
    storage.write_bytes(
        storage.join(where, "root.json"), json.dumps({"schema": index.ROOT_SCHEMA, "heldout_share": 0.1})
    )
    for d, (dataset, (kind, count)) in enumerate(sorted(counts.items())):
        mine = []
        with shards.ShardWriter(storage.join(where, "shards", dataset, "000.tar")) as writer:
            for i in range(count):
                sample, members = media_sample(dataset, kind, i, 1000 * d + i, frames, size, broken)
                places = writer.add(sample.key, members)
                mine.append(record.index_row(sample, places, heldout_share=0.1))
        index.write_index(where, dataset, mine, "000")
        rows += mine
    write_selection(where, "all", rows, ["kept"] * len(rows))
    return where


def media_sample(
    dataset: str,
    kind: str,
    number: int,
    seed: int,
    frames: int,
    size: tuple[int, int],
    broken: Collection[str],
) -> tuple[record.Sample, dict[str, bytes]]:
    """One sample and its shard members."""
    members: dict[str, bytes] = {}
    facts: dict[str, Any] = {}
    for side in ("target",) if kind == "text_to_video" else ("source", "target"):
        pixels = clip(seed, 1 if kind == "image_edit" else frames, *size)
        pixels = 255 - pixels if side == "target" else pixels
        data = video.encode_image(pixels[0]) if kind == "image_edit" else video.encode(pixels, 16.0)
        probe = video.probe(data)
        if side == "target" and record.make_key(dataset, str(number)) in broken:
            data = data[: len(data) // 2] + bytes(len(data) - len(data) // 2)
        members[f"{side}.{video.media_type(data)}"] = data
        facts[side] = record.Media(
            sha256=hashlib.sha256(data).hexdigest(), width=probe.width, height=probe.height, fps=probe.fps or None,
            frames=probe.frames, codec=probe.codec, has_audio=False,
        )  # fmt: skip
    text = {"caption": f"clip {number}"} if kind == "text_to_video" else {"instruction": f"invert {number}"}
    sample = record.Sample(
        key=record.make_key(dataset, str(number)), upstream_id=str(number), dataset=dataset, kind=kind,
        category="style", license="CC-BY-4.0", origin=record.Origin(manifest="m", row=number), **text, **facts,
    )  # fmt: skip
    members["json"] = sample.to_json()
    return sample, members
