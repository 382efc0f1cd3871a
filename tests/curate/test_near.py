"""The same footage is known again after another encoding, size and length; other footage is not."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipelines import config
from pipelines.curate import look, near, prints
from pipelines.curate.rules import Rules
from pipelines.curate.select import read_selection, select
from pipelines.curate.stage import COLUMNS, score_chunk
from pipelines.report import near_duplicates
from pipelines.samples import near as table_of
from pipelines.samples import storage, tables
from pipelines.samples.index import read_index
from sama import video
from tests.curate.samples import write_media_root


def scene(seed: int, frames: int = 33, height: int = 96, width: int = 128) -> np.ndarray:
    """A drifting picture with something to see at all scales, (T, H, W, 3) uint8."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (9, 15, 3), dtype=np.uint8))
    whole = np.asarray(small.resize((width + frames, height), Image.Resampling.BICUBIC))
    return np.stack([whole[:, t : t + width] for t in range(frames)])


def prints_of(data: bytes, **policy: int) -> np.ndarray:
    facts = video.probe(data)
    seen = look.look(
        data, height=facts.height, width=facts.width, fps=facts.fps or 0.0, frames=facts.frames, **policy
    )  # fmt: skip
    return seen.prints


def apart(one: np.ndarray, two: np.ndarray) -> float:
    return float(near.distances(one[None], two[None])[0])


def half(frames: np.ndarray) -> np.ndarray:
    return np.stack([np.asarray(Image.fromarray(f).resize((64, 48), Image.Resampling.BICUBIC)) for f in frames])


def test_a_clip_is_known_again():
    frames = scene(1)
    original = prints_of(video.encode(frames, 16.0))
    assert (original != prints.NONE).tolist() == [True] * 5 + [False]  # 33 frames end before the third second
    for name, changed in {"half": half(frames), "cut": frames[:17], "darker": (frames * 0.8).astype(np.uint8)}.items():
        assert apart(original, prints_of(video.encode(changed, 16.0))) <= near.MEAN_BITS, name
    assert apart(original, prints_of(video.encode(frames[::2], 8.0))) <= near.MEAN_BITS
    skipped = prints_of(video.encode(frames, 16.0), skip_head=4)
    assert skipped[0] == prints.NONE  # moments are those of the file, whatever is skipped
    assert (skipped[1:] == original[1:]).all()
    for other in (scene(2), frames[8:], frames[:, :, ::-1]):
        assert apart(original, prints_of(video.encode(np.ascontiguousarray(other), 16.0))) == np.inf


def test_flat_and_short_clips_never_match():
    grey = np.full((33, 96, 128, 3), 90, np.uint8)
    fade = (grey * np.linspace(0.5, 1.5, 33)[:, None, None, None]).astype(np.uint8)
    for flat in (grey, fade):
        assert not prints_of(video.encode(flat, 16.0)).any()
    short = prints_of(video.encode(scene(1)[:7], 16.0))
    assert apart(short, short) == np.inf  # one frame is too little


def test_pictures_are_compared_by_their_quarters():
    picture = scene(3)[0]
    sink = io.BytesIO()
    Image.fromarray(half(picture[None])[0]).save(sink, "jpeg", quality=80)
    whole = prints_of(video.encode_image(picture))
    assert apart(whole, prints_of(sink.getvalue())) <= near.MEAN_BITS
    edited = picture.copy()
    edited[:48, :64] = scene(4)[0][:48, :64]
    assert apart(whole, prints_of(video.encode_image(edited))) == np.inf


def groups_of(hashes: np.ndarray, groups: np.ndarray | None = None, order: np.ndarray | None = None) -> dict[int, int]:
    count = len(hashes)
    groups = np.arange(count) if groups is None else groups
    order = np.arange(count) if order is None else order
    known, samples = np.unique(groups, return_counts=True)
    clips = np.arange(count).astype(np.uint64) * np.uint64(7919)
    found = near.groups_of(clips[order], groups[order], hashes[order], known, samples, np.zeros(len(known), bool))
    return dict(zip(found["source_group"].to_pylist(), found["near_group"].to_pylist(), strict=True))


def test_copies_are_found_among_many_and_nothing_else():
    rng = np.random.default_rng(0)
    hashes = rng.integers(1, 2**63, (20_000, prints.POSITIONS), dtype=np.int64).view(np.uint64)
    copies = np.arange(10_000, 12_000)  # each with four bits of each frame turned, some shorter than the original
    hashes[copies] = hashes[copies - 10_000]
    for _ in range(4):
        hashes[copies] ^= np.uint64(1) << rng.integers(0, 64, (2000, prints.POSITIONS)).astype(np.uint64)
    hashes[copies[::2], 3:] = prints.NONE
    hashes[15_000:15_100] = prints.NONE  # flat clips are no copies of each other
    found = groups_of(hashes)
    assert found == {g: g % 10_000 for g in [*range(2000), *copies.tolist()]}
    assert groups_of(hashes, order=rng.permutation(20_000)) == found


def test_a_placard_joins_nothing():
    rng = np.random.default_rng(0)
    count = near.HUB + 1
    hashes = rng.integers(1, 2**63, (count + 2, prints.POSITIONS), dtype=np.int64).view(np.uint64)
    hashes[:count] = hashes[0]
    hashes[-1] = hashes[-2]
    assert groups_of(hashes) == {count: count, count + 1: count}
    assert set(groups_of(hashes[1:]).values()) == {0, count - 1}  # one footage fewer may be


@pytest.fixture
def root(tmp_path: Path) -> str:
    """one: a pair; again: its source at half size with another edit; clip: one's target, recoded, without a source;
    other: nothing of it."""
    one, edit = scene(1), scene(2)
    where = write_media_root(
        tmp_path / "root",
        {"one": (one, edit), "again": (half(one), half(scene(3))), "clip": (None, (edit * 0.9).astype(np.uint8)),
         "other": (scene(5), scene(6))},
    )  # fmt: skip
    score_chunk(read_index(where, None, COLUMNS).combine_chunks(), where, "run")
    return where


def rows_by_name(root: str) -> dict[str, dict[str, Any]]:
    return {r["key"].split("-")[1]: r for r in read_index(root).to_pylist()}


def split(root: str, held: str) -> None:
    """Write the index anew with one sample held out."""
    rows = [r | {"split": "heldout" if r["key"].endswith(held) else "train"} for r in read_index(root).to_pylist()]
    for uri in storage.list_files(storage.join(root, "index"), ".parquet", recursive=True):
        storage.remove(uri)
    storage.write_part(storage.join(root, "index", "toys"), pa.Table.from_pylist(rows, schema=tables.INDEX))


def test_groups_of_a_root(root: str):
    split(root, "other")
    counts = near.refresh(root)
    assert counts == {"groups": 1, "footages": 3, "samples": 3, "largest": 3, "beside_heldout": 0}
    rows, table = rows_by_name(root), table_of.read(root)
    three = sorted(rows[n]["source_group"] for n in ("one", "again", "clip"))
    assert table["source_group"].to_pylist() == three
    assert table["near_group"].to_pylist() == [three[0]] * 3
    assert all(0 < b <= near.MEAN_BITS for b in table["bits"].to_pylist())
    split(root, "clip")
    assert near.refresh(root)["beside_heldout"] == 2  # one and again
    assert set(table_of.beside_heldout(table_of.read(root)).to_pylist()) == {
        rows[n]["source_group"] for n in ("one", "again")
    }


def test_nothing_is_done_again(root: str, monkeypatch: pytest.MonkeyPatch):
    first = near.refresh(root)
    monkeypatch.setattr(near, "find", lambda root: pytest.fail("nothing changed"))
    assert near.refresh(root) == first


def test_at_most_so_many_of_a_footage_are_kept(root: str):
    near.refresh(root)
    loose = [f"{k}.{r}=null" for k in tables.KINDS for r in ("max_blur", "min_structure_kept", "min_motion_ratio")]
    loose += [f"{k}.reject_static=false" for k in tables.KINDS] + ["video_edit.min_short_side=null"]
    assert select(root, "all", config.load(Rules, None, loose))["decisions"]["kept"] == 4
    summary = select(root, "few", config.load(Rules, None, [*loose, "max_per_footage=2"]))
    assert summary["decisions"] == {"kept": 3, "rejected": 1, "failed": 0, "unscored": 0}
    found = {r["key"].split("-")[1]: (r["decision"], r["reasons"]) for r in read_selection(root, "few").to_pylist()}
    assert found["clip"] == ("rejected", ["near_duplicate"])  # the third of the index
    assert found["one"] == found["again"] == found["other"] == ("kept", [])


def test_the_blocklist_reaches_near_duplicates(root: str):
    near.refresh(root)
    row = dict.fromkeys(tables.BLOCKLIST.names) | {"source_group": rows_by_name(root)["clip"]["source_group"]}
    pq.write_table(pa.Table.from_pylist([row], schema=tables.BLOCKLIST), f"{root}/blocklist.parquet")
    select(root, "clean")
    table = {r["key"].split("-")[1]: r["reasons"] for r in read_selection(root, "clean").to_pylist()}
    assert {n for n, r in table.items() if "blocklisted" in r} == {"one", "again", "clip"}


def test_the_page_shows_them(root: str):
    split(root, "clip")
    near.refresh(root)
    found = near_duplicates.read(root)
    assert [(g.footages, g.samples, g.heldout, len(g.members)) for g in found.groups] == [(3, 3, True, 3)]
    assert "No plan trains on 2 samples that resemble held-out footage." in near_duplicates.lead(found)
    shown = near_duplicates.section(found, near_duplicates.Album(1 << 20), set())
    assert shown.count("data:image/webp") == 3
    assert shown.count("held out</span>") == 1


def test_real_footage(shared: Path):
    """Two codings of one clip, and a clip with its own first part; different clips of one camera are apart."""
    raw = ["raw/carphone_pristine.mp4", "raw/carphone_distorted.mp4", "raw/hiker_tiny.mp4"]
    names = [*raw, *(f"videos/sama/highlight-{n}.mp4" for n in ("08-source-v2", "08-source", "07-source"))]
    hashes = np.stack([prints_of((shared / "clips" / n).read_bytes()) for n in names])
    assert groups_of(hashes) == {0: 0, 1: 0, 3: 3, 4: 3}
