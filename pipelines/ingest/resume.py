"""What earlier runs of an ingest finished, so that a killed, grown or completed download goes on from there."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator

from pipelines.ingest.candidate import Candidate, row_identity
from pipelines.samples import storage, tables
from pipelines.samples.index import write_rejects

RETRY = "-retry-"  # in the name of a chunk that takes up rows whose media were missing
MISSING = ("missing_source", "missing_target")


class Finished:
    """The manifest rows that a dataset's finished chunks account for.

    A chunk is finished when its index part exists. Rejects of a chunk without one are left over from a
    kill; the chunk is done again under the same name and replaces them.
    """

    def __init__(self, root: str, dataset: str) -> None:
        self.root, self.dataset = root, dataset
        self.index = storage.join(root, "index", dataset)
        self.rejects = storage.join(root, "rejects", dataset)
        self.chunks = {chunk_of(uri) for uri in storage.list_files(self.index, ".parquet")}
        self.indexed: set[bytes] = set()
        self.keys: set[str] = set()
        self.rows: Counter[str] = Counter()  # manifest -> rows
        for _, identity, row in self._indexed():
            self.indexed.add(identity)
            self.keys.add(row["key"])
            self.rows[json.loads(row["origin_json"])["manifest"]] += 1
        self.missing: set[bytes] = set()
        self.rejected: set[bytes] = set()
        for uri, identity, row in self._rejected():
            if chunk_of(uri) in self.chunks and not (identity in self.rejected or identity in self.indexed):
                self.rejected.add(identity)
                self.rows[row["manifest"]] += 1
                if row["reason"] in MISSING:
                    self.missing.add(identity)

    def has(self, candidate: Candidate) -> bool:
        return candidate.identity in self.indexed or candidate.identity in self.rejected

    def wants_again(self, candidate: Candidate) -> bool:
        """Whether a row was rejected for missing media that are there now."""
        identity = candidate.identity
        if identity not in self.missing or identity in self.indexed:
            return False
        sides = [side for side in (candidate.source, candidate.target) if side]
        return all(any(storage.exists(uri.partition("#row=")[0]) for uri in side) for side in sides)

    def settle(self) -> None:
        """After a retry (this run's, or one that was killed): drop the old rejects of rows taken up again."""
        if not any(RETRY in uri for uri in storage.list_files(self.index, ".parquet")):
            return
        taken = {identity for uri, identity, _ in self._indexed() if RETRY in uri}
        taken |= {identity for uri, identity, _ in self._rejected() if RETRY in uri}
        for uri in storage.list_files(self.rejects, ".parquet"):
            if RETRY in uri:
                continue
            rows = storage.read_part(uri, tables.REJECTS).to_pylist()
            kept = [r for r in rows if row_identity(r["manifest"], r["row"], r["upstream_id"]) not in taken]
            if len(kept) < len(rows):
                write_rejects(self.root, self.dataset, kept, chunk_of(uri))

    def _indexed(self) -> Iterator[tuple[str, bytes, dict]]:
        for uri in storage.list_files(self.index, ".parquet"):
            for row in storage.read_part(uri, tables.INDEX, ["origin_json", "upstream_id", "key"]).to_pylist():
                yield uri, _identity(row), row

    def _rejected(self) -> Iterator[tuple[str, bytes, dict]]:
        columns = ["manifest", "row", "upstream_id", "reason"]
        for uri in storage.list_files(self.rejects, ".parquet"):
            for row in storage.read_part(uri, tables.REJECTS, columns).to_pylist():
                yield uri, row_identity(row["manifest"], row["row"], row["upstream_id"]), row


def _identity(row: dict) -> bytes:
    origin = json.loads(row["origin_json"])
    return row_identity(origin["manifest"], origin["row"], row["upstream_id"])


def chunk_of(uri: str) -> str:
    """The chunk that wrote a part."""
    return uri.rsplit("/", 1)[-1].removeprefix("part-").removesuffix(".parquet")
