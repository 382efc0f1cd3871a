"""Killed at any write, grown or completed later: the root ends up the same, and nothing counts twice."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from pipelines.ingest.ingest import ingest
from pipelines.samples import storage
from pipelines.samples.index import read_index, read_rejects
from pipelines.samples.ledger import ledger
from sama.errors import InputError
from tests.ingest.conftest import contents

pytestmark = pytest.mark.usefixtures("no_ray")


class Killed(BaseException):
    """The process is gone."""


@pytest.fixture
def plug(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Counts the files that appear under their final name; pulls the plug before number `at`."""
    state = {"at": -1, "count": 0}
    real = os.replace

    def replace(old: str, new: str) -> None:
        state["count"] += 1
        if state["count"] == state["at"]:
            raise Killed
        real(old, new)

    monkeypatch.setattr(os, "replace", replace)
    return state


def test_killed_at_every_write_and_run_again(
    small_world: dict[str, dict], tmp_path: Path, plug: dict[str, int]
) -> None:
    folder = small_world["openve-3m"]["folder"]
    ingest("openve-3m", folder, str(tmp_path / "whole"), chunk_rows=2)
    writes, whole = plug["count"], contents(tmp_path / "whole")
    assert len(whole["index"]) + len(whole["rejects"]) == small_world["openve-3m"]["rows"]
    assert writes > 12
    for at in range(1, writes + 1):
        root = tmp_path / f"killed-{at}"
        plug.update(at=at, count=0)
        with pytest.raises(Killed):
            ingest("openve-3m", folder, str(root), chunk_rows=2)
        if (root / "index" / "openve-3m").exists():
            left = ledger(str(root))["openve-3m"]  # never more rows than the manifest has
            assert left["unaccounted"] >= 0
        plug["at"] = -1
        # whoever goes on may ask for other chunks: the unfinished ones keep their cut
        ingest("openve-3m", folder, str(root), chunk_rows=2 if at % 2 else 64)
        if at > 2:  # before that, nothing was fixed yet (root.json, provenance.json)
            assert contents(root) == whole, at
        assert ledger(str(root))["openve-3m"]["unaccounted"] == 0
        assert ledger(str(root))["openve-3m"]["complete"]
        shutil.rmtree(root)


def write_rows(folder: Path, rows: list[dict]) -> None:
    (folder / "metadata.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))


@pytest.fixture
def pictures(small_world: dict[str, dict], tmp_path: Path) -> tuple[Path, list[dict]]:
    folder = tmp_path / "NHR-Edit"
    shutil.copytree(Path(small_world["nhr-edit"]["folder"]) / "train", folder)
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    return folder, rows


def test_a_manifest_that_grew_adds_its_new_rows(pictures: tuple[Path, list[dict]], tmp_path: Path) -> None:
    folder, rows = pictures
    write_rows(folder, rows[:7])
    root = str(tmp_path / "root")
    ingest("nhr-edit", str(folder), root, chunk_rows=5)
    before = read_index(root).to_pylist()
    write_rows(folder, rows)
    done = ingest("nhr-edit", str(folder), root, chunk_rows=5)
    assert done["done_before"] == 7
    after = read_index(root).to_pylist()
    assert [r for r in after if r["key"] in {b["key"] for b in before}] == before  # frozen selections stay true
    assert len({r["key"] for r in after}) == len(after)
    assert ledger(root)["nhr-edit"]["manifest_rows"] == len(rows)


def test_media_that_arrive_later_are_taken_up_on_demand(
    pictures: tuple[Path, list[dict]], tmp_path: Path, plug: dict[str, int]
) -> None:
    folder, rows = pictures
    root = str(tmp_path / "root")
    late = folder / rows[0]["edited_image"]
    data = late.read_bytes()
    late.unlink()
    ingest("nhr-edit", str(folder), root, chunk_rows=5)
    missing = ledger(root)["nhr-edit"]["by_reason"]["missing_target"]
    late.write_bytes(data)
    assert ingest("nhr-edit", str(folder), root, chunk_rows=5)["index"] == 0  # a reject stays one
    copy = tmp_path / "copy"
    shutil.copytree(root, copy)
    plug["count"] = 0
    done = ingest("nhr-edit", str(folder), root, chunk_rows=5, retry_missing=True)
    assert (done["index"], done["rejects"]) == (1, 0)
    facts = ledger(root)["nhr-edit"]
    assert facts["by_reason"].get("missing_target", 0) == missing - 1
    assert facts["unaccounted"] == 0
    # also when that run is killed at any write, and the next one is an ordinary one
    for at in range(1, plug["count"] + 1):
        again = tmp_path / f"again-{at}"
        shutil.copytree(copy, again)
        plug.update(at=at, count=0)
        with pytest.raises(Killed):
            ingest("nhr-edit", str(folder), str(again), chunk_rows=5, retry_missing=True)
        plug["at"] = -1
        ingest("nhr-edit", str(folder), str(again), chunk_rows=5, retry_missing=bool(at % 2))
        assert ledger(str(again))["nhr-edit"]["unaccounted"] == 0


def test_a_manifest_that_lost_rows_is_refused(pictures: tuple[Path, list[dict]], tmp_path: Path) -> None:
    folder, rows = pictures
    root = str(tmp_path / "root")
    ingest("nhr-edit", str(folder), root)
    before = contents(Path(root))
    moved = tmp_path / "elsewhere"
    shutil.copytree(folder, moved)
    assert ingest("nhr-edit", str(moved), root)["done_before"] == len(rows)  # the same data in another place
    write_rows(moved, rows[3:])
    with pytest.raises(InputError, match=r"metadata.jsonl in .* lacks 12 rows that nhr-edit was made from"):
        ingest("nhr-edit", str(moved), root)
    assert contents(Path(root)) == before
    assert ingest("nhr-edit", str(moved), root, name="nhr-edit-b")["manifest_rows"] == len(rows) - 3


def test_storage_that_fails_stops_the_job_and_rejects_nothing(
    small_world: dict[str, dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk says nothing about a sample."""
    real = storage.write_bytes

    def full(uri: str, data: bytes | str) -> None:
        if "/index/" in uri and uri.endswith(".parquet"):
            raise OSError(28, "No space left on device")
        real(uri, data)

    monkeypatch.setattr(storage, "write_bytes", full)
    root = str(tmp_path / "root")
    with pytest.raises(OSError, match="No space left"):
        ingest("koala-36m", small_world["koala-36m"]["folder"], root, chunk_rows=8)
    monkeypatch.setattr(storage, "write_bytes", real)
    ingest("koala-36m", small_world["koala-36m"]["folder"], root, chunk_rows=8)
    assert ledger(root)["koala-36m"]["unaccounted"] == 0
    assert "unexpected_error" not in read_rejects(root).column("reason").to_pylist()
