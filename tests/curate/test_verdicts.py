from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipelines import config
from pipelines.curate import by_digest
from pipelines.curate.rules import Rules
from pipelines.curate.select import decide_on, read_selection, select
from pipelines.curate.verdicts import verdicts
from pipelines.samples import storage, tables
from pipelines.samples.index import read_index
from tests.curate.samples import TIME, index_entry, signals_entry, write_root

PROMPTS = {"quality": ("instruction_following", "visual_quality"), "motion": ("motion_consistency",),
           "preservation": ("content_preservation",)}  # fmt: skip


def answer(row: dict[str, Any], prompt: str, turn: int, score: int | None, later: int = 0) -> dict[str, Any]:
    out: dict[str, Any] = dict.fromkeys(tables.JUDGEMENTS.names)
    out |= {"sample_digest": row["sample_digest"], "judge_id": "abc", "prompt_id": prompt, "turn": turn,
            "status": "unparseable" if score is None else "ok",
            "created_at": TIME + timedelta(seconds=later)}  # fmt: skip
    return out | (dict.fromkeys(PROMPTS[prompt], score) if score is not None else {})


@pytest.fixture
def root(tmp_path: Path) -> str:
    rows = {n: index_entry(n) for n in ("good", "low", "holes", "mute", "new", "retried")}
    where = write_root(tmp_path / "root", list(rows.values()), [signals_entry(r) for r in rows.values()])
    answers = []
    for name, scores in {"good": (9, 9, 10), "low": (9, 8, 9), "holes": (9, None, 9), "mute": (None,) * 3}.items():
        for prompt in PROMPTS:
            answers += [answer(rows[name], prompt, turn, score) for turn, score in enumerate(scores)]
    for prompt in PROMPTS:
        answers += [answer(rows["retried"], prompt, 0, None), answer(rows["retried"], prompt, 0, 4, later=1)]
        answers.append(answer(rows["retried"], prompt, 0, 9, later=2))
    part = pa.Table.from_pylist(answers, schema=tables.JUDGEMENTS)
    storage.write_part(storage.join(where, "judgements", "one"), part)
    return where


def test_the_view_says_how_much_was_answered(root: str):
    index = read_index(root)
    seen = dict(zip(index["key"].to_pylist(), verdicts(root, index["sample_digest"], "abc").to_pylist(), strict=True))
    assert {k[4:]: v["status"] for k, v in seen.items()} == {
        "good": "scored", "low": "scored", "holes": "partial", "mute": "failed", "new": None, "retried": "scored",
    }  # fmt: skip
    assert all(v["signals_status"] == "ok" for v in seen.values())
    good = seen["one-good"]
    assert good["visual_quality_mean"] == pytest.approx(28 / 3)
    assert good["visual_quality_std"] == pytest.approx((2 / 9) ** 0.5)
    assert (good["visual_quality_turns"], seen["one-holes"]["visual_quality_turns"]) == (3, 2)
    assert (seen["one-retried"]["visual_quality_mean"], seen["one-retried"]["visual_quality_turns"]) == (9.0, 1)
    assert seen["one-mute"]["visual_quality_mean"] is None


def test_selecting_from_disk_and_from_the_view_agree(root: str):
    rules = config.load(Rules, None, ["judge.judge_id=abc"])
    summary = select(root, "judged", rules)
    table = {r["key"][4:]: (r["decision"], *r["reasons"]) for r in read_selection(root, "judged").to_pylist()}
    assert table == {
        "good": ("kept",), "retried": ("kept",), "holes": ("kept",), "mute": ("unscored", "not_judged"),
        "new": ("unscored", "not_judged"), "low": ("rejected", "visual_quality_low"),
    }  # fmt: skip
    assert sum(summary["decisions"].values()) == 6
    index = read_index(root)
    seen = verdicts(root, index["sample_digest"], "abc")
    again = decide_on(index, seen, rules, tables.BLOCKLIST.empty_table())
    assert again["decision"].cast(pa.string()).to_pylist() == [
        d for d, *_ in (table[k[4:]] for k in again["key"].to_pylist())
    ]


def test_signals_under_another_dataset_s_name_count(tmp_path: Path):
    rows = [index_entry("a"), index_entry("b", dataset="two")]
    rows.append({**index_entry("c", dataset="three"), "sample_digest": rows[1]["sample_digest"]})
    root = write_root(tmp_path / "root", rows, [])
    for row, blur in ((rows[0], 0.3), (rows[1], 0.9)):
        part = pa.Table.from_pylist([signals_entry(row, blur_target=blur)], schema=tables.SIGNALS)
        storage.write_part(storage.join(root, "signals", row["dataset"]), part)
    select(root, "all")
    found = {r["key"]: r["decision"] for r in read_selection(root, "all").to_pylist()}
    assert found == {"one-a": "kept", "two-b": "rejected", "three-c": "rejected"}


def test_places_tell_apart_digests_that_begin_alike():
    import numpy as np

    digests = [b"\1" * 8 + bytes([i]) * 24 for i in (5, 3)]
    keys = by_digest.keys_of(pa.chunked_array([pa.array(digests, pa.binary(32))]))
    table = by_digest.newest([(keys, {"x": np.array([5.0, 3.0]), "created_at": np.array([0, 0])})], ["x"])
    other = by_digest.keys_of(
        pa.chunked_array([pa.array([b"\1" * 8 + b"\7" * 24, digests[1], digests[0]], pa.binary(32))])
    )
    places = table.places(other)
    assert places[0] == -1
    assert table.at(places)["x"][1:].tolist() == [3.0, 5.0]
