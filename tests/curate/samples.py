"""Small data roots for the tests of this room."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.curate.signals import SIGNALS_VERSION
from pipelines.samples import index, record, shards, storage, tables
from sama import video

TIME = datetime(2026, 1, 1, tzinfo=UTC)


def digest(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


def index_entry(name: str, dataset: str = "one", kind: str = "video_edit", **facts: Any) -> dict[str, Any]:
    """A row of the index whose media nobody reads: a flawless 832x480 pair of 49 frames."""
    row: dict[str, Any] = dict.fromkeys(tables.INDEX.names)
    row |= {
        "key": f"{dataset}-{name}", "sample_digest": digest(f"{dataset}/{name}"), "dataset": dataset, "kind": kind,
        "category": "style", "split": "train", "source_group": int.from_bytes(digest(name)[:7], "big"),
        "motion_preserving": True, "skip_head": 0, "skip_tail": 0, "pairing": "index", "instruction": "Make it blue.",
        "ingested_at": TIME,
    }  # fmt: skip
    still = kind == "image_edit"
    for side in ("source", "target"):
        if side == "source" and kind == "text_to_video":
            row["instruction"] = None
            continue
        row |= {
            f"{side}_uri": "nowhere.tar", f"{side}_sha256": digest(f"{name}/{side}"), f"{side}_width": 832,
            f"{side}_height": 480, f"{side}_fps": 0.0 if still else 16.0, f"{side}_frames": 1 if still else 49,
        }  # fmt: skip
    return row | facts


def signals_entry(row: dict[str, Any], **values: Any) -> dict[str, Any]:
    """Signals of a flawless sample for an index row."""
    out: dict[str, Any] = dict.fromkeys(tables.SIGNALS.names)
    out |= {"sample_digest": row["sample_digest"], "signals_version": SIGNALS_VERSION, "status": "ok"}
    out |= {"motion_target": 3.0, "blur_target": 0.3, "black_border_target": [0] * 4, "shot_cuts_target": []}
    out |= {"static": False, "created_at": TIME, "seconds": 0.1}
    if row["kind"] != "text_to_video":
        out |= {"mad": 20.0, "changed_area": 0.2, "motion_source": 3.0, "motion_ratio": 1.0, "blur_source": 0.3}
        out |= {"black_border_source": [0] * 4, "shot_cuts_source": []}
        out |= {"structure_kept": 0.99, "text_strokes_source": 0.1, "text_strokes_target": 0.1}
    if row["kind"] == "image_edit":
        out |= {"motion_source": None, "motion_target": None, "motion_ratio": None, "static": None}
    return out | values


def write_root(root: Path, rows: list[dict[str, Any]], signals: list[dict[str, Any]]) -> str:
    where = str(root)
    index.open_root(where, 0.1)
    for dataset in {r["dataset"] for r in rows}:
        index.write_index(where, dataset, [r for r in rows if r["dataset"] == dataset], "000")
    if signals:
        add_signals(where, signals)
    return where


def add_signals(root: str, signals: list[dict[str, Any]]) -> None:
    storage.write_part(storage.join(root, "signals", "any"), pa.Table.from_pylist(signals, schema=tables.SIGNALS))


def write_media_root(root: Path, clips: dict[str, tuple[np.ndarray | None, np.ndarray]], dataset: str = "toys") -> str:
    """A root with real shards: name -> (source, target) frames; no source makes a captioned clip."""
    where = str(root)
    share = index.open_root(where, 0.1)
    rows: list[dict[str, Any]] = []
    with shards.ShardWriter(storage.join(where, "shards", dataset, "000.tar")) as shard:
        for name, pair in clips.items():
            members, media = {}, {}
            for side, frames in zip(("source", "target"), pair, strict=True):
                if frames is None:
                    continue
                data = video.encode(frames, 16.0) if len(frames) > 1 else video.encode_image(frames[0])
                facts = video.probe(data)
                members[f"{side}.{video.media_type(data)}"] = data
                media[side] = record.Media(
                    sha256=hashlib.sha256(data).hexdigest(), width=facts.width, height=facts.height,
                    fps=facts.fps or None, frames=facts.frames, codec=facts.codec, has_audio=False,
                )  # fmt: skip
            lone = "source" not in media
            sample = record.Sample(
                key=f"{dataset}-{name}", upstream_id=name, dataset=dataset,
                kind="text_to_video" if lone else "video_edit", instruction=None if lone else "Make it blue.",
                caption="shapes" if lone else None, category="style", source=media.get("source"),
                target=media["target"], origin=record.Origin(manifest="m", row=len(rows)),
            )  # fmt: skip
            places = shard.add(sample.key, {**members, "json": sample.to_json()})
            rows.append(record.index_row(sample, places, heldout_share=share, ingested_at=TIME))
    index.write_index(where, dataset, rows, "000")
    return where
