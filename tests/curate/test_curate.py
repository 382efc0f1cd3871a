from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.curate.curate import curate, missing
from pipelines.curate.select import read_selection, select
from pipelines.curate.show import describe, page
from pipelines.curate.stage import COLUMNS, Remembered, score, score_chunk
from pipelines.demo import world
from pipelines.samples import provenance, storage
from pipelines.samples.index import read_index
from sama.errors import InputError
from tests.curate.samples import write_media_root


def pair(seed: int, edit: str, frames: int = 21) -> tuple[np.ndarray, np.ndarray]:
    scene = world.random_scene(seed, things=2)
    edited, _ = world.edit_scene(scene, edit, seed)
    return world.render(scene, frames, 96, 128), world.render(edited, frames, 96, 128)


@pytest.fixture
def root(tmp_path: Path) -> str:
    good, recoloured = pair(1, "recolour"), pair(2, "replace")
    framed = recoloured[1].copy()
    framed[:, :12] = 0
    other = 255 - pair(9, "add")[1]
    return write_media_root(
        tmp_path / "root",
        {
            "good": good,
            "twin": (good[0], good[0]),
            "framed": (recoloured[0], framed),
            "cut": (good[0], np.concatenate([good[1][:11], other[:10]])),
            "longer": (good[0], pair(1, "recolour", 29)[1]),
            "brief": pair(3, "recolour", 5),
            "still": (None, np.repeat(recoloured[0][:1], 21, axis=0)),
            "lone": (None, good[0]),
        },
    )


def rows_by_name(root: str) -> dict[str, dict]:
    return {r["key"].split("-")[1]: r for r in read_index(root).to_pylist()}


def damage(row: dict, side: str) -> None:
    """Overwrite the middle of a member: its digest no longer fits."""
    path = Path(row[f"{side}_uri"])
    data = bytearray(path.read_bytes())
    start = row[f"{side}_offset"] + row[f"{side}_size"] // 2
    data[start : start + 8] = b"damaged!"
    path.write_bytes(bytes(data))


def test_every_sample_gets_a_row_whatever_happens(root: str):
    rows = rows_by_name(root)
    good = score(rows["good"])
    assert (good["status"], good["shot_cuts_target"]) == ("ok", [])
    assert good["seconds"] > 0
    damage(rows["good"], "target")
    torn = score(rows["good"])
    assert (torn["status"], torn["error_stage"]) == ("failed", "read")
    assert "not those that were ingested" in torn["error"]
    gone = score({**rows["cut"], "target_uri": rows["cut"]["target_uri"] + ".gone"})
    assert (gone["status"], gone["error_stage"], gone["error_type"]) == ("failed", "read", "FileNotFoundError")
    wrong = score({**rows["lone"], "target_frames": 500})
    assert (wrong["status"], wrong["error_stage"]) == ("failed", "decode")
    assert "target: frame" in wrong["error"]
    short = score({**rows["brief"], "skip_head": 5})
    assert (short["error_stage"], short["error_type"]) == ("decode", "MediaError")


def test_sources_are_decoded_once_for_neighbouring_rows(root: str, monkeypatch: pytest.MonkeyPatch):
    from pipelines.curate import look

    looked: list[int] = []
    original = look.look

    def counted(data: bytes, **facts: Any) -> look.Seen:
        looked.append(len(data))
        return original(data, **facts)

    monkeypatch.setattr(look, "look", counted)
    rows = rows_by_name(root)
    remembered: Remembered = {}
    alone = score(rows["cut"])
    looked.clear()
    for name in ("good", "twin", "cut"):
        last = score(rows[name], remembered)
    assert len(looked) == 4  # one source, three targets
    skipped = ("seconds", "created_at")
    assert {k: v for k, v in last.items() if k not in skipped} == {k: v for k, v in alone.items() if k not in skipped}


def test_signals_are_append_only_and_read_failures_are_tried_again(root: str):
    index = read_index(root, None, COLUMNS)
    assert missing(root, index).num_rows == index.num_rows == 8
    shard = Path(rows_by_name(root)["good"]["target_uri"])
    shard.rename(shard.with_suffix(".away"))
    assert score_chunk(index.slice(0, 2), root, "run1").to_pylist() == [{"dataset": "toys", "ok": 0, "failed": 2}]
    assert missing(root, index, retry=False).num_rows == 6
    assert missing(root, index).num_rows == 8
    shard.with_suffix(".away").rename(shard)
    counts = score_chunk(index.slice(0, 2), root, "run2").to_pylist()
    assert counts == [{"dataset": "toys", "ok": 2, "failed": 0}]
    assert missing(root, index).num_rows == 6
    assert len(storage.list_files(storage.join(root, "signals", "toys"), ".parquet")) == 2
    summary = select(root, "half")
    assert summary["decisions"]["unscored"] + summary["decisions"]["rejected"] == 7
    assert summary["decisions"]["failed"] == 0


def test_rows_with_one_digest_are_looked_at_once(root: str):
    index = read_index(root, None, COLUMNS)
    twice = index.take([0, 1, 0, 1, 1])
    assert missing(root, twice)["key"].to_pylist() == index["key"].to_pylist()[:2]


def test_curate_select_show(root: str, ray_session: None):
    counts = curate(root, chunk_rows=3)
    assert counts == {"toys": {"rows": 8, "looked": 8, "ok": 8, "failed": 0}}
    assert provenance.read(storage.join(root, "signals"))["counts"] == counts  # type: ignore[index]
    parts = storage.list_files(storage.join(root, "signals", "toys"), ".parquet")
    assert len(parts) == 3
    storage.remove(parts[1])  # as a job killed in the middle leaves it
    assert curate(root, chunk_rows=3)["toys"]["looked"] in (2, 3)
    assert curate(root)["toys"]["looked"] == 0
    summary = select(root, "first")
    table = {r["key"].split("-")[1]: (r["decision"], r["reasons"]) for r in read_selection(root, "first").to_pylist()}
    assert table == {
        "good": ("kept", []),
        "twin": ("rejected", ["identical"]),
        "framed": ("rejected", ["black_border"]),
        "cut": ("rejected", ["shot_cut"]),
        "longer": ("rejected", ["unequal_frames"]),
        "brief": ("rejected", ["too_short"]),
        "still": ("rejected", ["static"]),
        "lone": ("kept", []),
    }
    assert summary["decisions"] == {"kept": 2, "rejected": 6, "failed": 0, "unscored": 0}
    text = describe(root, "toys-framed")
    assert "selection first: rejected: black_border" in text
    assert "black_border_target: [12, 0, 0, 0]" in text
    assert "instruction: Make it blue." in text
    assert page(root, "toys-framed").count("data:video/mp4;base64,") == 2
    with pytest.raises(InputError, match="the nearest is toys-framed"):
        describe(root, "toys-frame")
    with pytest.raises(InputError, match="no dataset nobody"):
        curate(root, ["nobody"])
