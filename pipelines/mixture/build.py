"""Compile a mixture over a data root: eligible rows in a fixed order, cut into groups that share source and shape."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import tempfile
from collections import Counter
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.mixture import eligible, shapes
from pipelines.mixture.eligible import Eligible
from pipelines.mixture.mixture import Mixture
from pipelines.mixture.order import Interleave, integer_weights
from pipelines.mixture.store import FILES, RECORD, Rows, Writer
from sama.errors import InputError
from sama.video import Bucket

BLOCK = 1 << 20  # rows hashed at once
VERSION = 2  # of the arithmetic: part of every plan's digest
LAYOUT = 2  # of the files beside plan.json; a plan of an older one is compiled again


@dataclass(frozen=True)
class Group:
    """Rows [first, first + size) of the plan: one source of one stream at one shape."""

    stream: str
    source: int  # number of the source within the stream
    dataset: str
    bucket: Bucket
    first: int
    size: int
    weight: int  # share of the stream's slots, relative to the stream's other groups


@dataclass
class Compiled:
    """What `BatchPlan` serves from: facts (plan.json), and the folder with the rows."""

    facts: dict[str, Any]
    folder: str
    rows: Rows
    scratch: tempfile.TemporaryDirectory | None = None  # removed with the last reference to it


def compile_plan(root: str, mixture: Mixture) -> Compiled:
    """Everything a plan needs from a data root. The same input gives the same digest on any machine.

    Rows go into a scratch folder (TMPDIR) as the index is read: some 350 bytes each. InputError for whatever makes
    the mixture impossible.
    """
    scratch = tempfile.TemporaryDirectory(prefix="sama-plan-")
    try:
        facts = _compile(root, mixture, scratch.name)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise InputError(f"no space left in {scratch.name} for the plan: set TMPDIR to a larger disk") from None
    return Compiled(facts, scratch.name, Rows(scratch.name), scratch)


def _compile(root: str, mixture: Mixture, folder: str) -> dict[str, Any]:
    allowed = {s: shapes.choices(mixture.buckets, s) for s in mixture.active()}
    if not all(allowed.values()):
        raise InputError(f"buckets: no shape of {mixture.buckets.area} pixels has sides in {mixture.buckets.multiple}s")
    writer = Writer(folder)
    inputs = eligible.gather(root, mixture, allowed, writer)
    writer.flush()
    groups: list[Group] = []
    orders: list[np.ndarray] = []
    heldout, counts = [], []
    state = hashlib.sha256()
    summary: dict[str, Any] = {"left_out": inputs.left_out, "sources": []}
    for stream in mixture.active():
        found = [e for e in inputs.sources if e.stream == stream]
        rows_at: Counter[int] = Counter()
        for one in found:
            for (shape, *_), n in one.facts.items():
                rows_at[shape] += n
        goes = shapes.merge_rare(
            rows_at, allowed[stream], mixture.buckets.min_rows or mixture.stream(stream).global_batch
        )
        summary[f"moved_{stream}"] = sum(n for b, n in rows_at.items() if goes[b] != b)
        shares = source_shares(found, mixture, stream)
        parts = []  # (bucket, source, numbers of its rows)
        for one in found:
            final = np.asarray([goes.get(b, b) for b in range(len(allowed[stream]))], np.int16)[one.shapes]
            for bucket in np.unique(final).tolist():
                parts.append((bucket, one, np.flatnonzero(final == bucket).astype(np.int32)))
        parts.sort(key=lambda p: (allowed[stream][p[0]], p[1].number))
        weights = integer_weights([shares[one.number] * Fraction(len(rows), one.size) for _, one, rows in parts])
        for (bucket, one, numbers), weight in zip(parts, weights, strict=True):
            shape, first = allowed[stream][bucket], sum(len(o) for o in orders)
            groups.append(Group(stream, one.number, one.source.dataset, shape, first, len(numbers), weight))
            numbers = _in_order(one, numbers, folder)
            for block in np.array_split(numbers, len(numbers) // BLOCK + 1):
                state.update(one.digests[block].tobytes())
            orders.append(one.first + numbers.astype(np.int64 if writer.count >= 2**31 else np.int32))
            counts.append(_facts_at(one, {b for b in goes if goes[b] == bucket}))
        for one in found:
            heldout += _heldout(one, sorted({allowed[stream][p[0]] for p in parts}), writer)
        summary["sources"] += [
            {
                "stream": stream, "number": e.number, "dataset": e.source.dataset, "selection": e.source.selection,
                "counts": e.counts, "share": float(shares[e.number]), "heldout": e.counts["held out"],
                "licenses": e.counted(3), "categories": e.counted(1),
            }
            for e in found
        ]  # fmt: skip
    writer.close(orders, heldout)
    facts = {
        "schema": "sama.plan/1", "version": VERSION, "layout": LAYOUT, "mixture": mixture.tree(),
        "mixture_digest": mixture.digest, "selections": inputs.selections, "blocklist": inputs.blocklist,
        "places": hashlib.sha256("\n".join(sorted(writer.words("uri"))).encode()).hexdigest(),
        "rows": state.hexdigest(), "captions": inputs.captions, "near_duplicates": inputs.near,
        "groups": [{**asdict(g), "bucket": [g.bucket.frames, g.bucket.height, g.bucket.width]} for g in groups],
        "group_counts": counts,
        "summary": summary,
    }  # fmt: skip
    facts["digest"] = digest(facts)
    return facts


def digest(facts: dict[str, Any]) -> str:
    """sha256 (hex) of all that decides what a step holds; where the files lie is not part of it."""
    names = ["version", "mixture_digest", "selections", "blocklist", "rows", "groups"]
    # plans made before there were any keep their digest
    names += [n for n in ("captions", "near_duplicates") if facts.get(n)]
    return hashlib.sha256(json.dumps([facts[n] for n in names], sort_keys=True).encode()).hexdigest()


def source_shares(found: list[Eligible], mixture: Mixture, stream: str) -> dict[int, Fraction]:
    """Each source's share of the stream's slots over the whole run; max_epochs lowers a share, others fill up.

    InputError when the caps together hold fewer samples than the steps need.
    """
    weights = {e.number: _weight(e) for e in found}
    limits = {e.number: e.source.max_epochs for e in found}
    sizes = {e.number: e.size for e in found}
    active = mixture.active()
    turns = Interleave([getattr(mixture.schedule, s) for s in active])
    slots = turns.count(active.index(stream), mixture.steps) * mixture.stream(stream).global_batch
    capped: dict[int, Fraction] = {}
    while True:
        free = {n: w for n, w in weights.items() if n not in capped}
        rest = 1 - sum(capped.values(), Fraction(0))
        shares = {n: rest * w / sum(free.values()) for n, w in free.items()} | capped
        over = {}
        for number, limit in limits.items():
            if limit is not None and slots and number not in capped:
                most = Fraction(str(limit)) * sizes[number] / slots
                if shares[number] > most:
                    over[number] = most
        if not over:
            return shares
        capped |= over
        if len(capped) == len(weights):
            held = int(sum(capped.values(), Fraction(0)) * slots)
            raise InputError(
                f"the {stream} stream needs {slots} samples over {mixture.steps} steps, max_epochs of its sources "
                f"allow {held}: lower steps, raise max_epochs or add a source"
            )


def _weight(one: Eligible) -> Fraction:
    return Fraction(one.size) if one.source.weight == "size" else Fraction(str(one.source.weight))


def _in_order(one: Eligible, numbers: np.ndarray, folder: str) -> np.ndarray:
    """Rows of a source by digest, then key: an order that no file layout and no machine can change."""
    first_word = np.ascontiguousarray(one.digests[numbers, :8]).view(">u8")[:, 0].astype(np.uint64)
    order = np.argsort(first_word, kind="stable")
    numbers, first_word = numbers[order], first_word[order]
    same = np.flatnonzero(first_word[1:] == first_word[:-1])
    if not len(same):
        return numbers
    records = np.memmap(os.path.join(folder, FILES[0]), RECORD, mode="r")
    text = np.memmap(os.path.join(folder, FILES[1]), np.uint8, mode="r")
    for run in np.split(same, np.flatnonzero(np.diff(same) > 1) + 1):
        at = slice(int(run[0]), int(run[-1]) + 2)
        tied = [(one.digests[n].tobytes(), _key(records[one.first + n], text), n) for n in numbers[at].tolist()]
        numbers[at] = [n for _, _, n in sorted(tied)]
    return numbers


def _key(record: np.void, text: np.ndarray) -> bytes:
    return text[int(record["text"]) : int(record["text"]) + int(record["key_bytes"])].tobytes()


def _facts_at(one: Eligible, from_shapes: set[int]) -> dict[str, dict[str, int]]:
    """Rows of a group by category, kind and license."""
    found: dict[str, Counter[str]] = {"category": Counter(), "kind": Counter(), "license": Counter()}
    for (shape, *words), n in sorted(one.facts.items()):
        if shape in from_shapes:
            for counter, word in zip(found.values(), words, strict=True):
                counter[word] += n
    return {name: dict(counter) for name, counter in found.items()}


def _heldout(one: Eligible, active: list[Bucket], writer: Writer) -> list[dict[str, Any]]:
    """Held-out rows of a source with the shape of the nearest trained bucket; those shorter than all are left out."""
    if not one.heldout.num_rows:
        return []
    numbers = shapes.assign(one.heldout, active)
    table = one.heldout.filter(pa.array(numbers >= 0))
    first = writer.append(table)
    return [
        {"place": first + i, "stream": one.stream, "source": one.number, "bucket": list(asdict(active[n]).values())}
        for i, n in enumerate(numbers[numbers >= 0].tolist())
    ]
