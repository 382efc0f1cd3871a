"""Index joined with selections: the rows that a mixture may use, and what was left out by what.

The index passes by in batches; a row that may be used goes straight into the plan's store, and only its digest and
its shape stay in memory.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.mixture import chosen, licences, shapes, store, windows
from pipelines.mixture.mixture import ImageStream, Mixture, Source, VideoStream
from pipelines.progress import track
from pipelines.samples import blocklist, captions, near
from pipelines.samples.index import count_rows, open_root, scan_index
from sama.errors import InputError
from sama.video import Bucket

# What a plan keeps of an index row.
ROW_COLUMNS = [
    "key", "sample_digest", "dataset", "kind", "category", "license", "source_group", "skip_head", "skip_tail",
    *(f"{s}_{c}" for s in ("source", "target") for c in ("uri", "offset", "size", "sha256", "frames")),
    "instruction", "caption", "source_url", "upstream_id",
]  # fmt: skip
_FACTS = [
    "split",
    "pairing",
    "policy_fps",
    *(f"{s}_{c}" for s in ("source", "target") for c in ("width", "height", "fps")),
]
BATCH = 1 << 17  # rows
WATCHED = 1 << 20  # rows from which on reading is worth a progress line
HELDOUT = 1000  # held-out samples that a plan keeps of each source: those of the smallest digests


@dataclass
class Eligible:
    """One source of one stream: where its rows lie in the store, and the count of every filter in order."""

    stream: str
    number: int  # of the source within the stream
    source: Source
    first: int  # place of its first row in the store
    digests: np.ndarray  # (N, 32) uint8, sample_digest of every row
    shapes: np.ndarray  # (N,) int16, number of the shape nearest to each row
    facts: Counter[tuple[int, str, str, str]]  # rows by shape, category, kind and license
    heldout: pa.Table  # store.COLUMNS, at most HELDOUT rows
    counts: dict[str, int]

    @property
    def size(self) -> int:
        return len(self.shapes)

    def counted(self, fact: int) -> dict[str, int]:
        """Rows by one of `facts`, the most frequent first."""
        total: Counter[str] = Counter()
        for known, n in self.facts.items():
            total[str(known[fact])] += n
        return dict(sorted(total.items(), key=lambda c: (-c[1], c[0])))


@dataclass
class Inputs:
    """All that a plan is made of, besides the mixture."""

    sources: list[Eligible]
    selections: dict[str, str]  # name -> digest
    blocklist: str  # digest, empty without one
    left_out: list[str] = field(default_factory=list)  # optional sources without a row
    near: str = ""  # digest of the footage left out because a near-duplicate is held out, empty where none was
    captions: str = ""  # digest of the captions that clips without one were given, empty where none was


def gather(root: str, mixture: Mixture, allowed: dict[str, list[Bucket]], writer: store.Writer) -> Inputs:
    """Read index, selections and blocklist of a data root, apply every filter, and write what is left.

    allowed: the shapes of each stream. InputError for a missing dataset or selection, a source that ends up empty,
    or a forbidden licence.
    """
    open_root(root)
    named, alike = blocklist.read(root), near.read(root)
    listed = near.with_relatives(named, alike)
    resembling, left = near.beside_heldout(alike), [np.zeros(0, np.int64)]
    selections: dict[str, chosen.Chosen] = {}
    written, given = captions.read_captions(root), 0
    found, left_out, licence_counts = [], [], Counter[tuple[str, str]]()
    for stream in mixture.active():
        for number, source in enumerate(mixture.stream(stream).sources):
            if source.selection not in selections:
                selections[source.selection] = chosen.read(root, source.selection)
            scan = _Scan(
                mixture, stream, source, selections[source.selection], listed, resembling, allowed[stream], written
            )
            one = scan.run(root, number, writer)
            left += scan.resembled
            given = (given + scan.given) % 2**256
            if not one.size:
                if not source.optional:
                    raise InputError(_empty(one))
                left_out.append(f"{stream}: {source.dataset}")
                continue
            for license_id, count in one.counted(3).items():
                licence_counts[source.dataset, license_id] += count
            found.append(one)
    licences.check(licence_counts, mixture.license_policy)
    for stream in mixture.active():
        if not any(e.stream == stream for e in found):
            raise InputError(f"the {stream} stream has no sample left: all its optional sources are empty")
    return Inputs(
        found,
        {n: c.digest for n, c in selections.items()},
        blocklist.digest(named),
        left_out,
        _digest_of(np.concatenate(left)),
        f"{given:064x}" if given else "",
    )


class _Scan:
    """The filters of one source, batch by batch."""

    def __init__(
        self, mixture: Mixture, stream: str, source: Source, selection: chosen.Chosen, listed: pa.Table,
        resembling: pa.Array, allowed: list[Bucket], written: pa.Table,
    ) -> None:  # fmt: skip
        self.stream, self.source, self.selection, self.listed = stream, source, selection, listed
        self.settings, self.allowed = mixture.stream(stream), allowed
        self.resembling, self.resembled = resembling, list[np.ndarray]()  # source_groups near held-out ones; those met
        self.shortest = 1 if stream == "image" else min(mixture.buckets.frames)
        self.written = written
        self.given = 0  # see captions.digest
        self.counts: Counter[str] = Counter()
        self.heldout = pa.table({n: pa.nulls(0) for n in store.COLUMNS})

    def run(self, root: str, number: int, writer: store.Writer) -> Eligible:
        first, facts = writer.count, Counter[tuple[int, str, str, str]]()
        digests, numbers = [np.zeros((0, 32), np.uint8)], [np.zeros(0, np.int16)]
        self.counts["in the index"] = 0
        for batch in self._batches(root):
            kept = self._filtered(batch)
            shape = shapes.assign(kept, self.allowed)
            facts.update(_tally(kept, shape))
            digests.append(store.digests(kept["sample_digest"]).copy())
            numbers.append(shape.astype(np.int16))
            writer.append(kept)
        self.counts["eligible"] = sum(len(n) for n in numbers)
        whole = np.concatenate(digests)
        return Eligible(
            self.stream, number, self.source, first, whole, np.concatenate(numbers), facts, self.heldout,
            dict(self.counts),
        )  # fmt: skip

    def _batches(self, root: str) -> Iterator[pa.Table]:
        where = [c for c in self.source.where if c not in ROW_COLUMNS + _FACTS]
        batches = scan_index(root, self.source.dataset, [*ROW_COLUMNS, *_FACTS, *where], BATCH)
        parts = count_rows(root, self.source.dataset)
        total = sum(-(-rows // BATCH) for rows in parts)
        return track(batches, total, f"plan: {self.source.dataset}") if sum(parts) >= WATCHED else batches

    def _filtered(self, table: pa.Table) -> pa.Table:
        self.counts["in the index"] += table.num_rows
        table, filled = captions.fill(table, self.written)
        table = table.append_column("captioned", pa.array(filled))

        def keep(reason: str, mask: Any) -> None:
            nonlocal table
            before = table.num_rows
            table = table.filter(pc.fill_null(mask, False))
            self.counts[reason] += before - table.num_rows

        keep(f"not kept by selection {self.source.selection}", pa.array(self.selection.keeps(table)))
        kinds = _kinds(self.settings)
        keep(
            f"of another kind than {' or '.join(kinds)}",
            _is_in(table["kind"], kinds),
        )
        for column, values in self.source.where.items():
            keep(f"not where {column} is {' or '.join(str(v) for v in values)}", _is_in(table[column], values))
        keep("blocklisted", pc.invert(_blocked(table, self.listed)))
        table = _with_windows(table, self.settings)
        keep(f"shorter than {self.shortest} frames", pc.greater_equal(table["length"], self.shortest))
        sized = pc.and_(pc.greater(table["width"], 0), pc.greater(table["height"], 0))
        keep("of unknown size", sized)
        trained = _is_in(table["split"], ["train"])  # of unknown split: not trained on
        self._hold_out(table.filter(pc.invert(trained)))
        keep("held out", trained)
        if len(self.resembling):
            leaks = pc.is_in(table["source_group"], value_set=self.resembling)
            self.resembled.append(np.unique(table["source_group"].filter(leaks).to_numpy()))
            keep("a near-duplicate of held-out footage", pc.invert(leaks))
        if self.written.num_rows:
            self.given += captions.digest(table.filter(table["captioned"]))
        return table.select(store.COLUMNS)

    def _hold_out(self, table: pa.Table) -> None:
        if not table.num_rows:
            return
        table = table.select(store.COLUMNS)
        if self.heldout.num_rows:
            table = pa.concat_tables([self.heldout, table]).unify_dictionaries()
        by_digest = pc.sort_indices(table, [("sample_digest", "ascending"), ("key", "ascending")])
        self.heldout = table.take(by_digest[:HELDOUT]).combine_chunks()


def _tally(table: pa.Table, shape: np.ndarray) -> Counter[tuple[int, str, str, str]]:
    """Rows by shape, category, kind and license."""
    code, words = shape.astype(np.int64), []
    for name in ("category", "kind", "license"):
        column = table[name].combine_chunks()
        words.append([*column.dictionary.to_pylist(), "unknown"])
        code = (code << 16) | pc.fill_null(column.indices, len(column.dictionary)).to_numpy()
    found: Counter[tuple[int, str, str, str]] = Counter()
    for packed, n in zip(*(a.tolist() for a in np.unique(code, return_counts=True)), strict=True):
        category, kind, license_id = (w[(packed >> at) & 0xFFFF] for w, at in zip(words, (32, 16, 0), strict=True))
        found[packed >> 48, category, kind, license_id] += n
    return found


def _kinds(settings: ImageStream | VideoStream) -> list[str]:
    """Kinds that a stream implies; text_to_video without a pretext task would train nothing."""
    if not isinstance(settings, VideoStream):
        return ["image_edit"]
    return ["video_edit", "text_to_video"] if settings.pretext else ["video_edit"]


def _with_windows(table: pa.Table, settings: ImageStream | VideoStream) -> pa.Table:
    """Add length (training frames available), strides, and the size that decides the aspect ratio."""
    numbers = {n: _numpy(table[n]) for n in ("source_fps", "target_fps", "policy_fps")}
    numbers["by_time"] = _is_in(table["pairing"], ["time"]).to_numpy(zero_copy_only=False)
    fps = settings.fps if isinstance(settings, VideoStream) else "native"
    on_source, on_target = windows.strides(numbers, fps)
    skipped = np.nan_to_num(_numpy(table["skip_head"])) + np.nan_to_num(_numpy(table["skip_tail"]))
    has_source = table["source_uri"].is_valid().to_numpy()
    length = windows.available(np.nan_to_num(_numpy(table["target_frames"])), skipped, on_target)
    of_source = windows.available(np.nan_to_num(_numpy(table["source_frames"])), skipped, on_source)
    length = np.where(has_source, np.minimum(length, of_source), length)
    for name, values in (("length", length), ("source_stride", on_source), ("target_stride", on_target)):
        table = table.append_column(name, pa.array(values))
    for name in ("skip_head", "skip_tail"):
        table = table.set_column(table.schema.get_field_index(name), name, pc.fill_null(table[name], 0))
    for name in ("width", "height"):
        side = pc.if_else(table["source_uri"].is_valid(), table[f"source_{name}"], table[f"target_{name}"])
        table = table.append_column(name, side.cast(pa.int32()))
    return table


def _digest_of(groups: np.ndarray) -> str:
    return hashlib.sha256(np.unique(groups).astype("<i8").tobytes()).hexdigest() if len(groups) else ""


def _blocked(table: pa.Table, listed: pa.Table) -> Any:
    blocked: Any = pa.array(np.zeros(table.num_rows, bool))
    for ours, theirs in (
        ("source_sha256", "sha256"), ("target_sha256", "sha256"),
        ("source_group", "source_group"), ("source_url", "source_url"),
    ):  # fmt: skip
        values = listed[theirs].combine_chunks().drop_null()
        if len(values):
            blocked = pc.or_(blocked, pc.is_in(table[ours], values.cast(table[ours].type)))
    return blocked


def _is_in(column: pa.ChunkedArray, values: list[Any]) -> Any:
    """Which rows hold one of the values; null holds none. Words are compared once each, not once a row."""
    whole = column.combine_chunks()
    plain = whole.dictionary if pa.types.is_dictionary(whole.type) else whole
    try:
        inside = pc.is_in(plain, pa.array(values).cast(plain.type))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError):
        raise InputError(f"where: {values} cannot be compared with a column of {plain.type}") from None
    return inside if plain is whole else pc.fill_null(inside.take(whole.indices), False)


def _numpy(column: pa.ChunkedArray) -> np.ndarray:
    return column.cast(pa.float64()).to_numpy()


def _empty(one: Eligible) -> str:
    lost = [f"{n} {reason}" for reason, n in one.counts.items() if n and reason not in ("in the index", "eligible")]
    return (
        f"the {one.stream} stream's source {one.source.dataset} has no sample to train on: of "
        f"{one.counts['in the index']} in the index, {', '.join(lost) or 'none'}"
    )
