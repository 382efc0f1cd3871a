"""The rows of a plan on disk: a fixed record and a text per row, and the order in which the plan numbers the rows.

Rows are appended as the index is read, in whatever order it comes; `order` says where the plan's row n lies. So a
plan of any size is written with the memory of one batch, and a sample touches two places of a memory-mapped file.
"""

from __future__ import annotations

import bisect
import json
import mmap
import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

SIDES = ("source", "target")
TEXTS = ("key", "instruction", "caption", "source_url", "upstream_id")
WORDS = ("dataset", "kind", "category", "license")
FILES = ("records.bin", "text.bin", "order.bin", "words.json")
DIGEST = (np.uint8, 32)
NONE = np.iinfo(np.int64).min  # stands for null in source_group
RECORD = np.dtype(
    [("text", "<i8"), *((f"{n}_bytes", "<i4") for n in TEXTS), *((n, "<i4") for n in WORDS)]
    + [("source_group", "<i8"), ("sample_digest", *DIGEST)]
    + [(n, "<i4") for n in ("length", "width", "height")]
    + [(n, "<i2") for n in ("skip_head", "skip_tail")]
    + [
        field
        for side in SIDES
        for field in (
            (f"{side}_uri", "<i4"), (f"{side}_offset", "<i8"), (f"{side}_size", "<i8"),
            (f"{side}_sha256", *DIGEST), (f"{side}_frames", "<i4"), (f"{side}_stride", "<f8"),
        )
    ]
)  # fmt: skip
_NUMBERS = ("length", "width", "height", "skip_head", "skip_tail", "source_stride", "target_stride")
_MEDIA_NUMBERS = tuple(f"{s}_{n}" for s in SIDES for n in ("offset", "size", "frames"))
COLUMNS = (
    *TEXTS, *WORDS, "source_group", "sample_digest", *_NUMBERS, *_MEDIA_NUMBERS,
    *(f"{s}_{n}" for s in SIDES for n in ("uri", "sha256")),
)  # fmt: skip


class Writer:
    """Appends rows to a folder; `close` makes it readable."""

    def __init__(self, folder: str) -> None:
        self.folder, self.count = folder, 0
        self._records = open(os.path.join(folder, FILES[0]), "wb")  # noqa: SIM115 (open until `close`)
        self._text = open(os.path.join(folder, FILES[1]), "wb")  # noqa: SIM115
        self._text_bytes = 0
        self._words: dict[str, dict[str, int]] = {n: {} for n in (*WORDS, "uri")}

    def append(self, table: pa.Table) -> int:
        """Write rows with COLUMNS; the place of the first of them."""
        first, size = self.count, table.num_rows
        if not size:
            return first
        records = np.zeros(size, RECORD)
        for name in WORDS:
            records[name] = self._ids(name, table[name])
        for name in (*_NUMBERS, *_MEDIA_NUMBERS):
            records[name] = pc.fill_null(table[name], 0).to_numpy()
        records["source_group"] = pc.fill_null(table["source_group"], int(NONE)).to_numpy()
        records["sample_digest"] = digests(table["sample_digest"])
        for side in SIDES:
            records[f"{side}_uri"] = self._ids("uri", table[f"{side}_uri"])
            records[f"{side}_sha256"] = digests(table[f"{side}_sha256"])
        self._write_text(table, records)
        self._records.write(records.tobytes())
        self.count += size
        return first

    def close(self, order: Iterable[np.ndarray], heldout: list[dict[str, Any]]) -> None:
        """Finish. order: places of the plan's rows 0, 1, ... in blocks; heldout: anything that goes into JSON."""
        self._records.close()
        self._text.close()
        with open(os.path.join(self.folder, "order.bin"), "wb") as file:
            for block in order:
                file.write(block.astype("<i4" if self.count < 2**31 else "<i8").tobytes())
        words = {n: list(known) for n, known in self._words.items()}
        with open(os.path.join(self.folder, "words.json"), "w", encoding="utf-8") as out:
            json.dump({"words": words, "rows": self.count, "heldout": heldout}, out, ensure_ascii=False)

    def flush(self) -> None:
        self._records.flush()
        self._text.flush()

    def words(self, name: str) -> list[str]:
        return list(self._words[name])

    def _ids(self, name: str, column: pa.ChunkedArray) -> np.ndarray:
        known, whole = self._words[name], column.combine_chunks()
        used = pc.fill_null(whole.indices, len(whole.dictionary)).to_numpy()
        ids = np.full(len(whole.dictionary) + 1, -1, np.int32)
        present = np.flatnonzero(np.bincount(used, minlength=len(ids))[:-1])
        for at, word in zip(present.tolist(), whole.dictionary.take(pa.array(present)).to_pylist(), strict=True):
            ids[at] = known.setdefault(word, len(known))
        return ids[used]

    def _write_text(self, table: pa.Table, records: np.ndarray) -> None:
        columns = [table[n].cast(pa.large_string()).combine_chunks() for n in TEXTS]
        for name, column in zip(TEXTS, columns, strict=True):
            records[f"{name}_bytes"] = pc.fill_null(pc.binary_length(column), -1).to_numpy()
        empty = pa.scalar("", pa.large_string())
        joined = pc.binary_join_element_wise(*columns, empty, null_handling="replace", null_replacement="")
        offsets = np.frombuffer(joined.buffers()[1], np.int64)[joined.offset : joined.offset + len(joined) + 1]
        records["text"] = self._text_bytes + offsets[:-1] - offsets[0]
        data = joined.buffers()[2]
        if data is not None:
            self._text.write(memoryview(data)[int(offsets[0]) : int(offsets[-1])])
        self._text_bytes += int(offsets[-1] - offsets[0])


class Rows:
    """The rows of a closed folder, memory-mapped."""

    def __init__(self, folder: str) -> None:
        with open(os.path.join(folder, "words.json"), encoding="utf-8") as file:
            told = json.load(file)
        self.words: dict[str, list[str]] = told["words"]
        self.heldout: list[dict[str, Any]] = told["heldout"]
        self.records = _mapped(os.path.join(folder, "records.bin"), RECORD)
        text: Any = _mapped(os.path.join(folder, "text.bin"), np.dtype(np.uint8))
        self._bytes = memoryview(text)
        self._text = text.base.obj if len(text) else b""
        self.order = _mapped(os.path.join(folder, "order.bin"), np.dtype("<i4" if told["rows"] < 2**31 else "<i8"))

    def keys(self, records: np.ndarray) -> list[str]:
        """Keys of some records."""
        starts = records["text"]
        sizes = records["key_bytes"]
        text = self._bytes
        return [str(text[a:b], "utf-8") for a, b in zip(starts.tolist(), (starts + sizes).tolist(), strict=True)]

    def column(self, name: str, records: np.ndarray) -> list[Any]:
        """One of COLUMNS for some records, as Python values; null is None."""
        if name in TEXTS:
            return self._texts(name, records)
        values = records[name]
        if name.endswith(("sha256", "digest")):
            return [v.tobytes() for v in values]
        if name in WORDS or name.endswith("_uri"):
            words = self.words["uri" if name.endswith("_uri") else name]
            return [words[i] if i >= 0 else None for i in values.tolist()]
        return [None if v == NONE else v for v in values.tolist()]

    def row(self, place: int) -> dict[str, Any]:
        """Everything about the row at a place."""
        record = self.records[place : place + 1]
        found = {n: self.column(n, record)[0] for n in COLUMNS}
        for side in SIDES:
            if found[f"{side}_uri"] is None:
                found |= {f"{side}_{n}": None for n in ("offset", "size", "sha256", "frames")}
        return found

    def find(self, wanted: str) -> list[int]:
        """Places of the rows with this key, source_group or source_url."""
        places = self._find_text(wanted)
        if wanted.lstrip("-").isdigit() and abs(int(wanted)) < 2**63:
            for first in range(0, len(self.records), 1 << 20):
                block = self.records[first : first + (1 << 20)]["source_group"]
                places |= set((first + np.flatnonzero(block == int(wanted))).tolist())
        return sorted(places)

    def _texts(self, name: str, records: np.ndarray) -> list[Any]:
        before = TEXTS[: TEXTS.index(name)]
        starts = records["text"] + sum(np.maximum(records[f"{n}_bytes"], 0) for n in before)
        sizes = records[f"{name}_bytes"]
        text = self._bytes
        return [
            str(text[a : a + n], "utf-8") if n >= 0 else None
            for a, n in zip(starts.tolist(), sizes.tolist(), strict=True)
        ]

    def _find_text(self, wanted: str) -> set[int]:
        """Rows whose key or source_url is this, found by searching the text file from end to end."""
        places: set[int] = set()
        needle = wanted.encode()
        if not needle or not len(self._bytes):
            return places
        buffer: Any = self._text  # an mmap, whose find needs no copy
        at, last = buffer.find(needle), len(self.records) - 1
        while at >= 0:
            place = bisect.bisect_right(range(len(self.records)), at, key=lambda i: int(self.records[i]["text"])) - 1
            record = self.records[place : place + 1]
            if wanted in (self.column("key", record)[0], self.column("source_url", record)[0]):
                places.add(place)
            at = buffer.find(needle, int(self.records[place + 1]["text"])) if place < last else -1
        return places


def digests(column: pa.ChunkedArray) -> np.ndarray:
    """A column of 32-byte digests as (N, 32) uint8; null is zeros."""
    whole = pc.fill_null(column, bytes(32)).combine_chunks()
    data = np.frombuffer(whole.buffers()[1], np.uint8)
    return data[whole.offset * 32 : (whole.offset + len(whole)) * 32].reshape(-1, 32)


def take(rows: Rows, names: Sequence[str], places: np.ndarray) -> pa.Table:
    """Columns of the rows at some places, as a table."""
    records = rows.records[places]
    return pa.table({n: pa.array(rows.column(n, records)) for n in names})


def _mapped(path: str, dtype: np.dtype) -> np.ndarray:
    if not os.path.getsize(path):  # an empty file cannot be mapped
        return np.zeros(0, dtype)
    with open(path, "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    mapped.madvise(mmap.MADV_RANDOM)  # samples lie anywhere: reading ahead would fetch what nobody asked for
    return np.frombuffer(mapped, dtype)
