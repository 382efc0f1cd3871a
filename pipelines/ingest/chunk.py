"""One chunk of candidates to shards, index rows and rejects: the work of one Ray task."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from contextlib import ExitStack
from typing import Any

from pipelines.ingest.candidate import Candidate
from pipelines.ingest.references import MissingError, read_first
from pipelines.samples import storage
from pipelines.samples.index import write_index, write_rejects
from pipelines.samples.record import Media, Sample, index_row
from pipelines.samples.shards import ShardWriter
from sama.video import MediaError, is_image, media_type, probe

_COPIED = (
    "key", "upstream_id", "dataset_revision", "subset", "instruction", "caption", "language", "category_raw",
    "motion_preserving", "frame_policy", "license", "license_evidence", "attribution", "source_url", "editor", "extra",
)  # fmt: skip
RAW_LIMIT = 20_000  # characters of a manifest row that a reject keeps


class RejectError(Exception):
    """Why a candidate does not become a sample: a reason of `tables.REJECT_REASONS`, and the detail."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


class StorageError(Exception):
    """An object store failed again and again; the job stops, and running it again goes on."""


def ingest_chunk(row: dict[str, Any]) -> dict[str, Any]:
    """Read, check and write one chunk.

    in:  root, dataset, chunk: str (the name of everything written); heldout_share: float;
         candidates: list of JSON strings (`Candidate.to_json`), with keys
    out: chunk: str, index: int, rejects: int, reasons_json: str (reason -> count), bytes: int

    Order of writing: shards, rejects, index part. The index part marks the chunk as finished, so after a
    kill the whole chunk is done again, to the same names.
    """
    root, dataset, chunk = row["root"], row["dataset"], row["chunk"]
    rows: list[dict[str, Any]] = []
    rejects: list[dict[str, Any]] = []
    size = 0
    with ExitStack() as stack:
        writers: dict[str, ShardWriter] = {}
        for text in row["candidates"]:
            candidate = Candidate.from_json(text)
            try:
                sample, members = take(candidate, dataset)
            except RejectError as reject:
                rejects.append(reject_row(dataset, candidate, reject))
                continue
            # one kind and one set of members per shard
            name = "-".join([sample.kind, *(m.replace(".", "_") for m in members if m != "json")])
            if name not in writers:
                uri = storage.join(root, "shards", dataset, f"{chunk}-{name}.tar")
                writers[name] = stack.enter_context(ShardWriter(uri))
            rows.append(index_row(sample, writers[name].add(sample.key, members), heldout_share=row["heldout_share"]))
            size += sum(len(m) for m in members.values())
    if rejects:
        write_rejects(root, dataset, rejects, chunk)
    write_index(root, dataset, rows, chunk)
    reasons = Counter(r["reason"] for r in rejects)
    return {
        "chunk": chunk, "index": len(rows), "rejects": len(rejects), "reasons_json": json.dumps(reasons), "bytes": size
    }  # fmt: skip


def take(candidate: Candidate, dataset: str) -> tuple[Sample, dict[str, bytes]]:
    """The sample of a candidate and its shard members in order (source, target, json). RejectError otherwise."""
    if candidate.error:
        raise RejectError(*candidate.error)
    if candidate.needs_caption and not candidate.caption:
        raise RejectError("no_caption", "the manifest gives no caption")
    if not candidate.instruction and (candidate.source or candidate.kind in ("video_edit", "image_edit")):
        raise RejectError("no_instruction", "the manifest gives no instruction")
    try:
        return _take(candidate, dataset)
    except (RejectError, StorageError):
        raise
    except Exception as error:  # a fault in one sample, ours included, is written down and never stops the job
        raise RejectError("unexpected_error", f"{type(error).__name__}: {error}") from error


def _take(candidate: Candidate, dataset: str) -> tuple[Sample, dict[str, bytes]]:
    media: dict[str, bytes] = {}
    if candidate.source:
        media["source"] = _read("source", candidate.source, candidate.source_sha256)
    media["target"] = _read("target", candidate.target, candidate.target_sha256)
    facts = {side: _facts(side, data, candidate.kind) for side, data in media.items()}
    kind = candidate.kind or _kind(facts)
    given = {n: getattr(candidate, n) for n in _COPIED}
    sample = Sample.model_validate(
        {
            **given, **facts, "dataset": dataset, "kind": kind,
            "category": "other" if kind == "text_to_video" else candidate.category,
            "origin": {n: getattr(candidate, n) for n in ("manifest", "row", "archive", "member")},
        }
    )  # fmt: skip
    members = {f"{side}.{media_type(data)}": data for side, data in media.items()}
    return sample, {**members, "json": sample.to_json()}


def _read(side: str, places: tuple[str, ...], promised: str | None) -> bytes:
    try:
        data, uri = read_first(places)
    except MissingError as error:
        raise RejectError(f"missing_{side}", str(error)) from None
    except OSError as error:
        if "://" in places[0]:  # a store that does not answer says nothing about the sample: stop, and go on later
            raise StorageError(f"{places[0]}: {error}") from error
        raise RejectError(f"unreadable_{side}", f"{type(error).__name__}: {error}") from None
    if promised and hashlib.sha256(data).hexdigest() != promised:
        raise RejectError("digest_mismatch", f"{uri} is not the {side} that the manifest names by its sha256")
    return data


def _facts(side: str, data: bytes, kind: str | None) -> Media:
    try:
        still, found = is_image(data), probe(data)
    except MediaError as error:
        raise RejectError(f"unreadable_{side}", str(error)) from None
    if kind and still != (kind == "image_edit"):
        raise RejectError("wrong_media_type", f"the {side} of a {kind} is a {'still picture' if still else 'video'}")
    digest = hashlib.sha256(data).hexdigest()
    return Media(
        sha256=digest, width=found.width, height=found.height, fps=found.fps or None, frames=found.frames,
        codec=found.codec, has_audio=found.has_audio,
    )  # fmt: skip


def _kind(facts: dict[str, Media]) -> str:
    stills = {side: media.fps is None for side, media in facts.items()}
    if "source" not in stills:
        if stills["target"]:
            raise RejectError("wrong_media_type", "a lone picture is neither an edit nor a video")
        return "text_to_video"
    if stills["source"] != stills["target"]:
        raise RejectError("wrong_media_type", "one side is a still picture, the other a video")
    return "image_edit" if stills["source"] else "video_edit"


def reject_row(dataset: str, candidate: Candidate, reject: RejectError) -> dict[str, Any]:
    """The row of `tables.REJECTS`."""
    raw = json.dumps(candidate.raw, ensure_ascii=False, default=str)
    return {
        "dataset": dataset, "manifest": candidate.manifest, "row": candidate.row,
        "upstream_id": candidate.upstream_id, "reason": reject.reason, "detail": reject.detail[:2000],
        "raw_json": raw if len(raw) <= RAW_LIMIT else json.dumps({"cut": raw[:RAW_LIMIT]}, ensure_ascii=False),
    }  # fmt: skip
