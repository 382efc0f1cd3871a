"""Side effects of training, one class each, called in this order after every step on every rank.

HeldoutLoss (adds to the row) -> Strips -> Book (row on disk, MLflow, a line) -> Substitutes -> Checkpoints (last: a
checkpoint at step N promises N rows).
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping
from typing import Any

import torch

from pipelines.loading.rows import check_substitutes
from pipelines.progress import say
from pipelines.tracking import Tracker
from pipelines.train import checkpoint
from pipelines.train.lines import Pace, step_line
from pipelines.train.loop import Parts, StepNotes
from pipelines.train.notices import Notices, StoppedError
from pipelines.train.records import MetricsFile, add_event
from pipelines.train.saver import Saver
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
        # what the loader failed to hide behind the step
        row["time/wait_share"] = row["time/wait"] / max(notes.seconds, 1e-9)
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
        if notes.skipped is not None:
            add_event(self.run, "skipped", notes.skipped, row["step"])
        if self.print_lines:
            say(step_line(full, parts.steps, self._pace.left(full["time"], parts.steps - row["step"] - 1)))


class Substitutes:
    """StorageError when too many samples, over all ranks since this start, did not decode. The events of the last ones
    are written by then, and no checkpoint is."""

    def __init__(self, parts: Parts) -> None:
        self._count, self._before = 0, _seen(parts)

    def __call__(self, parts: Parts, row: dict[str, Any], notes: StepNotes) -> None:
        self._count += len(notes.substituted)
        check_substitutes(self._count, _seen(parts) - self._before)


def _seen(parts: Parts) -> int:
    return parts.progress.video_samples + parts.progress.image_samples


class Checkpoints:
    """Everything a restart needs: every `checkpoint_every` steps, when the last one is `checkpoint_minutes` old, at
    the end, and when a notice from outside asks for it. Every rank writes its shards.

    StoppedError after a save that a notice asked for as the last one. Call `close` at the end.
    """

    def __init__(
        self,
        book: Book | None,
        facts: Mapping[str, Any],
        holder: str | None,
        parts: Parts,
        notices: Notices | None = None,
    ) -> None:
        self.book, self.facts, self.notices = book, dict(facts), notices or Notices()
        self.run, self.settings = parts.run, parts.settings
        self._saver = Saver(parts.run, holder, self.settings.checkpoint_async, self._before, self._after)
        # weights, moments and average are what they are until the next update: so long they may still be copied
        parts.optimizer.register_step_pre_hook(lambda *_: self._saver.ready())
        self._saved_at = time.monotonic()

    def __call__(self, parts: Parts, row: dict[str, Any], notes: StepNotes) -> None:
        self._saver.check()
        step = parts.progress.step
        stop, old, ask = self._agree(parts)
        leaving = self.notices.ask() if ask else None
        if leaving and parts.world.first:
            add_event(parts.run, "preemption", f"{leaving} will go away, saving step {step}", step)
        planned = step % self.settings.checkpoint_every == 0 or step == parts.steps
        if not (planned or old or stop or leaving):
            return
        state = {
            **self.facts,
            "world_size": parts.world.size,
            "heldout_loss": heldout_loss(row),
            **dataclasses.asdict(parts.progress),
        }
        self._saver.save(step, training_tensors(parts), state)
        self._saved_at = time.monotonic()
        if leaving or stop:  # there may be no time for a step more
            self._saver.wait()
        if stop and step < parts.steps:
            raise StoppedError(step)

    def close(self) -> None:
        """Wait for the last checkpoint."""
        self._saver.wait()

    def abandon(self, seconds: float) -> None:
        """After an error: let the checkpoint that is being written be finished, if that is soon."""
        self._saver.wait_at_most(seconds)

    def _agree(self, parts: Parts) -> tuple[bool, bool, bool]:
        """Whether any rank was asked to stop; whether, by rank 0's clock, it is time to save and to ask for news."""
        minutes, first = self.settings.checkpoint_minutes, parts.world.first
        old = minutes is not None and time.monotonic() - self._saved_at >= 60 * minutes
        votes = [self.notices.stop.is_set(), first and old, first and self.notices.due()]
        stop, save, ask = (v > 0 for v in parts.world.sum(torch.tensor(votes, dtype=torch.float64)).tolist())
        return stop, save, ask

    def _before(self) -> None:
        if self.book is not None:
            self.book.file.flush()  # first the rows, then the checkpoint that says they are there

    def _after(self, step: int, uri: str, seconds: float, paused: float) -> None:
        checkpoint.prune(self.run, self.settings.keep_last, self.settings.keep_best)
        add_event(self.run, "checkpoint", f"step {step} in {seconds:.1f} s, paused {paused:.2f} s: {uri}", step)


def heldout_loss(row: Mapping[str, Any]) -> float | None:
    """Mean of a row's held-out losses; None where none were measured, or not all are finite."""
    found = [v for k, v in row.items() if k.startswith("heldout/loss")]
    return sum(found) / len(found) if found and all(math.isfinite(v) for v in found) else None
