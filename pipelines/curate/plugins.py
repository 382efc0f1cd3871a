"""Optional signals: a callable that the user names scores what the core cannot; null where nobody asked.

    sama curate data/ --plugin nsfw=mypackage.scores:nsfw --plugin text=pipelines.curate.ocr:read

A plug-in is a function of frames (S, H, W, 3) uint8 RGB, S evenly spaced ones of one clip (1 for a picture):
nsfw, minor_risk, watermark -> float in 0..1 for the target; faces -> (count, area of all faces as a share) for the
target; text -> str for source and target of text edits. It runs after the signals and adds to their newest row.
"""

from __future__ import annotations

import difflib
import importlib
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.curate.signals import SIGNALS_VERSION
from pipelines.curate.verdicts import join, signals_of
from pipelines.progress import say, track
from pipelines.samples import storage, tables
from pipelines.samples.index import datasets_of, media_of, read_index
from sama import video
from sama.errors import InputError

COLUMNS = {"nsfw": ("nsfw_score",), "minor_risk": ("minor_risk_score",), "watermark": ("watermark_score",),
           "faces": ("face_count", "face_area"), "text": ("text_source", "text_target", "text_similarity")}  # fmt: skip
FRAMES = 3  # looked at per clip
SHORT_SIDE = 720  # pixels at most: small print stays legible, 4K costs no more than 720p
CHUNK_ROWS = 64
_FACTS = ("uri", "offset", "size", "width", "height", "frames")
INDEX = ["key", "sample_digest", "dataset", "kind", "category", "skip_head", "skip_tail"]
INDEX += [f"{side}_{fact}" for side in ("source", "target") for fact in _FACTS]

Plugin = Callable[[np.ndarray], Any]


def parse(asked: Sequence[str]) -> dict[str, str]:
    """name=dotted.path of each plug-in. InputError for an unknown name or a path that leads to no function."""
    found = {}
    for text in asked:
        name, _, path = text.partition("=")
        if name not in COLUMNS:
            raise InputError(f"{name} is not a plug-in; there are {', '.join(COLUMNS)}")
        resolve(path)
        found[name] = path
    return found


def resolve(path: str) -> Plugin:
    """The function behind `package.module:function`. InputError when it is not there."""
    module, _, name = path.replace(":", ".").rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name) if module else None
    except (ImportError, AttributeError) as error:
        raise InputError(f"the plug-in {path} cannot be loaded: {error}") from None
    if not callable(found):
        raise InputError(f"the plug-in {path} is not a function")
    return found


def similarity(one: str, two: str) -> float:
    """How alike two texts are without case, spaces and punctuation, 0..1; 0 where both are empty."""
    a, b = ("".join(c for c in t.lower() if c.isalnum()) for t in (one, two))
    return difflib.SequenceMatcher(None, a, b, autojunk=False).ratio() if a or b else 0.0


def apply(row: dict[str, Any], plugins: dict[str, Plugin]) -> dict[str, Any]:
    """The columns of some plug-ins for one index row (INDEX); text only of text edits with both sides."""
    out: dict[str, Any] = {}
    frames: dict[str, np.ndarray] = {}

    def look(side: str) -> np.ndarray:
        if side not in frames:
            frames[side] = _frames(row, side)
        return frames[side]

    for name, function in plugins.items():
        if name == "text":
            if row["category"] == "text" and row["source_uri"] is not None:
                one, two = str(function(look("source"))), str(function(look("target")))
                out |= {"text_source": one, "text_target": two, "text_similarity": similarity(one, two)}
            continue
        found = function(look("target"))
        values = found if name == "faces" else (found,)
        out |= dict(zip(COLUMNS[name], values, strict=True))
    return out


def _frames(row: dict[str, Any], side: str) -> np.ndarray:
    count, height, width = (row[f"{side}_{n}"] or 1 for n in ("frames", "height", "width"))
    head, tail = (row["skip_head"] or 0, row["skip_tail"] or 0) if count > 1 else (0, 0)
    at = np.unique(np.linspace(head, max(head, count - 1 - tail), FRAMES + 2).astype(int)[1:-1])
    scale = min(1.0, SHORT_SIDE / min(height, width))
    return video.decode(media_of(row, side), at.tolist(), (round(height * scale), round(width * scale)))


def run_chunk(chunk: pa.Table, root: str, plugins: dict[str, str]) -> pa.Table:
    """A Ray Data stage: score a chunk of one dataset and append its part to ROOT/signals/<dataset>.

    in:  rows of INDEX with the newest signals. out: scored, failed: one row of counts
    A sample whose plug-in fails keeps its nulls: what is required and null is never kept.
    """
    functions = {name: resolve(path) for name, path in plugins.items()}
    scored, failed = [], 0
    for row in chunk.to_pylist():
        began = time.monotonic()
        try:
            added = apply(row, functions)
        except Exception as error:  # a plug-in is somebody else's code; one bad file must not stop the job
            failed += 1
            say(f"curate: {row['key']}: a plug-in failed: {' '.join(str(error).split())[:200]}")
            continue
        known = {n: row[n] for n in tables.SIGNALS.names}
        known["seconds"] = (known["seconds"] or 0) + time.monotonic() - began
        scored.append(known | added | {"created_at": datetime.now(UTC)})
    if scored:
        part = pa.Table.from_pylist(scored, schema=tables.SIGNALS)
        storage.write_part(storage.join(root, "signals", chunk["dataset"][0].as_py()), part)
    return pa.table({"scored": [len(scored)], "failed": [failed]})


def curate(root: str, plugins: dict[str, str], datasets: Sequence[str] | None = None) -> dict[str, int]:
    """Run plug-ins on every sample whose signals lack their columns. Needs a Ray session; may be killed and run again.

    The result: {"asked", "scored", "failed"}.
    """
    chunks = [c for dataset in datasets or datasets_of(root) for c in _todo(root, dataset, plugins)]
    counts = {"asked": sum(c.num_rows for c in chunks), "scored": 0, "failed": 0}
    if not chunks:
        return counts
    import ray.data

    ds = ray.data.from_arrow(chunks)
    # one CPU each: decoding runs on one thread; a plug-in that wants more sets its own
    given = {"root": storage.absolute(root), "plugins": plugins}
    ds = ds.map_batches(run_chunk, fn_kwargs=given, batch_format="pyarrow", batch_size=None, num_cpus=1)
    for done in track(ds.iter_rows(), total=len(chunks), label="plug-ins", unit="chunks"):
        counts["scored"], counts["failed"] = counts["scored"] + done["scored"], counts["failed"] + done["failed"]
    return counts


def _todo(root: str, dataset: str, plugins: dict[str, str]) -> Iterator[pa.Table]:
    index = read_index(root, [dataset], INDEX)
    seen = join(index["sample_digest"], signals_of(root)).to_pylist()
    rows = []
    for row, signals in zip(index.to_pylist(), seen, strict=True):
        if signals["status"] != "ok" or signals["signals_version"] != SIGNALS_VERSION:
            continue
        wanted = [n for n in plugins if n != "text" or (row["category"] == "text" and row["source_uri"] is not None)]
        if any(signals[COLUMNS[n][0]] is None for n in wanted):
            rows.append({**signals, **row})
    fields = [*tables.SIGNALS, *(f for f in tables.INDEX if f.name in INDEX and f.name != "sample_digest")]
    plain = pa.schema([pa.field(f.name, _plain(f.type)) for f in fields])
    for start in range(0, len(rows), CHUNK_ROWS):
        yield pa.Table.from_pylist(rows[start : start + CHUNK_ROWS], schema=plain)


def _plain(kind: pa.DataType) -> pa.DataType:
    """Ray's blocks take lists of any length, and need no dictionaries."""
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(kind.value_type)
    return kind.value_type if pa.types.is_dictionary(kind) else kind
