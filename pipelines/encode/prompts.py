"""Every prompt that a plan can ask for, each once: found by place, so that ten million need no text in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.encode.store import as_keys
from pipelines.loading.rows import prompt_of
from pipelines.mixture.batch import Slot
from pipelines.mixture.mixture import EDIT, Mixture, VideoStream
from pipelines.progress import track

if TYPE_CHECKING:
    from pipelines.mixture import BatchPlan

SLICE = 1 << 16  # rows whose text is in memory at a time
NEGATIVE = -1  # the row of the negative prompt; held-out sample n has number HELD_OUT - n
HELD_OUT = -2
_TEXT = ["kind", "instruction", "caption"]


@dataclass(frozen=True)
class Prompts:
    """Distinct prompts in plan order. asked: how many there were before equal ones fell together.

    keys: (n,) "S32"; rows: (n,) int64, a row of the plan (or NEGATIVE, HELD_OUT - n); tasks: (n,) uint8, the number
    of the task among those that the row may have.
    """

    keys: np.ndarray
    rows: np.ndarray
    tasks: np.ndarray
    asked: int

    def __len__(self) -> int:
        return len(self.keys)


def text_key(prompt: str, digest: str) -> bytes:
    """Under which key the embeddings of a prompt lie: sha256 of the cleaned prompt and the text encoder's digest."""
    from sama.encoders import clean_text

    return hashlib.sha256(f"{digest}\n{clean_text(prompt)}".encode()).digest()


def text_keys(prompts: Iterable[str], digest: str) -> np.ndarray:
    """`text_key` of each prompt ("S32")."""
    return as_keys(text_key(p, digest) for p in prompts)


def collect(plan: BatchPlan, digest: str) -> Prompts:
    """Every prompt of every sample under each of its tasks, held-out samples and the negative prompt.

    digest: of the text encoder. About 80 bytes a prompt asked for are in memory.
    """
    keys, rows, tasks = [], [], []
    slices = sum(-(-g.size // SLICE) for g in plan.groups) + 2
    for numbers, which, prompts in track(_slices(plan), slices, "prompts", "slices"):
        keys.append(text_keys(prompts, digest))
        rows.append(numbers)
        tasks.append(which)
    every = np.concatenate(keys)
    first = np.sort(np.unique(every, return_index=True)[1])
    return Prompts(every[first], np.concatenate(rows)[first], np.concatenate(tasks)[first], len(every))


def at(plan: BatchPlan, rows: np.ndarray, tasks: np.ndarray) -> list[str]:
    """The prompts at these places of the plan."""
    found: list[str] = [plan.mixture.negative_prompt] * len(rows)
    for place in np.flatnonzero(rows <= HELD_OUT).tolist():
        item = plan.heldout[HELD_OUT - int(rows[place])]
        found[place] = prompt_of(plan.mixture, item.sample, item.slot)
    where = np.flatnonzero(rows >= 0)
    if where.size:
        streams, texts = _streams(plan, rows[where]), plan.table_of(rows[where], _TEXT).to_pylist()
        for place, stream, text in zip(where.tolist(), streams, texts, strict=True):
            task = tasks_of(plan.mixture, stream, text["kind"])[tasks[place]]
            found[place] = prompt_of(plan.mixture, text, _slot(task))
    return found


def of_rows(plan: BatchPlan, rows: np.ndarray) -> list[str]:
    """Every prompt of some rows, of all held-out samples, and the negative prompt."""
    found = [plan.mixture.negative_prompt, *(prompt_of(plan.mixture, i.sample, i.slot) for i in plan.heldout)]
    for stream, text in zip(_streams(plan, rows), plan.table_of(rows, _TEXT).to_pylist(), strict=True):
        found += [prompt_of(plan.mixture, text, _slot(t)) for t in tasks_of(plan.mixture, stream, text["kind"])]
    return found


def tasks_of(mixture: Mixture, stream: str, kind: str) -> list[str]:
    """Every task that a sample of this kind may have in a stream."""
    if kind != "text_to_video":
        return [EDIT]
    how = mixture.stream(stream)
    return sorted(how.pretext) if isinstance(how, VideoStream) and how.pretext else ["none"]


def total_rows(plan: BatchPlan) -> int:
    return sum(g.size for g in plan.groups)


def _slices(plan: BatchPlan) -> Iterator[tuple[np.ndarray, np.ndarray, list[str]]]:
    """(rows, task numbers, prompts) of a run of rows at a time."""
    yield np.asarray([NEGATIVE]), np.zeros(1, np.uint8), [plan.mixture.negative_prompt]
    for group in plan.groups:
        for first in range(group.first, group.first + group.size, SLICE):
            numbers = np.arange(first, min(first + SLICE, group.first + group.size))
            yield _expand(plan.mixture, group.stream, numbers, plan.table_of(numbers, _TEXT).to_pylist())
    held = [prompt_of(plan.mixture, item.sample, item.slot) for item in plan.heldout]
    yield HELD_OUT - np.arange(len(held)), np.zeros(len(held), np.uint8), held


def _expand(
    mixture: Mixture, stream: str, numbers: np.ndarray, texts: list[dict[str, Any]]
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """One entry for each task of each row."""
    slots = {kind: [_slot(t) for t in tasks_of(mixture, stream, kind)] for kind in {t["kind"] for t in texts}}
    rows, tasks, prompts = [], [], []
    for number, text in zip(numbers.tolist(), texts, strict=True):
        for task, slot in enumerate(slots[text["kind"]]):
            rows.append(number)
            tasks.append(task)
            prompts.append(prompt_of(mixture, text, slot))
    return np.asarray(rows, np.int64), np.asarray(tasks, np.uint8), prompts


def _streams(plan: BatchPlan, rows: np.ndarray) -> list[str]:
    groups = np.searchsorted([g.first for g in plan.groups], rows, side="right") - 1
    return [plan.groups[g].stream for g in groups.tolist()]


def _slot(task: str) -> Slot:
    return Slot(-1, "", "", task, 0, 0, False, False, 0)
