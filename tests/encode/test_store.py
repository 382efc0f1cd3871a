"""The files of a cache: found by key, added to, killed at any moment."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from pipelines.encode import store
from pipelines.samples import storage
from sama.errors import InputError

FACTS = {"kind": "test", "digest": "a"}


def key(number: int) -> bytes:
    return hashlib.sha256(str(number).encode()).digest()


def value(number: int) -> bytes:
    return bytes([number % 256]) * (number + 1)


def fill(folder: Path, numbers: range) -> None:
    keys = [key(n) for n in numbers]
    store.write(str(folder), store.name_of(keys), keys, [value(n) for n in numbers])


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    store.fix(str(tmp_path), FACTS)
    for first in range(0, 60, 20):
        fill(tmp_path, range(first, first + 20))
    return tmp_path


def test_entries_are_found_in_any_order(filled: Path) -> None:
    found = store.Store(str(filled))
    assert len(found) == 60
    assert found.nbytes == sum(len(value(n)) for n in range(60))
    numbers = [59, 0, 33, 33, 7]
    read = found.read(store.as_keys(key(n) for n in numbers))
    assert [r.tobytes() for r in read] == [value(n) for n in numbers]
    assert found.has(store.as_keys([key(1), key(99)])).tolist() == [True, False]
    with pytest.raises(store.MissingEntryError) as error:
        found.read(store.as_keys([key(1), key(98), key(2), key(99)]))
    assert error.value.missing == [1, 3]


def test_keys_with_zeros_at_the_end_are_keys(tmp_path: Path) -> None:
    store.fix(str(tmp_path), FACTS)
    keys = [bytes([1]) + bytes(31), bytes([1, 2]) + bytes(30), b"\1" * 31 + b"\0"]
    store.write(str(tmp_path), "a", keys, [b"one", b"two", b"three"])
    read = store.Store(str(tmp_path)).read(store.as_keys(reversed(keys)))
    assert [r.tobytes() for r in read] == [b"three", b"two", b"one"]


def test_a_large_index_lies_in_a_file(filled: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    small = store.Store(str(filled))
    monkeypatch.setattr(store, "IN_MEMORY", 10)
    monkeypatch.setattr(store.tempfile, "gettempdir", lambda: str(tmp_path / "machine"))
    for _ in range(2):  # written, then found
        mapped = store.Store(str(filled))
        assert isinstance(mapped._index, np.memmap)
        assert np.array_equal(mapped._index, small._index)
    assert len(list((tmp_path / "machine").iterdir())) == 1
    fill(filled, range(60, 70))
    assert len(store.Store(str(filled))) == 70


def test_unfinished_and_repeated_parts(filled: Path) -> None:
    storage.write_bytes(filled / "part-orphan.bin", b"x" * 100)  # killed before its index was written
    (filled / "part-half.bin.1234.tmp").write_bytes(b"x")
    fill(filled, range(20))  # the same task once more
    keys = [key(5), key(500)]
    store.write(str(filled), "other", keys, [value(5), value(500)])  # another job, one entry twice
    found = store.Store(str(filled))
    assert len(found) == 61
    assert [r.tobytes() for r in found.read(store.as_keys(keys))] == [value(5), value(500)]


def test_a_file_cut_short_is_an_error(filled: Path) -> None:
    part = max(filled.glob("*.bin"), key=lambda p: p.stat().st_size)
    part.write_bytes(part.read_bytes()[:-1])
    with pytest.raises(EOFError, match="ends before"):
        store.Store(str(filled)).read(store.Store(str(filled)).keys)


def test_a_cache_holds_one_thing(filled: Path, tmp_path: Path) -> None:
    store.fix(str(filled), FACTS)
    with pytest.raises(InputError, match="was made with digest a, this is b"):
        store.fix(str(filled), {**FACTS, "digest": "b"})
    with pytest.raises(InputError, match="is not a cache"):
        store.Store(str(tmp_path / "none"))
    storage.write_bytes(filled / "store.json", "{}")
    with pytest.raises(InputError, match="this version can read"):
        store.Store(str(filled))
