"""Captions written by `sama curate --caption` reach the training prompt, and make another plan."""

from __future__ import annotations

import datetime
from pathlib import Path

import pyarrow as pa

from pipelines.mixture import BatchPlan
from pipelines.mixture.saved import difference
from pipelines.samples import captions, storage, tables
from tests.mixture.roots import write_root
from tests.mixture.test_plan import mixture, rows


def write(root: str, row: dict, caption: str | None, status: str = "ok", minute: int = 0) -> None:
    when = datetime.datetime(2026, 1, 1, 0, minute, tzinfo=datetime.UTC)
    made = {"target_sha256": row["target_sha256"], "status": status, "caption": caption, "created_at": when}
    storage.write_part(storage.join(root, "captions", "clips"), pa.Table.from_pylist([made], schema=tables.CAPTIONS))


def caption_of(plan: BatchPlan, key: str) -> str | None:
    found = {s["key"]: s["caption"] for s in (plan.sample(r) for r in range(120 - 2))}
    return found[key]


def test_captions_fill_what_has_none(tmp_path: Path):
    several = rows()
    bare, owned, edit, failed = several[40], several[41], several[90], several[42]
    bare["caption"], failed["caption"] = None, ""
    root = write_root(tmp_path / "root", several)
    before = BatchPlan.from_mixture(mixture(), root)
    assert caption_of(before, bare["key"]) is None
    for row in (owned, edit):
        write(root, row, "not this one")
    write(root, failed, None, status="unparseable")
    unchanged = BatchPlan.from_mixture(mixture(), root)
    assert unchanged.digest == before.digest  # none of them is in use
    assert caption_of(unchanged, owned["key"]) == owned["caption"]
    write(root, bare, "an old caption")
    write(root, bare, "a newer caption", minute=1)
    after = BatchPlan.from_mixture(mixture(), root)
    assert caption_of(after, bare["key"]) == "a newer caption"
    assert caption_of(after, edit["key"]) is None
    assert caption_of(after, failed["key"]) in ("", None)
    assert after.digest != before.digest
    assert difference(before.facts, after.facts) == "clips have been given other captions"
    assert BatchPlan.from_mixture(mixture(), root).digest == after.digest
    assert captions.read_captions(root).num_rows == 3
