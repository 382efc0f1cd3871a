"""Identity, keys and splits are the same in every process, and change with what they should change with only."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.samples import tables
from pipelines.samples.record import Sample, index_row, make_key, sample_digest, source_group, split_of

MEDIA: dict[str, Any] = {
    "sha256": "ab" * 32, "width": 64, "height": 48, "fps": 16.0, "frames": 33, "codec": "h264", "has_audio": False,
}  # fmt: skip


def sample(**changes: object) -> Sample:
    facts = {
        "key": "set-1", "upstream_id": "1", "dataset": "set", "kind": "video_edit", "instruction": "Remove it.",
        "source": MEDIA, "target": {**MEDIA, "sha256": "cd" * 32}, "origin": {"manifest": "a.csv", "row": 3},
    }  # fmt: skip
    return Sample.model_validate({**facts, **changes})


def test_json_goes_there_and_back() -> None:
    one = sample(extra={"score": 0.5, "text": "ä"})
    assert Sample.from_json(one.to_json()) == one
    assert one.to_json() == Sample.from_json(one.to_json()).to_json()
    later = one.to_json()[:-1] + b', "a_later_fact": 1}'
    assert Sample.from_json(later) == one


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"key": "Set 1"}, "not of the form"),
        ({"source": None}, "needs a source"),
        ({"kind": "text_to_video"}, "has no source"),
        ({"kind": "song"}, "kind: "),
        ({"target": {**MEDIA, "frames": 0}}, "target.frames"),
        ({"schema": "sama.sample/2"}, "schema"),
    ],
)
def test_wrong_facts_are_named(changes: dict, says: str) -> None:
    tree = {**sample().model_dump(by_alias=True), **changes}
    with pytest.raises(ValueError, match=says):
        Sample.from_json(json.dumps(tree).encode())


def test_the_digest_follows_what_a_judge_sees_and_nothing_else() -> None:
    one = sample()
    assert len(one.digest) == 32
    for same in (
        {"license": "MIT"}, {"category": "add"}, {"key": "set-2"}, {"extra": {"a": 1}}, {"editor": "x"},
        {"origin": {"manifest": "b", "row": 0}}, {"target": {**MEDIA, "sha256": "cd" * 32, "codec": "av1"}},
    ):  # fmt: skip
        assert sample(**same).digest == one.digest
    for other in (
        {"instruction": "Remove it"}, {"caption": "A cat."}, {"frame_policy": {"skip_head": 4}},
        {"source": {**MEDIA, "sha256": "ef" * 32}}, {"target": MEDIA},
    ):  # fmt: skip
        assert sample(**other).digest != one.digest
    assert sample_digest(None, "cd" * 32, None, None, {}) != sample_digest("cd" * 32, "cd" * 32, None, None, {})


@given(st.lists(st.text(max_size=120), max_size=20))
def test_keys_are_well_formed_and_unique(names: list[str]) -> None:
    taken: set[str] = set()
    keys = [make_key("set", name, taken, salt=str(i)) for i, name in enumerate(names)]
    assert len(set(keys)) == len(keys) == len(taken)
    assert all(re.fullmatch("[a-z0-9_-]{1,96}", k) for k in keys)


def test_keys() -> None:
    assert make_key("ditto-1m", "0005e4_1") == "ditto-1m-0005e4_1"
    assert make_key("set", "A b") != make_key("set", "a-b")  # characters had to go: a hash tells them apart
    assert make_key("set", "x", {"set-x"}, salt="1") != make_key("set", "x", {"set-x"}, salt="2")


def test_groups_and_splits_do_not_depend_on_the_process() -> None:
    group = source_group("ab" * 32)
    assert 0 <= group < 2**63
    assert group == source_group(bytes.fromhex("ab" * 32))
    program = (
        "from pipelines.samples.record import *; print(source_group('ab'*32), [split_of(i, .3) for i in range(20)])"
    )
    runs = {
        subprocess.run(
            [sys.executable, "-c", program], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert runs == {f"{group} {[split_of(i, 0.3) for i in range(20)]}\n"}


def test_the_held_out_share_is_kept_and_grows_without_moving_footage_back() -> None:
    for share in (0.0, 0.05, 0.5):
        out = [split_of(g, share) == "heldout" for g in range(20000)]
        assert abs(sum(out) / 20000 - share) < 0.01
    small = {g for g in range(2000) if split_of(g, 0.05) == "heldout"}
    assert small <= {g for g in range(2000) if split_of(g, 0.2) == "heldout"}


def test_the_index_row_fills_every_column() -> None:
    places = {"source": ("a.tar", 512, 10), "target": ("a.tar", 1536, 20), "json": ("a.tar", 2560, 30)}
    row = index_row(sample(frame_policy={"skip_head": 4}), places, heldout_share=0.1)
    assert set(row) == set(tables.INDEX.names)
    table = pa.Table.from_pylist([row], schema=tables.INDEX)
    assert table.to_pylist()[0]["source_offset"] == 512
    assert table.to_pylist()[0]["skip_head"] == 4
    clip = sample(kind="text_to_video", source=None, instruction=None, target={**MEDIA, "fps": None, "frames": 1})
    row = index_row(clip, {k: v for k, v in places.items() if k != "source"}, heldout_share=0.1)
    assert row["source_uri"] is None
    assert row["target_fps"] == 0.0
    assert row["source_group"] == source_group(MEDIA["sha256"])
    pa.Table.from_pylist([row], schema=tables.INDEX)
