"""The next micro-batches, made while the device computes."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

T = TypeVar("T")
POLL_S = 0.2


class Ahead(Generic[T]):
    """Iterates over `make()` from a thread that starts at once and stays at most `depth` items ahead.

    What the iterator raises is raised here, where the item was due. `close` ends the thread.
    """

    def __init__(self, make: Callable[[], Iterator[T]], depth: int = 1) -> None:
        self._items: queue.Queue[tuple[str, Any]] = queue.Queue(depth)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._fill, args=(make,), name="batches", daemon=True)
        self._thread.start()

    def __iter__(self) -> Ahead[T]:
        return self

    def __next__(self) -> T:
        kind, value = self._items.get()
        if kind == "item":
            return value
        self._items.put((kind, value))  # asked once more, it says the same
        raise StopIteration if kind == "end" else value

    def close(self) -> None:
        self._closed.set()
        self._thread.join(5.0)

    def _fill(self, make: Callable[[], Iterator[T]]) -> None:
        try:
            for item in make():
                if not self._offer(("item", item)):
                    return
            self._offer(("end", None))
        except BaseException as error:
            self._offer(("error", error))

    def _offer(self, entry: tuple[str, Any]) -> bool:
        while not self._closed.is_set():
            try:
                self._items.put(entry, timeout=POLL_S)
                return True
            except queue.Full:
                continue
        return False
