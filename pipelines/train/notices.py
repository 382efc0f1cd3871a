"""Words from outside to a training process: stop here, or save now because a machine will go away."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

from pipelines.samples import storage
from pipelines.train import folders

STOP = "stop.json"
STOPPED = 143  # exit code after SIGTERM: 128 and the signal's number
POLL_S = 2.0
ASK_EVERY_S = 5.0  # as often as Ray looks for nodes that will go away


class StoppedError(Exception):
    """Training was asked to stop, and has saved where it is. step: the next one to do."""

    def __init__(self, step: int) -> None:
        super().__init__(f"stopped as asked; the same command goes on from the checkpoint of step {step}")
        self.step = step

    def __reduce__(self) -> tuple:
        return StoppedError, (self.step,)


@dataclass
class Notices:
    """What a rank knows. stop: set by a signal handler or a watcher, on any rank.

    leaving: says for which machines a preemption was announced, None for none; all ranks call it equally often and
    get the same answer.
    """

    stop: threading.Event = field(default_factory=threading.Event)
    leaving: Callable[[], str | None] = lambda: None
    asked_at: float = field(default_factory=time.monotonic)
    answered: str | None = None

    def due(self) -> bool:
        """Whether it is time to ask `leaving` again."""
        return time.monotonic() - self.asked_at >= ASK_EVERY_S

    def ask(self) -> str | None:
        """A preemption that was not known before."""
        self.asked_at, before = time.monotonic(), self.answered
        self.answered = self.leaving()
        return self.answered if self.answered != before else None


@contextmanager
def term_stops(notices: Notices) -> Iterator[None]:
    """In here SIGTERM asks for a stop after the step; a second one ends the process as usual. Only a main thread
    can listen to signals: elsewhere nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)

    def handle(number: int, frame: FrameType | None) -> None:
        notices.stop.set()
        signal.signal(signal.SIGTERM, before)

    signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def ask_to_stop(run: str, holder: str) -> None:
    """Tell the workers of the job that holds a run folder to save and end: they may be on other machines."""
    storage.write_bytes(storage.join(run, STOP), json.dumps({"holder": holder}))


class Watcher:
    """Looks every few seconds, in a thread, whether this job was asked to stop or has lost its run folder."""

    def __init__(self, run: str, holder: str, notices: Notices) -> None:
        self.run, self.holder, self.notices = run, holder, notices
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watcher", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._closed.set()
        self._thread.join(POLL_S)

    def _watch(self) -> None:
        while not self._closed.wait(POLL_S):
            try:
                if self._asked():
                    self.notices.stop.set()
            except Exception:  # the storage is away for a moment: asked again soon
                continue

    def _asked(self) -> bool:
        uri = storage.join(self.run, STOP)
        if storage.exists(uri) and json.loads(storage.read_bytes(uri)).get("holder") == self.holder:
            return True
        try:
            folders.check_lease(self.run, self.holder)
        except folders.SupersededError:
            return True
        return False
