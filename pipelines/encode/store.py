"""A cache of tensors on disk: a few big binary files, found by key through a Parquet index.

FOLDER/store.json           what the entries are: encoder digests, dtype; fixed by the first who writes
FOLDER/part-<name>.bin      the entries' bytes, one behind another, little endian
FOLDER/part-<name>.parquet  key, offset, size; written after its .bin, so that every entry it names is whole

Parts are only ever added. Two jobs may write at once, and any of them may die at any moment.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.samples import storage
from sama.errors import InputError

SCHEMA = "sama.encodings/1"
INDEX = pa.schema([("key", pa.binary(32)), ("offset", pa.int64()), ("size", pa.int64())])
ENTRY = np.dtype([("key", "S32"), ("part", "<u4"), ("offset", "<i8"), ("size", "<i8")])
IN_MEMORY = 1_000_000  # entries; a larger index lies in a file that all processes of a machine map
OPEN_FILES = 256  # parts mapped at once
_FACTS = "store.json"


class MissingEntryError(KeyError):
    """Keys that a store does not hold; `missing` has their positions in what was asked for."""

    def __init__(self, missing: Sequence[int]) -> None:
        super().__init__(f"{len(missing)} entries are not in the store")
        self.missing = list(missing)


def check(folder: str, facts: Mapping[str, Any]) -> bool:
    """Whether there is a store in the folder; it holds what `facts` say, or InputError names the fact that differs."""
    if not storage.exists(storage.join(folder, _FACTS)):
        return False
    found = facts_of(folder)
    for name, value in {"schema": SCHEMA, **facts}.items():
        if found.get(name) != value:
            raise InputError(f"{folder} was made with {name} {found.get(name)}, this is {value}: choose another cache")
    return True


def fix(folder: str, facts: Mapping[str, Any]) -> None:
    """Say what a store holds, or check that it holds just that."""
    if not check(folder, facts):
        storage.write_bytes(storage.join(folder, _FACTS), json.dumps({"schema": SCHEMA, **facts}, indent=1) + "\n")


def facts_of(folder: str) -> dict[str, Any]:
    """What a store holds. InputError when there is none."""
    uri = storage.join(folder, _FACTS)
    try:
        found = json.loads(storage.read_bytes(uri))
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{folder} is not a cache: there is no {_FACTS}; `sama encode` makes one") from None
    except ValueError:
        raise InputError(f"{uri} is not the description of a cache: not valid JSON") from None
    if not isinstance(found, dict) or found.get("schema") != SCHEMA:
        raise InputError(f"{uri} is not the description of a cache that this version can read")
    return found


def write(folder: str, name: str, keys: Sequence[bytes], values: Sequence[bytes | memoryview]) -> int:
    """Add a part with these entries; its bytes. The same name written again replaces the part."""
    keys = [k.ljust(32, b"\0") for k in keys]  # numpy drops zeros at the end
    ends = np.cumsum([0, *(len(v) for v in values)])
    storage.write_bytes(storage.join(folder, f"part-{name}.bin"), b"".join(values))
    columns = [pa.array(keys, pa.binary(32)), pa.array(ends[:-1], pa.int64()), pa.array(np.diff(ends), pa.int64())]
    storage.write_part(folder, pa.table(columns, schema=INDEX), name)
    return int(ends[-1])


def name_of(keys: Sequence[bytes]) -> str:
    """The name of a part that follows from its keys: made again, it is the same part."""
    return hashlib.sha256(b"".join(keys)).hexdigest()[:24]


def as_keys(digests: Iterable[bytes]) -> np.ndarray:
    """Digests of 32 bytes as an array that numpy can sort and search ("S32": zeros at the end do not count)."""
    return np.frombuffer(b"".join(digests), "S32")


class Store:
    """Read access to a store as it was when it was opened, by key, from any number of threads."""

    def __init__(self, folder: str) -> None:
        """InputError when there is no store."""
        self.folder = storage.absolute(folder)
        self.facts = facts_of(self.folder)
        self._parts = storage.list_files(self.folder, ".parquet")
        self._index = _index(self._parts)
        self._local = "://" not in self.folder
        self._maps: OrderedDict[int, np.memmap] = OrderedDict()
        self._lock = threading.Lock()
        self._pool = None if self._local else ThreadPoolExecutor(8, "encodings")

    def __len__(self) -> int:
        return len(self._index)

    @property
    def keys(self) -> np.ndarray:
        """All keys in order ("S32")."""
        return self._index["key"]

    @property
    def nbytes(self) -> int:
        """Bytes of all entries."""
        return int(self._index["size"].sum())

    def has(self, keys: np.ndarray) -> np.ndarray:
        """Which of the keys ("S32") are there (bool)."""
        return self._find(keys)[1]

    def read(self, keys: np.ndarray) -> list[np.ndarray]:
        """The bytes of each key, read-only uint8. MissingEntryError; EOFError for a file cut short."""
        at, found = self._find(keys)
        if not found.all():
            raise MissingEntryError(np.flatnonzero(~found).tolist())
        entries = [(int(e["part"]), int(e["offset"]), int(e["size"])) for e in self._index[at]]
        if self._pool is None:
            return [self._map(*entry) for entry in entries]
        return list(self._pool.map(lambda entry: self._fetch(*entry), entries))

    def _find(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if not len(self._index):
            return np.zeros(len(keys), np.int64), np.zeros(len(keys), bool)
        at = np.searchsorted(self.keys, keys).clip(max=len(self._index) - 1)
        return at, self.keys[at] == keys

    def _map(self, part: int, offset: int, size: int) -> np.ndarray:
        with self._lock:
            if part not in self._maps:
                while len(self._maps) >= OPEN_FILES:
                    self._maps.popitem(last=False)
                self._maps[part] = np.memmap(self._data(part), np.uint8, "r")
            self._maps.move_to_end(part)
            data = self._maps[part][offset : offset + size]
        if len(data) != size:
            raise EOFError(f"{self._data(part)} ends before the entry at {offset}+{size}")
        return data

    def _fetch(self, part: int, offset: int, size: int) -> np.ndarray:
        return np.frombuffer(storage.read_range(self._data(part), offset, size), np.uint8)

    def _data(self, part: int) -> str:
        return self._parts[part].removesuffix(".parquet") + ".bin"


def _index(parts: Sequence[str]) -> np.ndarray:
    """All entries of the parts in key order, each key once. In memory, or mapped from a file of this machine."""
    sizes = [_rows(uri) for uri in parts]
    if sum(sizes) <= IN_MEMORY:
        return _sorted(parts, sizes)
    name = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]
    file = os.path.join(tempfile.gettempdir(), f"sama-encodings-{os.getuid()}-{name}.index")
    if not os.path.exists(file):
        storage.write_bytes(file, memoryview(_sorted(parts, sizes)).cast("B"))  # type: ignore[arg-type]
    return np.memmap(file, ENTRY, "r")


def _sorted(parts: Sequence[str], sizes: Sequence[int]) -> np.ndarray:
    found, at = np.zeros(sum(sizes), ENTRY), 0
    for number, (uri, rows) in enumerate(zip(parts, sizes, strict=True)):
        table = storage.read_part(uri, INDEX)
        here = found[at : at + rows]
        here["key"] = as_keys(table["key"].to_pylist())
        here["part"], here["offset"], here["size"] = number, table["offset"].to_numpy(), table["size"].to_numpy()
        at += rows
    order = np.argsort(found["key"], kind="stable")
    found = found[order]
    return found[np.append(True, found["key"][1:] != found["key"][:-1])] if len(found) else found


def _rows(uri: str) -> int:
    fs, path = storage.locate(uri)
    return int(pq.read_metadata(path, filesystem=fs).num_rows)
