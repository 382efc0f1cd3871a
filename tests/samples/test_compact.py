"""Small parts become large ones; nothing is lost at any moment."""

from __future__ import annotations

import pyarrow as pa
import pytest

from pipelines.samples import compact, storage

SCHEMA = pa.schema(
    [("n", pa.int64()), ("word", pa.dictionary(pa.int32(), pa.string())), ("more", pa.list_(pa.int64()))]
)


def write(folder: str, numbers: range) -> None:
    for n in numbers:
        table = pa.table({"n": [n], "word": [f"w{n % 3}"], "more": [[n] * (n % 2)]}).cast(SCHEMA)
        storage.write_part(folder, table.select(["n", "word", "more"][: 2 + n % 2]), f"{n:04d}")  # some lack a column


def numbers(folder: str) -> list[int]:
    return sorted(storage.read_parts(folder, SCHEMA)["n"].to_pylist())


def parts(folder: str) -> int:
    return len(storage.list_files(folder, ".parquet"))


def test_parts_are_merged(tmp_path, monkeypatch: pytest.MonkeyPatch):
    folder = str(tmp_path / "table")
    write(folder, range(40))
    before = storage.read_parts(folder, SCHEMA).sort_by("n").to_pylist()
    assert compact.compact(folder, few=41) == 0
    monkeypatch.setattr(compact, "ROWS", 15)
    assert compact.compact(folder, few=40) == 40
    assert parts(folder) == 3
    assert storage.read_parts(folder, SCHEMA).sort_by("n").to_pylist() == before
    write(folder, range(40, 42))
    monkeypatch.setattr(compact, "ROWS", 1000)
    assert compact.compact(folder, few=5) == 5
    assert (parts(folder), numbers(folder)) == (1, list(range(42)))


@pytest.mark.parametrize("deleted", [0, 3, 9])
def test_killed_while_it_deletes(tmp_path, monkeypatch: pytest.MonkeyPatch, deleted: int):
    folder, count = str(tmp_path / "table"), 0
    write(folder, range(10))
    original = storage.remove

    def killed(uri: str) -> None:
        nonlocal count
        if count == deleted:
            raise KeyboardInterrupt
        count += 1
        original(uri)

    monkeypatch.setattr(storage, "remove", killed)
    with pytest.raises(KeyboardInterrupt):
        compact.compact(folder, few=2)
    monkeypatch.setattr(storage, "remove", original)
    assert set(numbers(folder)) == set(range(10))  # whole, some rows twice
    write(folder, range(10, 12))
    compact.compact(folder, few=2)
    assert (parts(folder), numbers(folder)) == (1, list(range(12)))


def test_a_reader_finds_rows_that_move_while_it_reads(tmp_path):
    folder = str(tmp_path / "table")
    write(folder, range(10))
    reading = storage.each_part(folder, SCHEMA)
    seen = [next(reading)[1]["n"].to_pylist()]
    compact.compact(folder, few=2)
    seen += [table["n"].to_pylist() for _, table in reading]
    assert {n for part in seen for n in part} == set(range(10))


def test_two_jobs_at_once(tmp_path, monkeypatch: pytest.MonkeyPatch):
    """The other job merges what this one has read in part, and adds a part of its own."""
    folder = str(tmp_path / "table")
    write(folder, range(10))
    original, count = storage.read_table, 0

    def read(uri: str) -> pa.Table:
        nonlocal count
        count += 1
        if count == 5:
            compact.compact(folder, few=2)
            write(folder, range(10, 11))
        return original(uri)

    monkeypatch.setattr(compact.storage, "read_table", read)
    assert compact.compact(folder, few=2) == 0
    assert numbers(folder) == list(range(11))
