"""A selection as a set of samples that is quick to ask, at eight bytes a sample."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.mixture.order import mix
from pipelines.mixture.store import digests
from pipelines.samples import storage, tables
from sama.errors import InputError


@dataclass(frozen=True)
class Chosen:
    """What a selection kept: fingerprints in order, and the digest of all its decisions."""

    kept: np.ndarray  # (N,) uint64, ascending
    digest: str  # sha256 (hex) over what was decided of whom, whatever the order and the file

    def keeps(self, table: pa.Table) -> np.ndarray:
        """Which rows (sample_digest, key) are kept (bool)."""
        wanted = fingerprints(table)
        if not len(self.kept):
            return np.zeros(len(wanted), bool)
        order = np.argsort(wanted)  # in order, neighbours are looked up near each other
        at = np.searchsorted(self.kept, wanted[order])
        found = np.empty(len(wanted), bool)
        found[order] = self.kept[np.minimum(at, len(self.kept) - 1)] == wanted[order]
        return found


def read(root: str, name: str) -> Chosen:
    """A selection of a data root. InputError when there is none of this name."""
    uri = storage.join(root, "selections", name, "selection.parquet")
    if not storage.exists(uri):
        known = storage.list_folders(storage.join(root, "selections"))
        raise InputError(f"there is no selection {name} in {root}; there are: {', '.join(known) or 'none, select one'}")
    marks, decisions = [np.zeros(0, np.uint64)], [np.zeros(0, np.int8)]
    fs, path = storage.locate(uri)
    with fs.open_input_file(path) as file:
        part = pq.ParquetFile(file, read_dictionary=["decision"], pre_buffer=False, buffer_size=1 << 20)
        for batch in part.iter_batches(1 << 17, columns=["key", "sample_digest", "decision"]):
            table = pa.Table.from_batches([batch])
            marks.append(fingerprints(table))
            decisions.append(_numbers(table["decision"]))
    mark, decision = np.concatenate(marks), np.concatenate(decisions)
    decided = np.sort(mix(mark ^ mix(decision.astype(np.uint64))))
    kept = np.sort(mark[decision == tables.DECISIONS.index("kept")])
    return Chosen(kept, hashlib.sha256(decided.astype("<u8").tobytes()).hexdigest())


def fingerprints(table: pa.Table) -> np.ndarray:
    """A 64-bit word for (sample_digest, key) of each row (uint64).

    Among ten million samples two share one with a chance of three in a million.
    """
    return mix(np.ascontiguousarray(digests(table["sample_digest"])).view("<u8")[:, 0] ^ _of_text(table["key"]))


def _of_text(column: pa.ChunkedArray) -> np.ndarray:
    """A 64-bit word for each text: its bytes weighted by where they stand (uint64)."""
    whole = column.cast(pa.large_string()).combine_chunks()
    offsets = np.frombuffer(whole.buffers()[1], np.int64)[whole.offset : whole.offset + len(whole) + 1]
    if not len(whole) or offsets[-1] == offsets[0]:
        return np.zeros(len(whole), np.uint64)
    data = np.frombuffer(whole.buffers()[2], np.uint8)[offsets[0] : offsets[-1]]
    starts, sizes = offsets[:-1] - offsets[0], np.diff(offsets)
    weights = mix(np.arange(sizes.max(), dtype=np.uint64)) | np.uint64(1)
    weighted = weights[np.arange(len(data)) - np.repeat(starts, sizes)] * (data.astype(np.uint64) + np.uint64(1))
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(weighted)])
    return mix(sums[starts + sizes] - sums[starts])


def _numbers(column: pa.ChunkedArray) -> np.ndarray:
    """Decisions as their place in tables.DECISIONS, -1 for anything else (int8)."""
    whole = column.combine_chunks()
    places = pc.fill_null(pc.index_in(whole.dictionary, pa.array(tables.DECISIONS)), -1).to_numpy()
    known = np.append(places, -1).astype(np.int8)
    return known[pc.fill_null(whole.indices, len(whole.dictionary)).to_numpy()]
