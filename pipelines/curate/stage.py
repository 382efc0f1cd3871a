"""The stage that looks at samples: decode once, for the signals and for the judge's frames."""

from __future__ import annotations

import hashlib
import time
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.curate import asking, look
from pipelines.curate.ask_plan import AskPlan
from pipelines.curate.frames import Tap, taps
from pipelines.curate.reasons import INDEX_COLUMNS
from pipelines.curate.signals import SIGNALS_VERSION, measure
from pipelines.samples import storage, tables
from pipelines.samples.index import media_of
from sama import video

REMEMBERED = 2  # sources kept from one row of a chunk to the next: several edits share one source
_FACTS = ("uri", "offset", "size", "sha256", "width", "height", "fps", "frames")
COLUMNS = ["key", "sample_digest", "dataset", "kind", "instruction", "skip_head", "skip_tail", "pairing", "policy_fps"]
COLUMNS += [f"{side}_{fact}" for side in ("source", "target") for fact in _FACTS]
ASK_COLUMNS = [*COLUMNS, *(n for n in [*INDEX_COLUMNS, "caption"] if n not in COLUMNS)]


class StageError(Exception):
    """A sample that could not be looked at: in which stage (read, decode, measure), and why."""

    def __init__(self, stage: str, cause: Exception, prefix: str = "") -> None:
        super().__init__(f"{prefix}{cause}")
        self.stage, self.cause = stage, cause


Remembered = dict[tuple, tuple[look.Seen, Tap | None]]  # sources by digest and frame policy


def score(
    row: dict[str, Any], remembered: Remembered | None = None, tap: dict[str, Tap] | None = None
) -> dict[str, Any]:
    """Look at one sample.

    in:  an index row with COLUMNS; remembered: sources decoded before, filled as rows pass; tap: keeps a judge's
         frames of each side
    out: a row of tables.SIGNALS: status ok with the columns of `signals`, or failed with error_stage (read:
         the bytes could not be had, tried again by the next run; decode, measure), error_type and error
    """
    began = time.monotonic()
    out: dict[str, Any] = {"sample_digest": row["sample_digest"], "signals_version": SIGNALS_VERSION}
    try:
        out |= _measure(row, remembered if remembered is not None else {}, tap or {}) | {"status": "ok"}
    except StageError as error:
        text = " ".join(str(error).split())[:500]
        out |= {"status": "failed", "error_stage": error.stage, "error_type": type(error.cause).__name__, "error": text}
    return out | {"seconds": time.monotonic() - began, "created_at": datetime.now(UTC)}


def _measure(row: dict[str, Any], remembered: Remembered, tap: dict[str, Tap]) -> dict[str, Any]:
    source = None
    if row["source_uri"] is not None:
        name, mine = (row["source_sha256"], row["skip_head"], row["skip_tail"]), tap.get("source")
        if name not in remembered:
            while len(remembered) >= REMEMBERED:
                del remembered[next(iter(remembered))]
            remembered[name] = _look(row, "source", None, mine), mine
        source, before = remembered[name]
        if mine and before and mine is not before:
            mine.kept |= before.kept  # other frame numbers are decoded when they are asked for
    grid = look.small_size(row["source_height"], row["source_width"]) if source else None
    target = _look(row, "target", grid, tap.get("target"))
    try:
        return measure(
            source, target, pairing=row["pairing"], policy_fps=row["policy_fps"], instruction=row["instruction"]
        )
    except Exception as error:
        raise StageError("measure", error) from error


def _look(row: dict[str, Any], side: str, grid: tuple[int, int] | None, tap: Tap | None) -> look.Seen:
    data = _bytes_of(row, side)
    facts = {n: row[f"{side}_{n}"] for n in ("height", "width", "fps", "frames")}
    still = row["kind"] == "image_edit"
    try:
        return look.look(
            data, **facts, grid_size=grid, decode=tap or video.decode,
            skip_head=0 if still else row["skip_head"] or 0, skip_tail=0 if still else row["skip_tail"] or 0,
        )  # fmt: skip
    except Exception as error:  # decoders fail in ways of their own; one bad file must not stop the job
        raise StageError("decode", error, f"{side}: ") from error


def _bytes_of(row: dict[str, Any], side: str) -> bytes:
    try:
        data = media_of(row, side)
        if hashlib.sha256(data).digest() != row[f"{side}_sha256"]:
            raise OSError(f"the {side}'s bytes in {row[f'{side}_uri']} are not those that were ingested")
    except (OSError, EOFError) as error:
        raise StageError("read", error) from error
    return data


def score_chunk(chunk: pa.Table, root: str, run: str, plan: AskPlan | None = None) -> pa.Table:
    """A Ray Data stage: look at a chunk of one dataset, append its part to ROOT/signals/<dataset>, and hand on what a
    judge is to see of the survivors.

    in:  index rows (COLUMNS) of one chunk; with `plan` also INDEX_COLUMNS, ask, answered, and look: whether signals
         are missing (without the column they are)
    out: asking.SCENES: a row of counts (dataset, ok, failed, unseen), then a row a survivor with its pictures
    The part's name follows from the run and the chunk: a task that Ray repeats writes the same part again.
    """
    rows = chunk.to_pylist()
    remembered: Remembered = {}
    scored: list[dict[str, Any] | None] = []
    taken: list[tuple[dict[str, Tap], tuple[int, int]] | None] = []
    for row in rows:
        found = taps(row, plan.settings.frames, plan.settings.size) if plan and row["ask"] else None
        seen = score(row, remembered, found[0] if found else None) if row.get("look", True) else None
        scored.append(seen)
        taken.append(None if seen and seen["status"] != "ok" else found)
    fresh = [s for s in scored if s]
    dataset = rows[0]["dataset"]
    if fresh:
        digests = hashlib.sha256(b"".join(s["sample_digest"] for s in fresh)).hexdigest()[:16]
        table = pa.Table.from_pylist(fresh, schema=tables.SIGNALS)
        storage.write_part(storage.join(root, "signals", dataset), table, f"v{SIGNALS_VERSION}-{digests}-{run}")
    ok = sum(s["status"] == "ok" for s in fresh)
    counts = {"dataset": dataset, "ok": ok, "failed": len(fresh) - ok}
    if plan is None:
        return pa.Table.from_pylist([counts])
    counts["unseen"] = 0
    kept = np.asarray([t is not None for t in taken])
    new = np.asarray([s is not None for s in scored])
    if (kept & new).any():  # those looked at before were decided on before
        known = pa.Table.from_pylist([s or {} for s in scored], schema=tables.SIGNALS)
        kept &= ~new | plan.survivors(chunk, known)
    scenes: list[dict[str, Any]] = []
    for row, found, mine in zip(rows, taken, kept, strict=True):
        if not mine or found is None:
            continue
        try:
            scenes.append(_scene(row, *found))
        except (StageError, OSError):
            counts["unseen"] += 1  # the next run tries again
    return pa.Table.from_pylist([counts, *scenes], schema=asking.SCENES)


def _scene(row: dict[str, Any], tap: dict[str, Tap], size: tuple[int, int]) -> dict[str, Any]:
    scene = {n: row[n] for n in ("dataset", "sample_digest", "key", "kind", "instruction", "target_sha256", "answered")}
    scene |= {"height": size[0], "width": size[1], "source": []}
    for side, one in tap.items():
        complete = not set(one.numbers) - set(one.kept)
        data = b"" if complete else _bytes_of(row, side)
        try:
            scene[side] = list(one.jpegs(data, size))
        except Exception as error:
            raise StageError("decode", error, f"{side}: ") from error
    return scene
