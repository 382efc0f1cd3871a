"""Lists from elsewhere as selections and as scores, differences between selections, two judges compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from pipelines import config
from pipelines.curate import diff, joined, lists
from pipelines.curate.listed import select_list
from pipelines.curate.rules import Rules
from pipelines.curate.select import read_selection, select
from pipelines.samples import storage, tables
from pipelines.samples.index import read_index
from sama.errors import InputError
from tests.curate.samples import TIME, index_entry, signals_entry, write_root


@pytest.fixture
def root(tmp_path: Path) -> str:
    rows = []
    for i in range(6):
        facts: dict[str, Any] = {"upstream_id": f"up/{i}", "dataset": "one" if i < 4 else "two"}
        facts["origin_json"] = json.dumps({"manifest": "m.csv", "row": i, "member": f"videos/edit_{i}.mp4"})
        rows.append(index_entry(f"s{i}", **facts))
    return write_root(tmp_path / "root", rows, [signals_entry(r, blur_target=0.1 * i) for i, r in enumerate(rows)])


def write(folder: Path, kind: str, rows: list[dict[str, Any]]) -> str:
    path, table = folder / f"list.{kind}", pa.Table.from_pylist(rows)
    if kind == "parquet":
        pq.write_table(table, path)
    elif kind == "csv":
        pyarrow.csv.write_csv(table, path)
    elif kind == "json":
        path.write_text(json.dumps({"samples": rows}))
    elif kind == "jsonl":
        path.write_text("\n".join(json.dumps(r) for r in rows) + "\n")
    else:
        path.write_text("\n".join(str(next(iter(r.values()))) for r in rows) + "\n")
    return str(path)


@pytest.mark.parametrize("kind", ["csv", "json", "jsonl", "parquet", "txt"])
def test_a_list_becomes_a_selection(root: str, tmp_path: Path, kind: str):
    names = ["one-s0", "up/1", "data/videos/edit_4.mp4", "edit_5.webm", "nobody"]
    uri = write(tmp_path, kind, [{"video": n} for n in names])
    summary = select_list(root, "theirs", uri)
    kept = {r["key"] for r in read_selection(root, "theirs").to_pylist() if r["decision"] == "kept"}
    assert kept == {"one-s0", "one-s1", "two-s4", "two-s5"}
    assert summary["decisions"] == {"kept": 4, "rejected": 2, "failed": 0, "unscored": 0}
    assert sum(summary["decisions"].values()) == summary["rows"] == read_index(root).num_rows
    assert {n: summary["list"][n] for n in ("rows", "matched", "unmatched", "examples")} == {
        "rows": 5, "matched": 4, "unmatched": 1, "examples": ["nobody"],
    }  # fmt: skip
    assert select_list(root, "theirs", uri) == summary
    other = write(tmp_path, "txt", [{"video": "one-s0"}])
    if kind != "txt":
        with pytest.raises(InputError, match="frozen"):
            select_list(root, "theirs", other)


def test_bad_lists_are_one_sentence(root: str, tmp_path: Path):
    for text, kind, says in (("{", "json", "not readable as json"), ("a\n", "txt", "none of the 1 rows")):
        path = tmp_path / f"bad.{kind}"
        path.write_text(text)
        with pytest.raises(InputError, match=says):
            select_list(root, "bad", str(path))
    with pytest.raises(InputError, match="does not exist"):
        lists.read_rows(str(tmp_path / "none.csv"))
    with pytest.raises(InputError, match="has no column nme; there are video"):
        select_list(root, "bad", write(tmp_path, "csv", [{"video": "one-s0"}]), on="nme")


def test_a_name_that_could_mean_two_samples_means_none(tmp_path: Path):
    rows = [index_entry(f"s{i}", origin_json=json.dumps({"member": f"{d}/clip.mp4"})) for i, d in enumerate("ab")]
    root = write_root(tmp_path / "root", rows, [])
    found = lists.matches(read_index(root), pa.table({"path": ["clip.mp4", "b/clip.mp4"]}))
    assert found.tolist() == [-1, 1]


def test_differences_are_told_by_dataset_and_reason(root: str):
    select(root, "old")
    select(root, "new", config.load(Rules, None, ["video_edit.max_blur=0.25", "datasets.two.max_blur=0.45"]))
    found = diff.diff(root, "old", "new")
    assert (found["kept_in_both"], found["gained"]["samples"]) == (4, 0)
    assert found["lost"]["datasets"] == {
        "one": {"samples": 1, "reasons": {"blurred": 1}},
        "two": {"samples": 1, "reasons": {"blurred": 1}},
    }
    assert found["lost"]["keys"] == ["one-s3", "two-s5"]
    back = diff.diff(root, "new", "old")
    assert back["gained"]["datasets"] == found["lost"]["datasets"]
    assert "1 left out by new for blurred" in diff.told(found)
    page = diff.page(root, found)
    assert "one-s3" in page
    assert "<script" not in page
    with pytest.raises(InputError, match="no selection other"):
        diff.diff(root, "old", "other")


def test_joined_scores_are_usable_in_rules(root: str, tmp_path: Path):
    rows = [{"id": f"up/{i}", "quality": q} for i, q in enumerate([9, 3, 8])] + [{"id": "x", "quality": 1}]
    counts = joined.join(root, write(tmp_path, "csv", rows), "id", "human")
    assert counts == {"rows": 4, "matched": 3, "unmatched": 1}
    rules = config.load(Rules, None, ["video_edit.joined.human_quality.min=8"])
    summary = select(root, "people", rules)
    table = {r["key"]: (r["decision"], r["reasons"]) for r in read_selection(root, "people").to_pylist()}
    assert table["one-s0"] == table["one-s2"] == ("kept", [])
    assert table["one-s1"] == ("rejected", ["human_quality_low"])
    assert table["two-s4"] == ("rejected", ["no_human_quality"])  # null never passes
    assert sum(summary["decisions"].values()) == 6
    joined.join(root, write(tmp_path, "jsonl", [{"id": "up/1", "quality": 10}]), "id", "human")
    select(root, "later", rules)
    later = {r["key"]: r["decision"] for r in read_selection(root, "later").to_pylist()}
    assert later["one-s1"] == "kept"  # the newest counts
    with pytest.raises(InputError, match="no joined column human_taste; there are human_quality"):
        select(root, "bad", config.load(Rules, None, ["video_edit.joined.human_taste.min=8"]))
    with pytest.raises(InputError, match="no row of"):
        joined.join(root, write(tmp_path, "jsonl", [{"id": "nobody", "quality": 10}]), "id", "human")


def test_two_judges_are_compared(root: str, tmp_path: Path):
    answers = []
    index = read_index(root, None, ["sample_digest"])["sample_digest"].to_pylist()
    for judge, shift in (("aaa", 0), ("bbb", 1)):
        for i, digest in enumerate(index):
            for turn in range(3):
                answers.append({"sample_digest": digest, "judge_id": judge, "prompt_id": "quality", "turn": turn,
                                "status": "ok", "visual_quality": 5 + i - shift, "created_at": TIME})  # fmt: skip
    part = pa.Table.from_pylist([dict.fromkeys(tables.JUDGEMENTS.names) | a for a in answers], schema=tables.JUDGEMENTS)
    storage.write_part(storage.join(root, "judgements", "one"), part)
    human = [{"key": "one-s0", "visual_quality": 5.0}, {"key": "one-s1", "visual_quality": 9.0}]
    joined.join(root, write(tmp_path, "parquet", human), "key", "human")
    found = {r["score"]: r for r in joined.compare(root, "aaa", "bbb")}
    quality = found["visual_quality"]
    assert (quality["samples"], quality["mean_difference"], quality["within_one"]) == (6, 1.0, 1.0)
    assert quality["correlation"] == pytest.approx(1.0)
    assert quality["same_decision"] == pytest.approx(5 / 6)  # 9 against 8 lies on both sides of the paper's 9
    assert found["motion_consistency"]["samples"] == 0
    (person,) = [r for r in joined.compare(root, "aaa", "human") if r["samples"]]
    assert (person["samples"], person["mean_difference"]) == (2, 1.5)
    with pytest.raises(InputError, match="no scores of ccc"):
        joined.compare(root, "aaa", "ccc")
