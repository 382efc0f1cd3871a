"""Progress that people see: a bar on a terminal, plain lines with the time left elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
LINE_EVERY_S = 5.0


def say(text: str) -> None:
    """One line for the person who is waiting."""
    print(text, flush=True)


def duration(seconds: float) -> str:
    """Seconds as people say them: 8s, 2m05s, 3h10m."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m{seconds % 60:02d}s"
    return f"{seconds // 3600}h{seconds % 3600 // 60:02d}m"


def track(items: Iterable[T], total: int | None = None, label: str = "", unit: str = "") -> Iterator[T]:
    """Pass items through and show how far it is. `total` is the number of items, None when unknown."""
    if sys.stdout.isatty():
        yield from _bar(items, total, label)
        return
    began = last = time.monotonic()
    done = said = 0
    for item in items:
        yield item
        done += 1
        now = time.monotonic()
        if now - last >= LINE_EVERY_S:
            last, said = now, done
            say(_line(label, done, total, unit, now - began))
    if said < done or not done:
        say(_line(label, done, total, unit, time.monotonic() - began))


def _line(label: str, done: int, total: int | None, unit: str, seconds: float) -> str:
    text = f"{label}: {done}" + (f"/{total}" if total else "") + (f" {unit}" if unit else "") + f", {duration(seconds)}"
    if total and 0 < done < total:
        text += f", {duration(seconds / done * (total - done))} left"
    return text


def _bar(items: Iterable[T], total: int | None, label: str) -> Iterator[T]:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, transient=False) as bar:
        yield from bar.track(items, total=total, description=label)
