"""Tars of others become an index where they lie; what is broken in them is a reject, and never stops the rest."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.ingest import tars as module
from pipelines.ingest.ingest import ingest
from pipelines.ingest.tars import index_tar, index_tars
from pipelines.samples.index import facts_of, media_of, read_index, read_rejects
from pipelines.samples.ledger import ledger
from sama.errors import InputError


@pytest.fixture
def shard(small_world: dict[str, dict], tmp_path: Path, no_ray: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A shard of ours, as another project might hand it over; `index` runs without Ray."""

    def run(tars: list[str], root: str, dataset: str, share: float, _: Any) -> Any:
        for tar in tars:
            yield index_tar({"root": root, "dataset": dataset, "heldout_share": share, "tar": tar})

    monkeypatch.setattr(module, "_run", run)
    made = tmp_path / "made"
    ingest("reco-data", small_world["reco-data"]["folder"], str(made), chunk_rows=64)
    found = max((made / "shards").rglob("*.tar"), key=lambda p: p.stat().st_size)
    given = tmp_path / "given" / "one.tar"
    given.parent.mkdir()
    given.write_bytes(found.read_bytes())
    return given


def members(path: Path) -> list[tuple[str, bytes]]:
    with tarfile.open(path) as tar:
        return [(m.name, tar.extractfile(m).read()) for m in tar]  # type: ignore[union-attr]


def write(path: Path, content: list[tuple[str, bytes]]) -> None:
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for name, data in content:
            info = tarfile.TarInfo(f"some/folder/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def test_a_whole_tar_gives_rows_that_lead_to_its_bytes(shard: Path, tmp_path: Path) -> None:
    root = str(tmp_path / "root")
    again = shard.parent / "two.tar"
    content = members(shard)
    write(again, [(name.replace("reco-data", "other"), data.replace(b"reco-data", b"other")) for name, data in content])
    done = index_tars(root, "given", [str(shard.parent)], heldout_share=0.0)
    assert (done["index"], done["rejects"]) == (2 * len(content) // 3, 0)
    known = dict(content)
    for row in read_index(root).to_pylist():
        assert row["dataset"] == "given"
        name = row["key"].replace("other", "reco-data")
        assert media_of(row, "source") == known[f"{name}.source.mp4"]
        assert media_of(row, "target") == known[f"{name}.target.mp4"]
        assert facts_of(row)["key"] == row["key"]
    assert ledger(root)["given"]["unaccounted"] == 0
    assert index_tars(root, "given", [str(shard)])["done_before"] == len(content) // 3


def without(name: str) -> Callable[[list[tuple[str, bytes]]], list[tuple[str, bytes]]]:
    return lambda content: [content[0], *(m for m in content[1:3] if name not in m[0]), *content[3:]]


def flipped(content: list[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
    name, data = content[1]
    return [content[0], (name, data[:-1] + bytes([data[-1] ^ 1])), *content[2:]]


def noise(content: list[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
    return [*content[:2], (content[2][0], b"{not json"), *content[3:]]


def another_key(content: list[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
    return [*content[:2], (content[2][0], content[5][1]), *content[3:]]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (without("json"), "bad_row"),
        (without("target"), "missing_target"),
        (flipped, "digest_mismatch"),
        (noise, "bad_row"),
        (another_key, "bad_row"),
        (lambda content: [*content, *content[:3]], "duplicate"),
    ],
)
def test_one_broken_sample_costs_one_sample(shard: Path, tmp_path: Path, change: Callable, reason: str) -> None:
    content = members(shard)
    broken = tmp_path / "broken.tar"
    write(broken, change(content))
    root = str(tmp_path / "root")
    done = index_tars(root, "given", [str(broken)])
    samples = len(content) // 3
    assert done["index"] == samples - (reason != "duplicate")
    assert [r["reason"] for r in read_rejects(root).to_pylist()] == [reason]
    assert ledger(root)["given"]["unaccounted"] == 0


@pytest.mark.parametrize(("member", "whole"), [(0, 0), (3, 1), (4, 1), (5, 1), (7, 2)])
def test_a_cut_tar_keeps_what_is_whole(shard: Path, tmp_path: Path, member: int, whole: int) -> None:
    with tarfile.open(shard) as tar:
        places = [m.offset_data for m in tar]
    cut = tmp_path / "cut.tar"
    cut.write_bytes(shard.read_bytes()[: places[member] + 10])
    root = str(tmp_path / "root")
    done = index_tars(root, "given", [str(cut), str(shard)])
    assert done["index"] == whole + len(places) // 3  # the whole tar beside it is untouched
    assert done["reasons"] == {"truncated_archive" if whole else "unreadable_archive": 1}
    assert ledger(root)["given"]["unaccounted"] == 0


def test_what_is_no_tar_of_ours(shard: Path, shared: Path, tmp_path: Path) -> None:
    folder = shared / "clips" / "wds"
    root = str(tmp_path / "root")
    done = index_tars(root, "given", [str(folder / "cc12m-train-0000.tar"), str(folder / "sample.tgz"), str(shard)])
    assert done["reasons"] == {"bad_row": 32, "unreadable_archive": 1}
    assert done["index"] == len(members(shard)) // 3
    details = {r["detail"] for r in read_rejects(root).to_pylist() if r["reason"] == "unreadable_archive"}
    assert "compressed" in details.pop()


def test_wrong_places(shard: Path, tmp_path: Path) -> None:
    root = str(tmp_path / "root")
    with pytest.raises(InputError, match=r"none.tar is not there"):
        index_tars(root, "given", [str(tmp_path / "none.tar")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no tar found"):
        index_tars(root, "given", [str(tmp_path / "empty")])
    with pytest.raises(InputError, match="cannot name a dataset"):
        index_tars(root, "Given!", [str(shard)])
    write(tmp_path / "hollow.tar", [])
    with pytest.raises(InputError, match="no sample in 1 tars"):
        index_tars(root, "given", [str(tmp_path / "hollow.tar")])
