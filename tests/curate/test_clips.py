"""The default rules on real pairs that a person judged, and shot cuts that a neural detector found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipelines.curate.curate import curate
from pipelines.curate.select import read_selection, select
from pipelines.curate.verdicts import verdicts
from pipelines.ingest.ingest import ingest
from pipelines.samples.index import read_index


@pytest.mark.slow
def test_default_rules_agree_with_the_eye(shared: Path, tmp_path: Path, ray_session: None):
    root = str(tmp_path / "root")
    counts = ingest("clips", str(shared / "clips"), root)
    curate(root, chunk_rows=6)
    summary = select(root, "default")
    assert sum(summary["decisions"].values()) == counts["index"]
    assert summary["decisions"]["unscored"] == summary["decisions"]["failed"] == 0
    index = read_index(root)
    decisions = {r["key"]: r for r in read_selection(root, "default").to_pylist()}
    seen = dict(zip(index["key"].to_pylist(), verdicts(root, index["sample_digest"]).to_pylist(), strict=True))
    by_eye: dict[str, list[str]] = {"good": [], "failed": [], "partial": []}
    for row in index.to_pylist():
        verdict = json.loads(row["extra_json"]).get("eye_verdict")
        if row["kind"] == "video_edit" and verdict:
            by_eye[verdict.split()[0]].append(row["key"])
    kept = {k for k, r in decisions.items() if r["decision"] == "kept"}
    assert len(by_eye["good"]) > 20
    wrongly = {k: decisions[k]["reasons"] for k in by_eye["good"] if k not in kept}
    assert not wrongly
    caught = [k for k in by_eye["failed"] if k not in kept]
    assert len(caught) >= 0.6 * len(by_eye["failed"])
    frozen = {k for k, r in decisions.items() if "frozen_motion" in r["reasons"]}
    assert len(frozen) == 2
    assert frozen <= set(by_eye["failed"])

    def cuts(name: str) -> list[int]:
        return next(s["shot_cuts_target"] for k, s in seen.items() if k.startswith(f"clips-raw-{name}"))

    assert cuts("bikes") == [29, 75, 136, 186, 241]
    assert cuts("sintel") == [87, 213]
    steady = next(s for k, s in seen.items() if k.startswith("clips-sama-highlight-08-sama-v2"))
    assert steady["shot_cuts_source"] == steady["shot_cuts_target"] == []
