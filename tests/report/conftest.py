"""A small data root and two run folders, written file by file as schema.md says, without the rooms that make them."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from pipelines.demo import world
from pipelines.samples import storage, tables
from pipelines.samples.index import open_root, write_index, write_rejects
from sama import video

EVIL = '<script>document.title = "broken"</script><img src=x onerror="document.title=1">'
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@dataclass(frozen=True)
class Made:
    """Where everything lies, and how many of everything there is."""

    root: Path
    runs: list[Path]
    edits: Path
    kept: int
    rejected: int
    failed: int
    refused: int


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("report")
    return make_everything(folder)


def make_everything(folder: Path) -> Made:
    root = folder / "root"
    open_root(str(root), heldout_share=0.2)
    decisions: list[dict] = []
    counts = {"kept": 0, "rejected": 0, "failed": 0}
    reasons = (["static"], ["shot_cut", "too_short"], ["black_border"], ["frozen_motion"])
    for dataset, kind, size in (
        ("ditto-1m", "video_edit", 12),
        ("nhr-edit", "image_edit", 9),
        ("koala-36m", "text_to_video", 8),
    ):
        rows = write_media(root, dataset, kind, size)
        write_index(str(root), dataset, rows, "one")
        refused = [
            {"dataset": dataset, "manifest": f"{dataset}.json", "row": size + i, "upstream_id": f"bad-{i}",
             "reason": reason, "detail": EVIL if i else "moov atom not found",
             "raw_json": json.dumps({"instruction": EVIL})}
            for i, reason in enumerate(("unreadable_target", "no_instruction"))
        ]  # fmt: skip
        write_rejects(str(root), dataset, refused, "one")
        write_provenance(root / "index" / dataset, f"ingest {dataset}", {"manifests": {f"{dataset}.json": size + 2}})
        for i, row in enumerate(rows):
            decision = "failed" if i == size - 1 else "rejected" if i % 4 == 3 else "kept"
            why = ["decode_failed"] if decision == "failed" else reasons[i // 4 % 4] if decision == "rejected" else []
            counts[decision] += 1
            decisions.append({k: row[k] for k in ("key", "sample_digest", "dataset", "category")}
                             | {"decision": decision, "reasons": why})  # fmt: skip
    write_selection(root, "demo", decisions)
    runs = [write_run(folder / "out" / name, seed, 240) for seed, name in enumerate(("stage0", "stage1"))]
    return Made(root, runs, write_edits(folder / "edits"), **counts, refused=6)


def write_media(root: Path, dataset: str, kind: str, size: int) -> list[dict]:
    """One shard-like file of members and their index rows; the last sample's target does not decode."""
    shard = root / "shards" / dataset / "000.tar"
    blob, rows = b"", []
    for i in range(size):
        scene = world.random_scene(i * 3 + 1)
        frames = 1 if kind == "image_edit" else 17
        edited, words = world.edit_scene(scene, world.EDITS[i % len(world.EDITS)], i)
        width = 160 if i % 3 else 96
        row: dict = {
            "key": f"{dataset}-{i:04d}", "dataset": dataset, "kind": kind,
            "category": ("style", "add", "remove")[i % 3],
            "sample_digest": hashlib.sha256(f"{dataset}{i}".encode()).digest(), "license": "CC-BY-4.0",
            "split": "heldout" if i % 5 == 0 else "train", "source_group": i, "motion_preserving": True, "skip_head": 0,
            "skip_tail": 0, "pairing": "index", "ingested_at": NOW, "upstream_id": str(i),
            "instruction": None if kind == "text_to_video" else EVIL if i == 0 else words,
            "caption": world.describe(scene) if kind == "text_to_video" else None,
        }  # fmt: skip
        for side, what in (("source", scene), ("target", edited)):
            if kind == "text_to_video" and side == "source":
                continue
            pixels = world.render(what, frames, 96, width)
            data = video.encode_image(pixels[0]) if frames == 1 else video.encode(pixels, 16.0)
            data = data[:300] if side == "target" and i == size - 1 else data
            row |= {f"{side}_uri": str(shard), f"{side}_offset": len(blob), f"{side}_size": len(data),
                    f"{side}_width": width, f"{side}_height": 96, f"{side}_fps": 0.0 if frames == 1 else 16.0,
                    f"{side}_frames": frames, f"{side}_codec": "h264", f"{side}_has_audio": False,
                    f"{side}_sha256": hashlib.sha256(data).digest()}  # fmt: skip
            blob += data
        rows.append(row)
    storage.write_bytes(shard, blob)
    return rows


def write_selection(root: Path, name: str, decisions: list[dict]) -> None:
    folder = root / "selections" / name
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(decisions, schema=tables.SELECTION), folder / "selection.parquet")


def write_provenance(folder: Path, command: str, counts: dict) -> None:
    storage.write_bytes(
        folder / "provenance.json",
        json.dumps({"schema": "sama.provenance/1", "command": command, "settings": {"note": EVIL},
                    "commit": "0123456789ab", "versions": {"python": "3.11.9", "ray": "2.60.0"}, "inputs": {},
                    "counts": counts, "start": "2026-01-02T03:04:05+00:00", "end": "2026-01-02T03:05:35+00:00"}),
    )  # fmt: skip


def write_run(run: Path, stage: int, steps: int) -> Path:
    rng = np.random.default_rng(stage)
    tasks = ("none", "cube_inpainting", "speed", "tube_shuffle") if stage == 0 else ("edit",)
    rows = []
    for step in range(steps):
        stream = "image" if step % 2 else "video"
        fall = 0.35 + 0.9 * math.exp(-step / 60) * (1 if stage == 0 else 0.5)
        fm = fall + float(rng.normal(0, 0.08))
        row = {
            "step": step, "stream": stream, "bucket": "9x64x64", "time": 1767322800.0 + 1.2 * step, "seconds": 1.1,
            "train/loss": fm + 0.07, "train/loss_fm": None if step == 17 else fm, "train/loss_sem": 0.7 * fall + 0.1,
            "train/grad_norm": 1.5 + float(rng.exponential(0.4)), "train/lr": 2e-4, "seen/video_samples": step * 2,
            "seen/image_samples": step * 4, "seen/tokens": step * 900, "speed/tokens_per_s": 800.0 + stage,
            **{f"time/{p}": s for p, s in zip(("wait", "encode", "forward", "backward", "optimizer"),
                                              (0.05, 0.25, 0.3, 0.4, 0.1), strict=True)},
        }  # fmt: skip
        row[f"train/loss_fm/{'edit' if stream == 'image' else tasks[step // 2 % len(tasks)]}"] = fm
        if (step + 1) % 60 == 0 or step == 0:
            row |= {f"heldout/loss_fm/{t}": fall + 0.05 * i for i, t in enumerate({*tasks, "edit"})}
        rows.append(json.dumps(row))
    storage.write_bytes(run / "metrics.jsonl", "\n".join(rows) + '\n{"step": 240, "train/lo')  # killed while writing
    summary = {
        "name": f"demo-stage{stage}", "steps": {"image": steps // 2, "video": steps // 2},
        "global_batch": {"image": 4, "video": 2}, "dataset": {"nhr-edit": 480, "koala-36m": 240},
        "category": {"style": 200, "add": 300, EVIL: 220},
        "task": {t: 60 * (i + 1) for i, t in enumerate((*tasks, "edit"))},
        "license": {"CC-BY-4.0": 720}, "left_out": [], "moved": {"image": 0, "video": 2}, "repeats": ["video 9x64x48"],
        "buckets": {"image": {"1x64x64": {"steps": steps // 2, "rows": 9, "tokens": 97}},
                    "video": {"9x64x64": {"steps": steps // 2, "rows": 8, "tokens": 257}}},
        "sources": [{"stream": "image", "number": 0, "dataset": "nhr-edit",
                     "counts": {"in the index": 9, "not kept": 3}, "share": 1.0,
                     "heldout": 1, "rows": 5, "samples": 480, "epochs": 96.0}],
    }  # fmt: skip
    plan = {"schema": "sama.plan/1", "digest": "ab" * 32, "steps": steps, "summary": summary}
    storage.write_bytes(run / "plan.json", json.dumps(plan))
    config = {"run": str(run), "preset": "tiny", "train": {"lr": 2e-4, "ema_decay": 0.98, "workers": 2}}
    storage.write_bytes(run / "config.yaml", yaml.safe_dump(config))
    kinds = [("start", 0), ("checkpoint", 60), ("restart", 60), ("checkpoint", 240)]
    lines = [
        json.dumps({"time": 1767322800.0 + s, "kind": k, "step": s, "node": "a", "message": EVIL}) for k, s in kinds
    ]
    storage.write_bytes(run / "events.jsonl", "\n".join(lines) + "\n")
    for step in (1, 60, 120, 240):
        clip = world.render(world.random_scene(step), 5, 64, 80)
        strip = np.concatenate([np.concatenate(list(clip), axis=1)] * 3)
        for sample in ("speed-koala-1", "edit-nhr-2"):
            storage.write_bytes(run / "samples" / f"step-{step:06d}-{sample}.png", video.encode_image(strip))
    write_provenance(run, "train config.yaml", {"steps": steps})
    return run


def write_edits(folder: Path) -> Path:
    for i in range(2):
        scene = world.random_scene(50 + i)
        edited, words = world.edit_scene(scene, "recolour", i)
        before, after = (world.render(s, 17, 96, 128) for s in (scene, edited))
        storage.write_bytes(folder / f"source-{i}.mp4", video.encode(before, 16.0))
        storage.write_bytes(folder / f"clip-{i}.mp4", video.encode(after, 16.0))
        facts = {
            "instruction": EVIL if i else words,
            "source": str(folder / f"source-{i}.mp4"),
            "seconds": 12.5,
            "key": f"k{i}",
        }
        storage.write_bytes(folder / f"clip-{i}.json", json.dumps(facts))
    strip = np.concatenate([np.concatenate(list(f[::3]), axis=1) for f in (before, after)])
    storage.write_bytes(folder / "clip-1.strip.png", video.encode_image(strip))
    return folder
