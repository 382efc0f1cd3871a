"""Side effects of training, one class each, called in this order after every step on every rank.

HeldoutLoss (adds to the row) -> Strips -> Book (row on disk, MLflow, a line) -> Checkpoints (last: a checkpoint at
step N promises N rows).
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from typing import Any

from pipelines.progress import say
from pipelines.tracking import Tracker
from pipelines.train import checkpoint
from pipelines.train.lines import Pace, step_line
from pipelines.train.loop import Parts, StepNotes
from pipelines.train.records import MetricsFile, add_event
from pipelines.train.state import training_tensors


def due(next_step: int, every: int, steps: int) -> bool:
    """After the first step, every `every` steps, and after the last."""
    return next_step == 1 or next_step % every == 0 or next_step == steps


class Book:
    """metrics.jsonl, MLflow and the step's line: rank 0."""

    def __init__(self, run: str, next_step: int, tracker: Tracker | None, print_lines: bool) -> None:
        self.run, self.tracker, self.print_lines = run, tracker, print_lines
        self.file = MetricsFile(run, next_step)
        self._pace = Pace()

    def __call__(self, parts: Parts, row: dict[str, Any], notes: StepNotes) -> None:
        bucket = notes.bucket
        full = {
            **row,
            "time": time.time(),
            "seconds": notes.seconds,
            "stream": notes.stream,
            "bucket": f"{bucket.frames}x{bucket.height}x{bucket.width}",
            "tokens_per_device": notes.tokens_per_device,
        }
        self.file.append(full)
        if self.tracker is not None:
            self.tracker.metrics(row["step"], {k: v for k, v in row.items() if "/" in k}, full["time"])
        for key in notes.substituted:
            add_event(self.run, "substitute", key, row["step"])
        if self.print_lines:
            say(step_line(full, parts.steps, self._pace.left(full["time"], parts.steps - row["step"] - 1)))


class Checkpoints:
    """Everything a restart needs, every `checkpoint_every` steps and at the end. Every rank writes its shards."""

    def __init__(self, book: Book | None, facts: Mapping[str, Any], holder: str | None) -> None:
        self.book, self.facts, self.holder = book, dict(facts), holder

    def __call__(self, parts: Parts, row: dict[str, Any], notes: StepNotes) -> None:
        step = parts.progress.step
        if step % parts.settings.checkpoint_every and step != parts.steps:
            return
        began = time.monotonic()
        if self.book is not None:
            self.book.file.flush()  # first the rows, then the checkpoint that says they are there
        state = {**self.facts, "world_size": parts.world.size, **dataclasses.asdict(parts.progress)}
        uri = checkpoint.save(parts.run, step, training_tensors(parts), state, self.holder)
        if parts.world.first:
            checkpoint.prune(parts.run, parts.settings.keep_last)
            message = f"step {step} in {time.monotonic() - began:.1f} s: {uri}"
            add_event(parts.run, "checkpoint", message, step)
