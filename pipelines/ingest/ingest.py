"""Ingest on Ray Data: the driver reads manifests, tasks read media and write shards, index and rejects."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from pipelines.config import RaySettings
from pipelines.ingest.adapters import adapter
from pipelines.ingest.book import Book
from pipelines.ingest.candidate import Candidate, Options
from pipelines.ingest.chunk import ingest_chunk
from pipelines.ingest.resume import RETRY, Finished
from pipelines.progress import track
from pipelines.samples import provenance, storage
from pipelines.samples.index import open_root
from pipelines.samples.record import make_key
from sama.errors import InputError

HELDOUT_SHARE = 0.05
CHUNK_ROWS = 32  # rows of a task and of its shards: some 300 MB of 720p pairs
WAVE_CHUNKS = 512  # chunks handed to Ray at a time, so that the driver never holds all rows of a manifest
CPUS_PER_CHUNK = 1.0  # reading, hashing and probing is one thread
NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,40}")


def ingest(
    dataset: str,
    folder: str,
    root: str,
    *,
    name: str | None = None,
    heldout_share: float | None = None,
    chunk_rows: int = CHUNK_ROWS,
    options: Options | None = None,
    retry_missing: bool = False,
    ray_settings: RaySettings | None = None,
) -> dict[str, Any]:
    """Bring a data set into a data root. Run again, it goes on after a kill and takes in new manifest rows.

    name: of the dataset in the root, default the adapter's. heldout_share: of a new root (default 0.05); an
    old one keeps its own. retry_missing: look again for media that earlier runs did not find.
    Returns counts of this run: index, rejects, reasons, bytes, chunks; manifest_rows and done_before of all.
    InputError for a missing folder or manifest, an empty manifest, or a root that disagrees.
    """
    module, options = adapter(dataset), options or Options()
    name = name or module.NAME
    if not NAME.fullmatch(name):
        raise InputError(f"{name!r} cannot name a dataset: use a-z, 0-9, - and _, at most 41 of them")
    if chunk_rows < 1:
        raise InputError("a chunk has at least 1 row")
    root, folder = storage.absolute(root), storage.absolute(folder)
    scanned = module.scan(folder, options)
    first = next(scanned, None)
    if first is None:
        raise InputError(f"{folder}: the manifests of {dataset} hold no rows")
    new = not storage.exists(storage.join(root, "root.json"))
    share = open_root(root, HELDOUT_SHARE if new and heldout_share is None else heldout_share)
    finished = Finished(root, name)
    given = dataclasses.asdict(options)
    book = Book(storage.join(root, "index", name), folder if storage.is_folder(folder) else folder.rsplit("/", 1)[0])
    book.check(lambda: module.scan(folder, options), finished, given)
    if book.unfinished:
        chunk_rows = book.unfinished["chunk_rows"]  # unfinished chunks must get the same names again
    settings = {
        "dataset": dataset, "name": name, "folder": folder, "root": root, "heldout_share": share,
        "chunk_rows": chunk_rows, "options": given, "retry_missing": retry_missing,
    }  # fmt: skip
    command = f"sama ingest {dataset}"
    counts: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    fresh = _fresh(itertools.chain([first], scanned), name, finished, retry_missing, book.rows, counts)
    for wave in _waves(_chunks(fresh, chunk_rows)):
        book.write(command, settings, {}, None)
        for done in _run(wave, root, name, share, ray_settings):
            reasons.update(json.loads(done["reasons_json"]))
            counts.update({"chunks": 1, **{k: done[k] for k in ("index", "rejects", "bytes")}})
    finished.settle()
    result: dict[str, Any] = {k: counts[k] for k in ("index", "rejects", "bytes", "chunks", "done_before")}
    result |= {"manifest_rows": sum(book.rows.values()), "reasons": dict(sorted(reasons.items()))}
    book.write(command, settings, result, provenance.now())
    return result


def _fresh(
    scanned: Iterable[Candidate],
    dataset: str,
    finished: Finished,
    retry: bool,
    rows: Counter[str],
    counts: Counter[str],
) -> Iterator[tuple[Candidate, bool]]:
    """The rows to do, with their keys and whether they are taken up again; the rest is counted."""
    seen: set[bytes] = set()
    taken = set(finished.keys)
    for candidate in scanned:
        rows[candidate.manifest] += 1
        repeated = candidate.error is None and candidate.content in seen
        seen.add(candidate.content)
        again = retry and finished.wants_again(candidate)
        if finished.has(candidate) and not again:
            counts["done_before"] += 1
            continue
        if repeated:
            error = ("duplicate", "an earlier row has the same media and the same words")
            candidate = dataclasses.replace(candidate, error=error)
        if candidate.error is None:
            key = make_key(dataset, candidate.upstream_id, taken, salt=candidate.content.hex())
            candidate = dataclasses.replace(candidate, key=key)
        yield candidate, again


def _chunks(fresh: Iterable[tuple[Candidate, bool]], chunk_rows: int) -> Iterator[dict[str, Any]]:
    """Chunks of at most `chunk_rows` neighbouring rows, cut where the row number says: the same in every run."""

    def block(item: tuple[Candidate, bool]) -> tuple[str, int]:
        return item[0].manifest, item[0].row // chunk_rows

    for (manifest, number), items in itertools.groupby(fresh, key=block):
        group = list(items)
        digest = hashlib.sha256(b"".join(c.identity for c, _ in group)).hexdigest()[:8]
        retry = RETRY if any(again for _, again in group) else "-"
        slug = re.sub(r"[^a-z0-9]+", "-", manifest.lower()).strip("-")[-60:]
        yield {"chunk": f"{slug}-{number:06d}{retry}{digest}", "candidates": [c.to_json() for c, _ in group]}


def _waves(chunks: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    stream = iter(chunks)
    while wave := list(itertools.islice(stream, WAVE_CHUNKS)):
        yield wave


def _run(
    chunks: list[dict[str, Any]], root: str, dataset: str, share: float, ray_settings: RaySettings | None
) -> Iterator[dict[str, Any]]:
    """One wave: one block, one task and one set of files per chunk; results as they come."""
    import ray.data

    from pipelines.cluster_session import connect

    connect(ray_settings)
    given = {"root": root, "dataset": dataset, "heldout_share": share}
    ds = ray.data.from_items([{**given, **c} for c in chunks], override_num_blocks=len(chunks))
    ds = ds.map(ingest_chunk, num_cpus=CPUS_PER_CHUNK)
    yield from track(ds.iter_rows(), total=len(chunks), label=f"ingest {dataset}", unit="chunks")
