"""Manifests of any shape: each row is read, or is a reject that says why; a wrong file is one clear sentence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.ingest.adapters import ADAPTERS, adapter
from pipelines.ingest.candidate import Options, clean
from pipelines.ingest.categories import guess
from pipelines.ingest.clips import licence
from pipelines.ingest.ingest import ingest
from pipelines.ingest.koala import seconds
from pipelines.samples.index import read_index, read_rejects
from pipelines.samples.ledger import ledger
from pipelines.samples.tables import CATEGORIES
from sama import video
from sama.errors import InputError
from tests.sama.test_video import numbered

pytestmark = pytest.mark.usefixtures("no_ray")


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two clips and two pictures."""
    folder = tmp_path_factory.mktemp("media")
    for i in (1, 2):
        (folder / f"{i}.mp4").write_bytes(video.encode(numbered(9)[i:], 8))
        (folder / f"{i}.png").write_bytes(video.encode_image(numbered(9)[i]))
    return folder


@pytest.fixture
def folder(media: Path, tmp_path: Path) -> Path:
    shutil.copytree(media, tmp_path / "data")
    return tmp_path / "data"


def rows_of(folder: Path, tmp_path: Path, *, name: str | None = None, **options: object) -> tuple[list, list]:
    root = str(tmp_path / "root")
    ingest("pairs", str(folder), root, name=name, options=Options(**options))  # type: ignore[arg-type]
    assert ledger(root)[name or "pairs"]["unaccounted"] == 0
    return read_index(root).to_pylist(), read_rejects(root).to_pylist()


@pytest.mark.parametrize("suffix", ["csv", "json", "jsonl", "parquet"])
def test_every_form_gives_the_same_samples(folder: Path, tmp_path: Path, suffix: str) -> None:
    rows = [
        {"src_video": "1.mp4", "tgt_video": "2.mp4", "prompt": " Replace the cat. ", "license": "MIT"},
        {"src_video": "1.png", "tgt_video": "2.png", "prompt": "Add a hat.", "license": ""},
        {"src_video": "", "tgt_video": "1.mp4", "prompt": "A cat walks.", "license": "MIT"},
        {"src_video": "1.mp4", "tgt_video": "gone.mp4", "prompt": "Remove it.", "license": "MIT"},
        {"src_video": "1.mp4", "tgt_video": "2.mp4", "prompt": "error", "license": "MIT"},
        {"src_video": "1.mp4", "tgt_video": "2.png", "prompt": "Remove it.", "license": "MIT"},
        {"src_video": "", "tgt_video": "2.png", "prompt": "A hat.", "license": "MIT"},
        {"src_video": "../1.mp4", "tgt_video": "2.mp4", "prompt": "Remove it.", "license": "MIT"},
    ]
    file = folder / f"list.{suffix}"
    if suffix == "csv":
        lines = [",".join(rows[0]), *(",".join(r.values()) for r in rows)]
        file.write_text("\r\n".join(lines))  # no newline at the end
    elif suffix == "json":
        file.write_text(json.dumps([rows[:2], [rows[2:]]]))  # nested, as some lists are
    elif suffix == "jsonl":
        file.write_text("\n".join(json.dumps(r) for r in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), file)
    kept, rejects = rows_of(folder, tmp_path)
    assert [(r["kind"], r["instruction"], r["caption"], r["category"], r["license"]) for r in kept] == [
        ("video_edit", "Replace the cat.", None, "replace", "MIT"),
        ("image_edit", "Add a hat.", None, "add", "unknown"),
        ("text_to_video", None, "A cat walks.", "other", "MIT"),
    ]
    assert [(r["row"], r["reason"]) for r in rejects] == [
        (3, "missing_target"), (4, "no_instruction"), (5, "wrong_media_type"), (6, "wrong_media_type"), (7, "bad_row"),
    ]  # fmt: skip
    assert all(json.loads(r["raw_json"]) for r in rejects)


def test_columns_can_be_named(folder: Path, tmp_path: Path) -> None:
    (folder / "list.csv").write_text("before,after,say\n1.mp4,2.mp4,Remove it.\n")
    with pytest.raises(InputError, match="no column for the edited clip; there are before, after, say"):
        rows_of(folder, tmp_path)
    with pytest.raises(InputError, match="--map tarket: a pair has the fields source, target"):
        rows_of(folder, tmp_path, columns={"tarket": "after"})
    columns = {"source": "before", "target": "after", "instruction": "say"}
    kept, _ = rows_of(folder, tmp_path, columns=columns, license="CC0-1.0")
    assert [(r["instruction"], r["license"], r["license_evidence"]) for r in kept] == [
        ("Remove it.", "CC0-1.0", "declared")
    ]


def test_the_manifest_may_be_named_itself_and_point_anywhere(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(
        json.dumps({"source": str(folder / "1.mp4"), "target": str(folder / "2.mp4"), "instruction": "Remove it."})
    )
    kept, rejects = rows_of(tmp_path / "a.jsonl", tmp_path)
    assert (len(kept), rejects) == (1, [])
    for extra in ("b.jsonl", "c.csv"):
        (folder / extra).write_text("{}")
    with pytest.raises(InputError, match=r"must hold one manifest .* found b.jsonl, c.csv"):
        rows_of(folder, tmp_path)
    with pytest.raises(InputError, match="is not there"):
        rows_of(folder, tmp_path, manifest="d.csv")


def test_broken_lines_are_rejects(folder: Path, tmp_path: Path) -> None:
    good = json.dumps({"source": "1.mp4", "target": "2.mp4", "instruction": "Remove it."})
    (folder / "a.jsonl").write_text(f'{good}\n{{"source": \n[1, 2]\n\n{{"source": "1.mp4"}}\n')
    kept, rejects = rows_of(folder, tmp_path)
    assert len(kept) == 1
    assert [(r["row"], r["reason"]) for r in rejects] == [(1, "bad_row"), (2, "bad_row"), (3, "bad_row")]
    (folder / "a.jsonl").unlink()
    (folder / "a.csv").write_text('source,target,instruction\n1.mp4,2.mp4,"Remove, it."\n1.mp4,2.mp4,Remove, it.\n')
    kept, rejects = rows_of(folder, tmp_path, name="csv")
    assert [r["detail"] for r in rejects if r["dataset"] == "csv"] == ["4 values in 3 columns"]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.json", "{", "a.json is not JSON"),
        ("a.json", '{"a": 1}', "expected a list of records, found a dict"),
        ("a.json", "[]", "hold no rows"),
        ("a.jsonl", "", "hold no rows"),
        ("a.csv", "source,target,instruction\n", "hold no rows"),
        ("a.csv", b"\xff\xfe\x00", "not UTF-8"),
        ("a.parquet", b"PAR", "not a parquet file"),
    ],
)
def test_a_wrong_manifest_is_one_sentence_and_makes_no_root(
    tmp_path: Path, name: str, content: str | bytes, says: str
) -> None:
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=says):
        ingest("pairs", str(tmp_path / name), str(tmp_path / "root"))
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize("name", sorted(ADAPTERS))
def test_missing_and_empty_folders(tmp_path: Path, name: str) -> None:
    for folder in (tmp_path / "none", tmp_path):
        with pytest.raises(InputError) as caught:
            list(adapter(name).scan(str(folder), Options()))
        assert str(folder) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_unknown_names() -> None:
    with pytest.raises(InputError, match="did you mean ditto-1m"):
        adapter("dito-1m")
    with pytest.raises(InputError, match="cannot name a dataset"):
        ingest("pairs", "x", "y", name="My Set")


def test_a_public_list_as_it_is(shared: Path, tmp_path: Path) -> None:
    """Every row eight times, media of the targets not there, and no quotes around instructions with commas."""
    for name, reasons in {
        "kiwi_image_demo_training_set.csv": {"duplicate": 7, "missing_source": 1},
        "kiwi_video_demo_training_set.csv": {"bad_row": 8},
    }.items():
        root = str(tmp_path / name)
        done = ingest("pairs", str(shared / "clips" / "real_manifests" / name), root)
        assert done["reasons"] == reasons
        assert ledger(root)["pairs"]["unaccounted"] == 0
    sources_only = shared / "clips" / "real_manifests" / "videocof_teaser_test.json"
    with pytest.raises(InputError, match="no column for the edited clip; there are task_type, sample_id"):
        ingest("pairs", str(sources_only), str(tmp_path / "root"))


def test_pictures_inside_parquet(media: Path, tmp_path: Path) -> None:
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    cells = [{"bytes": (media / f"{i}.png").read_bytes(), "path": None} for i in (1, 2)]
    columns = {
        "source_image": pa.array([cells[0], cells[1], None] * 3, struct),
        "edit_instruction": [f"Add {i}." for i in range(9)],
        "edited_image": pa.array([cells[1], cells[0], cells[0]] * 3, struct),
    }
    (tmp_path / "data" / "data").mkdir(parents=True)
    pq.write_table(pa.table(columns), tmp_path / "data" / "data" / "train-0.parquet", row_group_size=2)
    root = str(tmp_path / "root")
    ingest("nhr-edit", str(tmp_path / "data"), root, chunk_rows=4)
    rows = read_index(root).to_pylist()
    assert [r["instruction"] for r in rows] == [f"Add {i}." for i in range(9) if i % 3 != 2]
    assert all(r["source_sha256"] != r["target_sha256"] for r in rows)
    assert rows[0]["source_sha256"] == rows[1]["target_sha256"] == rows[2]["source_sha256"]
    assert [r["reason"] for r in read_rejects(root).to_pylist()] == ["missing_source"] * 3
    assert ledger(root)["nhr-edit"]["unaccounted"] == 0


def test_packed_archives_are_named(tmp_path: Path) -> None:
    (tmp_path / "training_metadata").mkdir()
    row = {"source_path": "source/a.mp4", "instruction": "x", "edited_path": "local/a_1.mp4"}
    (tmp_path / "training_metadata" / "local.json").write_text(json.dumps([row]))
    (tmp_path / "videos" / "source").mkdir(parents=True)
    (tmp_path / "videos" / "source" / "source.tar.gz.01").write_bytes(b"x")
    with pytest.raises(InputError, match="archives only: unpack"):
        list(adapter("ditto-1m").scan(str(tmp_path), Options()))


def test_where_openve_keeps_its_clips(media: Path, tmp_path: Path) -> None:
    """Downloads differ: below videos/, beside the csv, or in one flat folder."""
    (tmp_path / "videos").mkdir()
    (tmp_path / "local_add").mkdir()
    shutil.copy(media / "1.mp4", tmp_path / "videos" / "s.mp4")
    shutil.copy(media / "2.mp4", tmp_path / "local_add" / "t.mp4")
    csv = "video;prompt;original_video\nlocal_add/t.mp4;Add a hat.;local_add/s.mp4\n"
    (tmp_path / "local_add.csv").write_text(csv)
    root = str(tmp_path / "root")
    assert ingest("openve-3m", str(tmp_path), root)["index"] == 1
    (tmp_path / "local_add.csv").write_text(csv.replace(";", ","))
    with pytest.raises(InputError, match=r"local_add.csv has no column video"):
        list(adapter("openve-3m").scan(str(tmp_path), Options()))


def test_small_readers() -> None:
    assert seconds("['0:00:22.089', '0:01:28.5']") == (22.089, 88.5)
    for wrong in ("", "[]", "__import__('os')", "['a', 'b']", "[1, 2]", "(" * 500):
        with pytest.raises(ValueError, match="not a list of two times"):
            seconds(wrong)
    assert [clean(t) for t in (" a ", "", "None", "ERROR.", None, float("nan"))] == ["a", None, None, None, None, None]
    assert licence("Apache-2.0 (repository; third-party footage)") == "Apache-2.0"
    assert licence("BSD-3 (test pattern)") == "BSD-3-Clause"
    assert licence("NASA footage") == licence(None) == "unknown"
    assert {guess(c) for c in CATEGORIES} == set(CATEGORIES)
    assert guess("obj_rem", "Remove the man.") == "remove"
    assert guess(None, "Replace the background with hills.") == "background"
