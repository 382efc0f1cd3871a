"""Compile a mixture over a data root: eligible rows in a fixed order, cut into groups that share source and shape."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.mixture import eligible, shapes
from pipelines.mixture.eligible import Eligible
from pipelines.mixture.mixture import Mixture
from pipelines.mixture.order import Interleave, integer_weights
from sama.errors import InputError
from sama.video import Bucket

VERSION = 1  # of the arithmetic: part of every plan's digest


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
    """What `BatchPlan` serves from: facts, rows to draw from and held-out rows (both with their text apart)."""

    facts: dict[str, Any]
    rows: pa.Table
    text: pa.Table
    heldout: pa.Table


def compile_plan(root: str, mixture: Mixture) -> Compiled:
    """Everything a plan needs from a data root. The same input gives the same digest on any machine.

    InputError for whatever makes the mixture impossible.
    """
    inputs = eligible.gather(root, mixture)
    tables, groups, heldout = [], [], []
    summary: dict[str, Any] = {"left_out": inputs.left_out, "sources": []}
    first = 0
    for stream in mixture.active():
        found = [e for e in inputs.sources if e.stream == stream]
        allowed = shapes.choices(mixture.buckets, stream)
        if not allowed:
            raise InputError(
                f"buckets: no shape of {mixture.buckets.area} pixels has sides in {mixture.buckets.multiple}s"
            )
        placed = [shapes.assign(e.train, allowed) for e in found]
        counts: Counter[int] = Counter()
        for numbers in placed:
            counts.update(dict(zip(*(a.tolist() for a in np.unique(numbers, return_counts=True)), strict=True)))
        settings = mixture.stream(stream)
        goes = shapes.merge_rare(counts, allowed, mixture.buckets.min_rows or settings.global_batch)
        summary[f"moved_{stream}"] = sum(n for b, n in counts.items() if goes[b] != b)
        shares = source_shares(found, mixture, stream)
        parts = []  # (bucket, source, rows)
        for one, numbers in zip(found, placed, strict=True):
            final = np.asarray([goes[b] for b in numbers.tolist()], np.int64)
            table, final = _in_order(one.train, final)
            for bucket in np.unique(final).tolist():
                parts.append((allowed[bucket], one, table.filter(pa.array(final == bucket))))
        parts.sort(key=lambda p: (p[0], p[1].number))
        weights = integer_weights([shares[p[1].number] * Fraction(p[2].num_rows, p[1].train.num_rows) for p in parts])
        for (bucket, one, table), weight in zip(parts, weights, strict=True):
            groups.append(Group(stream, one.number, one.source.dataset, bucket, first, table.num_rows, weight))
            tables.append(table)
            first += table.num_rows
        active = sorted({p[0] for p in parts})
        heldout += [_heldout(e, active) for e in found if e.heldout.num_rows]
        summary["sources"] += [
            {
                "stream": stream, "number": e.number, "dataset": e.source.dataset, "counts": e.counts,
                "share": float(shares[e.number]), "heldout": e.heldout.num_rows,
                "licenses": _counts(e.train["license"]), "categories": _counts(e.train["category"]),
            }
            for e in found
        ]  # fmt: skip
    rows = pa.concat_tables(tables).unify_dictionaries().combine_chunks()
    facts = {
        "schema": "sama.plan/1", "version": VERSION, "mixture": mixture.tree(), "mixture_digest": mixture.digest,
        "selections": inputs.selections, "blocklist": inputs.blocklist,
        "places": _places(rows),
        "rows": hashlib.sha256(eligible.content(rows["sample_digest"])).hexdigest(),
        "groups": [{**asdict(g), "bucket": [g.bucket.frames, g.bucket.height, g.bucket.width]} for g in groups],
        "summary": summary,
    }  # fmt: skip
    facts["digest"] = digest(facts)
    held = pa.concat_tables(heldout).unify_dictionaries() if heldout else None
    return Compiled(
        facts,
        rows.drop_columns(eligible.TEXT_COLUMNS),
        _wide(rows.select(eligible.TEXT_COLUMNS)),
        held.combine_chunks() if held is not None else rows.slice(0, 0),
    )


def digest(facts: dict[str, Any]) -> str:
    """sha256 (hex) of all that decides what a step holds; where the files lie is not part of it."""
    names = ("version", "mixture_digest", "selections", "blocklist", "rows", "groups")
    return hashlib.sha256(json.dumps([facts[n] for n in names], sort_keys=True).encode()).hexdigest()


def source_shares(found: list[Eligible], mixture: Mixture, stream: str) -> dict[int, Fraction]:
    """Each source's share of the stream's slots over the whole run; max_epochs lowers a share, others fill up.

    InputError when the caps together hold fewer samples than the steps need.
    """
    weights = {e.number: _weight(e) for e in found}
    limits = {e.number: e.source.max_epochs for e in found}
    sizes = {e.number: e.train.num_rows for e in found}
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
    return Fraction(one.train.num_rows) if one.source.weight == "size" else Fraction(str(one.source.weight))


def _in_order(table: pa.Table, numbers: np.ndarray) -> tuple[pa.Table, np.ndarray]:
    """Rows by digest, then key: an order that no file layout and no machine can change."""
    order = pc.sort_indices(table, [("sample_digest", "ascending"), ("key", "ascending")])
    return table.take(order), numbers[order.to_numpy()]


def _heldout(one: Eligible, active: list[Bucket]) -> pa.Table:
    """Held-out rows of a source with the shape of the nearest trained bucket; those shorter than all are left out."""
    table, numbers = _in_order(one.heldout, shapes.assign(one.heldout, active))
    fits = numbers >= 0
    table, numbers = table.filter(pa.array(fits)), numbers[fits]
    table = table.append_column("stream", pa.array([one.stream] * len(numbers), pa.string()))
    table = table.append_column("source_number", pa.array([one.number] * len(numbers), pa.int32()))
    sizes = np.asarray([(active[n].frames, active[n].height, active[n].width) for n in numbers], np.int32).reshape(
        -1, 3
    )
    for i, name in enumerate(("bucket_frames", "bucket_height", "bucket_width")):
        table = table.append_column(name, pa.array(sizes[:, i]))
    return _wide(table)


def _places(rows: pa.Table) -> str:
    """Digest of the URIs of all shards: not part of a plan's identity, but a moved data root needs a new file."""
    names = {
        u for side in ("source", "target") for u in pc.unique(rows[f"{side}_uri"].cast(pa.string())).to_pylist() if u
    }
    return hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()


def _wide(table: pa.Table) -> pa.Table:
    """Text columns with 64-bit offsets: ten million instructions are more than 2 GiB."""
    fields = [f.with_type(pa.large_string()) if f.name in eligible.TEXT_COLUMNS else f for f in table.schema]
    return table.cast(pa.schema(fields))


def _counts(column: pa.ChunkedArray) -> dict[str, int]:
    counted = pc.value_counts(pc.fill_null(column.cast(pa.string()), "unknown")).to_pylist()
    return {c["values"]: c["counts"] for c in sorted(counted, key=lambda c: (-c["counts"], c["values"]))}
