"""Shards are ordinary tars; every byte range in the index is the member; broken tars lose only what is broken."""

from __future__ import annotations

import gzip
import tarfile
from pathlib import Path

import pytest
import webdataset

from pipelines.samples import storage
from pipelines.samples.shards import Entry, ShardError, ShardWriter, read_shard


def write(path: Path, count: int = 3, long: bool = False) -> dict[str, dict[str, tuple[str, int, int]]]:
    places = {}
    with ShardWriter(str(path)) as shard:
        for i in range(count):
            key = f"set-{i}" + ("-" + "x" * 88 if long else "")
            members = {
                "source.mp4": bytes([i]) * (700 + i), "target.mp4": bytes([100 + i]) * 512, "json": b'{"n": %d}' % i
            }  # fmt: skip
            places[key] = shard.add(key, members)
    return places


@pytest.mark.parametrize("long", [False, True])
def test_byte_ranges_are_the_members(tmp_path: Path, long: bool) -> None:
    path = tmp_path / "a.tar"
    places = write(path, long=long)
    for i, (_, members) in enumerate(places.items()):
        assert list(members) == ["source", "target", "json"]
        assert storage.read_range(*members["source"]) == bytes([i]) * (700 + i)
        assert storage.read_range(*members["target"]) == bytes([100 + i]) * 512
        assert storage.read_range(*members["json"]) == b'{"n": %d}' % i
    entries = list(read_shard(str(path)))
    assert [e.key for e in entries] == list(places)
    for entry in entries:
        where = places[entry.key]
        assert entry.members == {
            "source.mp4": where["source"][1:], "target.mp4": where["target"][1:], "json": where["json"][1:]
        }  # fmt: skip


def test_webdataset_and_tarfile_read_them_and_twice_is_the_same(tmp_path: Path) -> None:
    write(tmp_path / "a.tar")
    write(tmp_path / "b.tar")
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    with tarfile.open(tmp_path / "a.tar") as tar:
        assert tar.getnames()[:3] == ["set-0.source.mp4", "set-0.target.mp4", "set-0.json"]
    found = list(webdataset.WebDataset(str(tmp_path / "a.tar"), shardshuffle=False))
    assert [s["__key__"] for s in found] == ["set-0", "set-1", "set-2"]
    assert found[1]["source.mp4"] == bytes([1]) * 701


def fail_while_writing(path: Path) -> None:
    with ShardWriter(str(path)) as shard:
        shard.add("k", {"json": b"{}"})
        raise RuntimeError


def test_a_failed_writer_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        fail_while_writing(tmp_path / "a.tar")
    assert list(tmp_path.iterdir()) == []


def read_all(path: Path) -> tuple[list[Entry], str | None]:
    entries = []
    try:
        for entry in read_shard(str(path)):
            entries.append(entry)
    except ShardError as error:
        return entries, str(error)
    return entries, None


def test_a_tar_cut_anywhere_gives_its_whole_entries_and_says_so(tmp_path: Path) -> None:
    whole = tmp_path / "a.tar"
    places = write(whole)
    data = whole.read_bytes()
    ends = [sum(members["json"][1:]) for members in places.values()]  # where each sample's last byte is
    spans = [span[1:] for members in places.values() for span in members.values()]
    boundaries = {at for start, size in spans for at in range(start + size, start + -(-size // 512) * 512 + 1)}
    for cut in [*range(0, ends[-1] + 1, 97), *ends, *(e - 1 for e in ends)]:
        part = tmp_path / "cut.tar"
        part.write_bytes(data[:cut])
        entries, fault = read_all(part)
        complete = [e for e in entries if "json" in e.members]
        assert len(complete) == sum(cut >= end for end in ends), cut
        assert all("json" in e.members for e in entries[:-1])
        if not fault:  # the cut fell between two members: only what is missing in the last entry tells
            assert cut in boundaries, cut
        if cut < 512:
            assert fault


def test_garbage_compression_and_emptiness_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    write(path)
    data = path.read_bytes()
    (tmp_path / "b.tar").write_bytes(data[:3072] + b"garbage" * 1000)
    entries, fault = read_all(tmp_path / "b.tar")
    assert fault
    assert len(entries) == 1
    (tmp_path / "c.tar").write_bytes(gzip.compress(data))
    assert "compressed" in (read_all(tmp_path / "c.tar")[1] or "")
    (tmp_path / "d.tar").write_bytes(b"")
    assert "empty" in (read_all(tmp_path / "d.tar")[1] or "")
    (tmp_path / "e.tar").write_bytes(b"no tar at all" * 1000)
    assert read_all(tmp_path / "e.tar") == ([], read_all(tmp_path / "e.tar")[1])
    assert read_all(tmp_path / "e.tar")[1]


def test_shards_of_others(shared: Path) -> None:
    folder = shared / "clips" / "wds"
    entries, fault = read_all(folder / "cc12m-train-0000.tar")
    assert fault is None
    assert len(entries) == 32
    assert all({"jpg", "json", "txt"} <= set(e.members) for e in entries)
    assert "compressed" in (read_all(folder / "sample.tgz")[1] or "")
    entries, fault = read_all(folder / "compressed.tar")  # has a folder entry
    assert entries
    assert fault is None
