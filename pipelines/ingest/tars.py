"""`sama index`: samples of anybody's tars in our layout, without copying a byte."""

from __future__ import annotations

import hashlib
import json
import posixpath
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from pipelines.config import RaySettings
from pipelines.ingest.ingest import CPUS_PER_CHUNK, HELDOUT_SHARE, NAME
from pipelines.progress import track
from pipelines.samples import provenance, storage, tables
from pipelines.samples.index import open_root, write_index, write_rejects
from pipelines.samples.record import Sample, index_row
from pipelines.samples.shards import Entry, ShardError, read_shard
from sama.errors import InputError


def index_tars(
    root: str,
    dataset: str,
    tars: list[str],
    *,
    heldout_share: float | None = None,
    ray_settings: RaySettings | None = None,
) -> dict[str, Any]:
    """Index every tar (folders: all tars below them); a tar that was indexed before is passed over.

    A tar is its own manifest: its rows are its entries, and one more where the rest cannot be read.
    Returns counts as `ingest` does. InputError for a tar that is not there, or none at all.
    """
    started = provenance.now()
    if not NAME.fullmatch(dataset):
        raise InputError(f"{dataset!r} cannot name a dataset: use a-z, 0-9, - and _, at most 41 of them")
    uris = _find(tars)
    root = storage.absolute(root)
    new = not storage.exists(storage.join(root, "root.json"))
    share = open_root(root, HELDOUT_SHARE if new and heldout_share is None else heldout_share)
    folder = storage.join(root, "index", dataset)
    before = provenance.read(folder) or {"counts": {}, "inputs": {}}
    manifests: dict[str, int] = dict(before["counts"].get("manifests", {}))
    settings = {"dataset": dataset, "root": root, "tars": uris, "heldout_share": share}
    done_parts = {u.rsplit("/part-", 1)[-1] for u in storage.list_files(folder, ".parquet")}
    todo = [u for u in uris if f"{chunk_name(u)}.parquet" not in done_parts]
    counts: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    sizes = {u: f"bytes:{storage.size_of(u)}" for u in uris}

    def note(result: dict[str, Any], ended: str | None) -> None:
        facts = {**result, "manifests": manifests}
        provenance.record(folder, "sama index", settings, facts, {**before["inputs"], **sizes}, started, ended)

    note({}, None)
    for done in _run(todo, root, dataset, share, ray_settings) if todo else ():
        manifests[done["tar"]] = done["index"] + done["rejects"]
        counts.update({"chunks": 1, **{k: done[k] for k in ("index", "rejects", "bytes")}})
        reasons.update(json.loads(done["reasons_json"]))
    _recount(manifests, uris, folder, root, dataset)
    result: dict[str, Any] = {k: counts[k] for k in ("index", "rejects", "bytes", "chunks")}
    result |= {"done_before": sum(manifests.get(u, 0) for u in uris if u not in todo)}
    result |= {"manifest_rows": sum(manifests.values()), "reasons": dict(sorted(reasons.items()))}
    note(result, provenance.now())
    if not any(manifests[u] for u in uris):
        raise InputError(f"{', '.join(tars)}: no sample in {len(uris)} tars")
    return result


def index_tar(row: dict[str, Any]) -> dict[str, Any]:
    """Index one tar.

    in:  root, dataset, tar (URI): str; heldout_share: float
    out: tar: str, index, rejects, bytes: int, reasons_json: str
    Writes rejects first, then the index part, which marks the tar as done.
    """
    root, dataset, uri = row["root"], row["dataset"], row["tar"]
    rows: list[dict[str, Any]] = []
    rejects: list[dict[str, Any]] = []
    seen: set[str] = set()
    number, size = 0, 0

    def reject(reason: str, detail: str, key: str = "") -> None:
        rejects.append(
            {
                "dataset": dataset, "manifest": uri, "row": number, "upstream_id": key, "reason": reason,
                "detail": detail, "raw_json": None,
            }
        )  # fmt: skip

    for entry in _entries(uri):
        if isinstance(entry, ShardError):
            reject("truncated_archive" if number else "unreadable_archive", str(entry))
            break
        try:
            if entry.key in seen:
                raise _BrokenError("duplicate", f"the key {entry.key} occurs twice")
            seen.add(entry.key)
            rows.append(_index_entry(uri, entry, dataset, row["heldout_share"]))
            size += sum(s for _, s in entry.members.values())
        except _BrokenError as error:
            reject(error.reason, str(error), entry.key)
        number += 1
    chunk = chunk_name(uri)
    if rejects:
        write_rejects(root, dataset, rejects, chunk)
    write_index(root, dataset, rows, chunk)
    reasons = Counter(r["reason"] for r in rejects)
    return {
        "tar": uri, "index": len(rows), "rejects": len(rejects), "bytes": size, "reasons_json": json.dumps(reasons)
    }  # fmt: skip


class _BrokenError(Exception):
    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def _entries(uri: str) -> Iterator[Entry | ShardError]:
    try:
        yield from read_shard(uri)
    except ShardError as error:
        yield error


def _index_entry(uri: str, entry: Entry, dataset: str, share: float) -> dict[str, Any]:
    if "json" not in entry.members:
        raise _BrokenError("bad_row", f"{entry.key} has no {entry.key}.json")
    try:
        sample = Sample.from_json(storage.read_range(uri, *entry.members["json"]))
    except ValueError as error:
        raise _BrokenError("bad_row", f"{entry.key}.json: {error}") from None
    if sample.key != entry.key:
        raise _BrokenError("bad_row", f"{entry.key}.json says that its key is {sample.key}")
    # the folder of the index names the dataset; the sample keeps what it was called before in its JSON
    sample = sample.model_copy(update={"dataset": dataset})
    locations = {"json": (uri, *entry.members["json"])}
    for side, media in (("source", sample.source), ("target", sample.target)):
        if media is None:
            continue
        member = next((m for m in sorted(entry.members) if m.split(".")[0] == side), None)
        if member is None:
            raise _BrokenError(f"missing_{side}", f"{entry.key} has no {side} member")
        locations[side] = (uri, *entry.members[member])
        if hashlib.sha256(storage.read_range(*locations[side])).hexdigest() != media.sha256:
            raise _BrokenError("digest_mismatch", f"{entry.key}.{member} is not the file that its JSON describes")
    return index_row(sample, locations, heldout_share=share)


def chunk_name(uri: str) -> str:
    """The name of a tar's parts: readable, and unique to its place."""
    slug = re.sub(r"[^a-z0-9]+", "-", posixpath.basename(uri).lower()).strip("-")[-60:]
    return f"{slug}-{hashlib.sha256(uri.encode()).hexdigest()[:8]}"


def _recount(manifests: dict[str, int], uris: list[str], folder: str, root: str, dataset: str) -> None:
    """Count tars that were finished by a run that was killed before it could note them."""
    rejects = storage.join(root, "rejects", dataset)
    for uri in uris:
        if uri in manifests:
            continue
        name = f"part-{chunk_name(uri)}.parquet"
        found = storage.read_part(storage.join(folder, name), tables.INDEX, ["key"]).num_rows
        if storage.exists(storage.join(rejects, name)):
            found += storage.read_part(storage.join(rejects, name), tables.REJECTS, ["row"]).num_rows
        manifests[uri] = found


def _find(tars: list[str]) -> list[str]:
    found: list[str] = []
    for tar in tars:
        if not storage.exists(tar):
            raise InputError(f"{tar} is not there")
        found += storage.list_files(tar, ".tar", recursive=True) if storage.is_folder(tar) else [storage.absolute(tar)]
    if not found:
        raise InputError(f"{', '.join(tars)}: no tar found")
    return list(dict.fromkeys(found))


def _run(
    tars: list[str], root: str, dataset: str, share: float, ray_settings: RaySettings | None
) -> Iterator[dict[str, Any]]:
    import ray.data

    from pipelines.cluster_session import connect

    connect(ray_settings)
    given = {"root": root, "dataset": dataset, "heldout_share": share}
    ds = ray.data.from_items([{**given, "tar": t} for t in tars], override_num_blocks=len(tars))
    ds = ds.map(index_tar, num_cpus=CPUS_PER_CHUNK)
    yield from track(ds.iter_rows(), total=len(tars), label=f"index {dataset}", unit="tars")
