"""Index joined with selections: the rows that a mixture may use, and what was left out by what."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.mixture import licences, windows
from pipelines.mixture.mixture import ImageStream, Mixture, Source, VideoStream
from pipelines.samples import storage, tables
from pipelines.samples.index import open_root, read_index
from sama.errors import InputError

# What a plan keeps of an index row: `rows` to draw and to read samples, `text` looked up for the drawn ones.
ROW_COLUMNS = [
    "key", "sample_digest", "dataset", "kind", "category", "license", "source_group", "skip_head", "skip_tail",
    *(f"{s}_{c}" for s in ("source", "target") for c in ("uri", "offset", "size", "sha256", "frames")),
]  # fmt: skip
TEXT_COLUMNS = ["instruction", "caption", "source_url", "upstream_id"]
_FACTS = [
    "split",
    "pairing",
    "policy_fps",
    *(f"{s}_{c}" for s in ("source", "target") for c in ("width", "height", "fps")),
]


@dataclass
class Eligible:
    """One source of one stream: its rows, split, and the count of every filter in order."""

    stream: str
    number: int  # of the source within the stream
    source: Source
    train: pa.Table  # ROW_COLUMNS, TEXT_COLUMNS and length, source_stride, target_stride, width, height
    heldout: pa.Table
    counts: dict[str, int]


@dataclass
class Inputs:
    """All that a plan is made of, besides the mixture."""

    sources: list[Eligible]
    selections: dict[str, str]  # name -> digest
    blocklist: str  # digest, empty without one
    left_out: list[str] = field(default_factory=list)  # optional sources without a row


def gather(root: str, mixture: Mixture) -> Inputs:
    """Read index, selections and blocklist of a data root and apply every filter of the mixture.

    InputError for a missing dataset or selection, a source that ends up empty, or a forbidden licence.
    """
    open_root(root)
    blocklist, blocklist_digest = _read_blocklist(root)
    selections: dict[str, pa.Table] = {}
    digests: dict[str, str] = {}
    found, left_out, licence_counts = [], [], Counter[tuple[str, str]]()
    for stream in mixture.active():
        for number, source in enumerate(mixture.stream(stream).sources):
            if source.selection not in selections:
                selections[source.selection] = _read_selection(root, source.selection)
                digests[source.selection] = _selection_digest(selections[source.selection])
            one = _one_source(root, mixture, stream, number, source, selections[source.selection], blocklist)
            if one.train.num_rows == 0:
                if not source.optional:
                    raise InputError(_empty(one))
                left_out.append(f"{stream}: {source.dataset}")
                continue
            for license_id, count in _value_counts(one.train["license"]).items():
                licence_counts[source.dataset, license_id] += count
            found.append(one)
    licences.check(licence_counts, mixture.license_policy)
    for stream in mixture.active():
        if not any(e.stream == stream for e in found):
            raise InputError(f"the {stream} stream has no sample left: all its optional sources are empty")
    return Inputs(found, digests, blocklist_digest, left_out)


def _one_source(
    root: str, mixture: Mixture, stream: str, number: int, source: Source, selection: pa.Table, blocklist: pa.Table
) -> Eligible:
    settings = mixture.stream(stream)
    where = [c for c in source.where if c not in ROW_COLUMNS + TEXT_COLUMNS + _FACTS]
    table = read_index(root, [source.dataset], [*ROW_COLUMNS, *TEXT_COLUMNS, *_FACTS, *where])
    counts = {"in the index": table.num_rows}

    def keep(reason: str, mask: Any) -> None:
        nonlocal table
        before = table.num_rows
        table = table.filter(pc.fill_null(mask, False))
        counts[reason] = before - table.num_rows

    kept = selection.filter(pc.equal(selection["decision"].cast(pa.string()), "kept"))
    both = pc.and_(
        pc.is_in(table["key"], kept["key"].combine_chunks()),
        pc.is_in(table["sample_digest"], kept["sample_digest"].combine_chunks()),
    )
    keep(f"not kept by selection {source.selection}", both)
    kinds = _kinds(settings)
    keep(f"of a kind that the {stream} stream does not train on ({', '.join(kinds)})", _is_in(table["kind"], kinds))
    for column, values in source.where.items():
        keep(f"not where {column} is {' or '.join(str(v) for v in values)}", _is_in(table[column], values))
    keep("blocklisted", pc.invert(_blocked(table, blocklist)))
    table = _with_windows(table, settings)
    shortest = 1 if stream == "image" else min(mixture.buckets.frames)
    keep(f"shorter than {shortest} frames", pc.greater_equal(table["length"], shortest))
    is_heldout = pc.fill_null(pc.equal(table["split"].cast(pa.string()), "heldout"), True)  # unknown: not trained on
    heldout = table.filter(is_heldout)
    keep("held out", pc.invert(is_heldout))
    counts["eligible"] = table.num_rows
    return Eligible(stream, number, source, _finished(table), _finished(heldout), counts)


def _kinds(settings: ImageStream | VideoStream) -> list[str]:
    """Kinds that a stream implies; text_to_video without a pretext task would train nothing."""
    if not isinstance(settings, VideoStream):
        return ["image_edit"]
    return ["video_edit", "text_to_video"] if settings.pretext else ["video_edit"]


def _with_windows(table: pa.Table, settings: ImageStream | VideoStream) -> pa.Table:
    """Add length (training frames available), strides, and the size that decides the aspect ratio."""
    numbers = {n: _numpy(table[n]) for n in ("source_fps", "target_fps", "policy_fps")}
    numbers["by_time"] = pc.fill_null(pc.equal(table["pairing"].cast(pa.string()), "time"), False).to_numpy()
    fps = settings.fps if isinstance(settings, VideoStream) else "native"
    on_source, on_target = windows.strides(numbers, fps)
    skipped = np.nan_to_num(_numpy(table["skip_head"])) + np.nan_to_num(_numpy(table["skip_tail"]))
    has_source = table["source_uri"].is_valid().to_numpy()
    length = windows.available(np.nan_to_num(_numpy(table["target_frames"])), skipped, on_target)
    of_source = windows.available(np.nan_to_num(_numpy(table["source_frames"])), skipped, on_source)
    length = np.where(has_source, np.minimum(length, of_source), length)
    for name, values in (("length", length), ("source_stride", on_source), ("target_stride", on_target)):
        table = table.append_column(name, pa.array(values))
    for name in ("width", "height"):
        side = pc.if_else(table["source_uri"].is_valid(), table[f"source_{name}"], table[f"target_{name}"])
        table = table.append_column(name, side.cast(pa.int32()))
    return table


def _finished(table: pa.Table) -> pa.Table:
    extra = ["length", "source_stride", "target_stride", "width", "height"]
    table = table.select([*ROW_COLUMNS, *TEXT_COLUMNS, *extra])
    for name in ("skip_head", "skip_tail"):
        table = table.set_column(table.schema.get_field_index(name), name, pc.fill_null(table[name], 0))
    return table


def _read_selection(root: str, name: str) -> pa.Table:
    uri = storage.join(root, "selections", name, "selection.parquet")
    if not storage.exists(uri):
        known = storage.list_folders(storage.join(root, "selections"))
        raise InputError(f"there is no selection {name} in {root}; there are: {', '.join(known) or 'none, select one'}")
    fs, path = storage.locate(uri)
    return pq.read_table(path, filesystem=fs, columns=["key", "sample_digest", "decision"])


def _selection_digest(selection: pa.Table) -> str:
    """sha256 over what was decided of whom, whatever the order and the file."""
    ordered = selection.take(
        pc.sort_indices(selection, [("sample_digest", "ascending"), ("key", "ascending")])
    ).combine_chunks()
    decided = pc.index_in(ordered["decision"].cast(pa.string()), pa.array(tables.DECISIONS))
    state = hashlib.sha256(pc.fill_null(decided, -1).to_numpy().astype("<i4").tobytes())
    for name in ("sample_digest", "key"):
        state.update(content(ordered[name]))
    return state.hexdigest()


def content(column: pa.ChunkedArray) -> bytes:
    """The values of a column of digests or of short strings, as bytes that two equal columns share."""
    values = pc.fill_null(column.cast(pa.large_binary()), b"").combine_chunks()
    offsets = np.frombuffer(values.buffers()[1], np.int64)[values.offset : values.offset + len(values) + 1]
    if not len(values):
        return b""
    data = memoryview(values.buffers()[2] or b"")[int(offsets[0]) : int(offsets[-1])]
    return np.diff(offsets).astype("<i4").tobytes() + bytes(data)


def _read_blocklist(root: str) -> tuple[pa.Table, str]:
    uri = storage.join(root, "blocklist.parquet")
    if not storage.exists(uri):
        return tables.BLOCKLIST.empty_table(), ""
    fs, path = storage.locate(uri)
    table = pq.read_table(path, filesystem=fs)
    names = sorted(
        str(v) for c in ("sha256", "source_group", "source_url") for v in table[c].to_pylist() if v is not None
    )
    return table, hashlib.sha256("\n".join(names).encode()).hexdigest()


def _blocked(table: pa.Table, blocklist: pa.Table) -> Any:
    blocked: Any = pa.array(np.zeros(table.num_rows, bool))
    for ours, theirs in (
        ("source_sha256", "sha256"), ("target_sha256", "sha256"),
        ("source_group", "source_group"), ("source_url", "source_url"),
    ):  # fmt: skip
        values = blocklist[theirs].combine_chunks().drop_null()
        if len(values):
            blocked = pc.or_(blocked, pc.is_in(table[ours], values.cast(table[ours].type)))
    return blocked


def _is_in(column: pa.ChunkedArray, values: list[Any]) -> Any:
    plain = column.cast(pa.string()) if pa.types.is_dictionary(column.type) else column
    try:
        return pc.is_in(plain, pa.array(values).cast(plain.type))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError):
        raise InputError(f"where: {values} cannot be compared with a column of {plain.type}") from None


def _numpy(column: pa.ChunkedArray) -> np.ndarray:
    return column.cast(pa.float64()).to_numpy()


def _value_counts(column: pa.ChunkedArray) -> dict[str, int]:
    counted = pc.value_counts(pc.fill_null(column.cast(pa.string()), "unknown"))
    return {c["values"]: c["counts"] for c in counted.to_pylist()}


def _empty(one: Eligible) -> str:
    lost = [f"{n} {reason}" for reason, n in one.counts.items() if n and reason not in ("in the index", "eligible")]
    return (
        f"the {one.stream} stream's source {one.source.dataset} has no sample to train on: of "
        f"{one.counts['in the index']} in the index, {', '.join(lost) or 'none'}"
    )
