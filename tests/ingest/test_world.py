"""The five layouts go in whole, every bad sample is found for what it is, and the ledger adds up."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.ingest.candidate import Options
from pipelines.ingest.ingest import ingest
from pipelines.samples.index import facts_of, media_of, read_index, read_rejects
from pipelines.samples.ledger import ledger
from sama import video

# faults that ingest must reject -> reason; the others are for the eye of curation
REJECTED = {
    "corrupt": "unreadable_target", "truncated": "unreadable_target", "missing_target": "missing_target",
    "missing_source": "missing_source", "no_instruction": "no_instruction", "no_caption": "no_caption",
    "duplicate": "duplicate",
}  # fmt: skip
KINDS = {"nhr-edit": "image_edit", "koala-36m": "text_to_video"}
NAMES = ("ditto-1m", "openve-3m", "reco-data", "nhr-edit", "koala-36m")


@pytest.fixture(scope="module")
def root(small_world: dict[str, dict], tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> Path:
    """All five through Ray."""
    root = tmp_path_factory.mktemp("root")
    for name in NAMES:
        ingest(name, small_world[name]["folder"], str(root), heldout_share=0.2, chunk_rows=5)
    return root


@pytest.mark.parametrize("name", NAMES)
def test_each_bad_sample_is_a_reject_with_its_reason(root: Path, small_world: dict[str, dict], name: str) -> None:
    expected = sorted(REJECTED[f] for f in small_world[name]["bad"].values() if f in REJECTED)
    rejects = read_rejects(str(root), [name]).to_pylist()
    assert sorted(r["reason"] for r in rejects) == expected
    assert expected
    for reject in rejects:
        fault = small_world[name]["bad"].get(reject["upstream_id"])
        assert reject["reason"] == "duplicate" or REJECTED[fault] == reject["reason"]
        assert reject["detail"]
        assert reject["raw_json"] != "{}"


@pytest.mark.parametrize("name", NAMES)
def test_the_ledger_adds_up(root: Path, small_world: dict[str, dict], name: str) -> None:
    facts = ledger(str(root))[name]
    assert facts["manifest_rows"] == small_world[name]["rows"]
    assert facts["manifest_rows"] == facts["index"] + facts["rejects"]
    assert facts["complete"]


@pytest.mark.parametrize("name", NAMES)
def test_rows_are_complete_and_lead_to_their_bytes(root: Path, small_world: dict[str, dict], name: str) -> None:
    for row in read_index(str(root), [name]).to_pylist():
        kind = KINDS.get(name, "video_edit")
        assert row["kind"] == kind
        assert row["dataset"] == name
        assert row["license"] not in (None, "unknown")
        assert row["split"] in ("train", "heldout")
        facts = facts_of(row)
        assert facts["key"] == row["key"]
        for side in ("source", "target"):
            if kind == "text_to_video" and side == "source":
                assert row["source_uri"] is None
                continue
            found = video.probe(media_of(row, side))
            stored = [row[f"{side}_{n}"] for n in ("width", "height", "frames", "has_audio")]
            assert stored == [found.width, found.height, found.frames, found.has_audio]
            assert row[f"{side}_fps"] == pytest.approx(found.fps)
            assert row[f"{side}_sha256"].hex() == facts[side]["sha256"]
        if kind == "text_to_video":
            assert row["caption"]
            assert row["instruction"] is None
        else:
            assert row["instruction"]


def test_what_each_data_set_says_of_itself(root: Path) -> None:
    rows = {name: read_index(str(root), [name]).to_pylist() for name in NAMES}
    assert {r["skip_head"] for r in rows["openve-3m"]} == {4}
    assert {r["skip_head"] for r in rows["reco-data"]} == {0}
    assert {r["category"] for r in rows["reco-data"]} == {"add", "remove", "replace", "style"}
    assert {(r["subset"], r["category"]) for r in rows["ditto-1m"]} >= {("global_style1", "style"), ("local", "other")}
    assert {r["category_raw"] for r in rows["openve-3m"]} <= {
        "global_style", "background_change", "local_change", "local_add", "local_remove",
    }  # fmt: skip
    assert {r["license"] for r in rows["nhr-edit"]} == {"Apache-2.0"}
    assert {r["target_fps"] for r in rows["nhr-edit"]} == {0.0}
    assert all(r["source_url"] for r in rows["koala-36m"])
    assert '"start_s"' in rows["koala-36m"][0]["extra_json"]


def test_shards_hold_one_kind_and_one_member_set(root: Path) -> None:
    import tarfile

    for path in (root / "shards").rglob("*.tar"):
        with tarfile.open(path) as tar:
            suffixes = [tuple(n.partition(".")[2] for n in group) for group in _by_key(tar.getnames())]
        assert len(set(suffixes)) == 1, path.name
        assert suffixes[0][-1] == "json"


def _by_key(names: list[str]) -> list[list[str]]:
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(name.partition(".")[0], []).append(name)
    return list(groups.values())


def test_edits_of_one_original_share_a_group_and_a_split(root: Path) -> None:
    rows = read_index(str(root), ["nhr-edit"]).to_pylist()
    groups: dict[bytes, set] = {}
    for row in rows:
        groups.setdefault(row["source_sha256"], set()).add((row["source_group"], row["split"]))
    assert all(len(g) == 1 for g in groups.values())
    assert len(groups) < len(rows)


def test_keys_are_unique_in_a_root(root: Path) -> None:
    keys = read_index(str(root), columns=["key"]).column("key").to_pylist()
    assert len(set(keys)) == len(keys)


def test_again_does_nothing_and_another_share_is_refused(root: Path, small_world: dict[str, dict]) -> None:
    from sama.errors import InputError

    before = read_index(str(root))
    done = ingest("ditto-1m", small_world["ditto-1m"]["folder"], str(root), options=Options())
    assert (done["index"], done["rejects"], done["done_before"]) == (0, 0, small_world["ditto-1m"]["rows"])
    assert read_index(str(root)).equals(before)
    with pytest.raises(InputError, match="held-out share"):
        ingest("ditto-1m", small_world["ditto-1m"]["folder"], str(root), heldout_share=0.5)
