"""The real clips go in whole, with their quirks; one that is damaged does not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from pipelines.ingest.ingest import ingest
from pipelines.samples.index import read_index, read_rejects
from pipelines.samples.ledger import ledger


@pytest.fixture(scope="module")
def root(shared: Path, tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> Path:
    root = tmp_path_factory.mktemp("clips")
    ingest("clips", str(shared / "clips"), str(root), heldout_share=0.1, chunk_rows=18)
    return root


def test_every_row_is_a_sample(root: Path, shared: Path) -> None:
    facts = ledger(str(root))["clips"]
    assert (facts["index"], facts["rejects"], facts["manifest_rows"]) == (70, 0, 70)
    kinds = read_index(str(root)).column("kind").to_pylist()
    assert {k: kinds.count(k) for k in set(kinds)} == {"video_edit": 36, "image_edit": 14, "text_to_video": 20}


def test_the_facts_are_those_of_the_manifest(root: Path, shared: Path) -> None:
    lines = (shared / "clips" / "manifest.jsonl").read_text().splitlines()
    manifest = {row["id"]: row for row in map(json.loads, lines)}
    for row in read_index(str(root)).to_pylist():
        told = manifest[row["upstream_id"]]
        side = "target" if row["kind"] == "text_to_video" else "source"
        assert row[f"{side}_sha256"].hex() == told["source_sha256"]
        if told["id"] == "raw/nasa_13013":
            continue  # two video streams: the manifest describes the other one
        assert (row[f"{side}_width"], row[f"{side}_height"]) == (told["width"], told["height"])
        assert row[f"{side}_frames"] == told["frames"]
        assert row[f"{side}_fps"] == pytest.approx(told["fps"] or 0.0, rel=0.01)
        if row["kind"] == "video_edit":
            assert row["target_frames"] == told["target_frames"]
            assert row["target_fps"] == pytest.approx(told["target_fps"], rel=0.01)
            assert row["instruction"]
        if row["kind"] == "text_to_video":
            assert row["caption"] is None
            assert row["category"] == "other"


def test_same_footage_has_one_group(root: Path) -> None:
    rows = read_index(str(root)).to_pylist()
    by_footage: dict[bytes, set[tuple[int, str]]] = {}
    for row in rows:
        digest = row["source_sha256"] or row["target_sha256"]
        by_footage.setdefault(digest, set()).add((row["source_group"], row["split"]))
    assert all(len(g) == 1 for g in by_footage.values())
    assert len({g for group in by_footage.values() for g in group}) == len(by_footage) < len(rows)


@pytest.mark.usefixtures("no_ray")
def test_damaged_clips_are_rejects(shared: Path, tmp_path: Path) -> None:
    folder = tmp_path / "clips"
    rows = [json.loads(line) for line in (shared / "clips" / "manifest.jsonl").read_text().splitlines()]
    rows = [r for r in rows if r["id"] in ("raw/videocof_bowl", "sama/highlight-10-sama", "anyv2v/couple-snowing")]
    for row in rows:
        for side in ("source", "target"):
            if side in row:
                (folder / row[side]).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(shared / "clips" / row[side], folder / row[side])
    bowl, pair, picture = (next(r for r in rows if r["id"].startswith(p)) for p in ("raw", "sama", "any"))
    data = (folder / bowl["source"]).read_bytes()
    (folder / bowl["source"]).write_bytes(data[: len(data) // 2])  # not the file that the manifest names
    (folder / pair["target"]).write_bytes((folder / pair["target"]).read_bytes()[:-1000])
    del pair["target_sha256"]
    rows += [
        {**picture, "kind": "video_pair", "id": "x", "instruction": "Snow."},
        {"kind": "song", "id": "y"},
        {**picture, "id": "z"},
    ]
    (folder / "manifest.jsonl").write_text("\n".join(json.dumps(r) for r in rows))
    root = str(tmp_path / "root")
    ingest("clips", str(folder), root)
    found = {(r["upstream_id"] or "y"): r["reason"] for r in read_rejects(root).to_pylist()}
    assert found == {
        bowl["id"]: "digest_mismatch", pair["id"]: "unreadable_target", "x": "wrong_media_type", "y": "bad_row",
        "z": "duplicate",
    }  # fmt: skip
    assert read_index(root).column("upstream_id").to_pylist() == [picture["id"]]
    assert ledger(root)["clips"]["unaccounted"] == 0
