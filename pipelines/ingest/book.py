"""The provenance of an ingest while it runs: how many rows each manifest has, and which manifests those were."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from pipelines.ingest.candidate import Candidate
from pipelines.ingest.resume import Finished
from pipelines.samples import provenance, storage
from sama.errors import InputError


class Book:
    """Counts manifest rows as they go by, and writes index/<dataset>/provenance.json.

    It is written before any part of the rows it counts, so the ledger of a killed run shows what is left.
    """

    def __init__(self, index: str, base: str) -> None:
        self.index, self.base = index, base  # the dataset's index folder; the folder that manifests are relative to
        facts = provenance.read(index) or {}
        self.before = facts if {"settings", "counts", "inputs", "end"} <= set(facts) else {}
        self.inputs: dict[str, str] = dict(self.before.get("inputs", {}))
        self.known: dict[str, int] = self.before.get("counts", {}).get("manifests", {})
        self.rows: Counter[str] = Counter()
        self._digests: dict[str, str] = {}
        self._started = provenance.now()

    @property
    def unfinished(self) -> dict[str, Any] | None:
        """The settings of an earlier run that did not come to its end."""
        return self.before["settings"] if self.before and self.before["end"] is None else None

    def check(self, scan: Callable[[], Iterable[Candidate]], finished: Finished, options: Mapping[str, Any]) -> None:
        """A manifest may have grown since an earlier run, but must still hold the rows it had. InputError if not."""
        if not self.before:
            return
        present = [m for m in self.inputs if storage.exists(storage.join(self.base, m))]
        changed = [m for m in present if self._digest(m) != self.inputs[m]]
        if self.before["settings"].get("options") != dict(options):
            changed = present
        if not changed:
            return
        kept = Counter(c.manifest for c in scan() if finished.has(c))
        for manifest in changed:
            gone = finished.rows[manifest] - kept[manifest]
            if gone > 0:
                name = self.index.rsplit("/", 1)[-1]
                raise InputError(
                    f"{manifest} in {self.base} lacks {gone} rows that {name} was made from: "
                    "ingest it under another --name"
                )

    def write(self, command: str, settings: Mapping[str, Any], counts: Mapping[str, Any], ended: str | None) -> None:
        self.inputs |= {m: self._digest(m) for m in self.rows}
        manifests = {m: max(self.rows[m], self.known.get(m, 0)) for m in [*self.known, *self.rows]}
        facts = {**counts, "manifests": manifests}
        provenance.record(self.index, command, settings, facts, self.inputs, self._started, ended)

    def _digest(self, manifest: str) -> str:
        """sha256, or the size of a manifest of hundreds of megabytes (parquet with the pictures in it)."""
        if manifest not in self._digests:
            uri = storage.join(self.base, manifest)
            size = storage.size_of(uri)
            large = size > 2**28
            digest = "" if large else hashlib.sha256(storage.read_bytes(uri)).hexdigest()
            self._digests[manifest] = f"bytes:{size}" if large else f"sha256:{digest}"
        return self._digests[manifest]
