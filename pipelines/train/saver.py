"""Checkpoints written in a thread while training goes on.

The thread of each rank copies its shards into host buffers, which are kept and used again: from the second save on
nothing is allocated. The copies race only with the next forward and backward, which change nothing; whoever is about to
change the tensors calls `ready` first. Then the thread writes the files. The threads talk in a group of their own, so
that no collective of theirs meets one of the training. The next save waits for the one before.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from pipelines.train import checkpoint
from pipelines.train.parallel import local

PATIENCE = timedelta(hours=4)  # a rank waits this long for the slowest one's files


class Saver:
    """Saves the checkpoints of a run, one at a time. Every rank makes one at the same time and calls it alike.

    before: called on rank 0 before anything is written (in the thread); after: called there with (step, uri, seconds
    from the call, seconds that training paused) when the checkpoint is whole. holder: see `checkpoint.take_lease`.
    """

    def __init__(
        self,
        run: str,
        holder: str | None,
        background: bool,
        before: Callable[[], None],
        after: Callable[[int, str, float, float], None],
    ) -> None:
        self.run, self.holder, self.background = run, holder, background
        self._before, self._after = before, after
        self._first = not dist.is_initialized() or dist.get_rank() == 0
        self._group = dist.new_group(backend="gloo", timeout=PATIENCE) if dist.is_initialized() else None
        self._buffers: dict[str, torch.Tensor] = {}
        self._thread: threading.Thread | None = None
        self._staged, self._paused = threading.Event(), 0.0
        self._staged.set()
        self._error: BaseException | None = None

    def save(self, step: int, tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any]) -> None:
        """Save; with `background` it returns at once, and `ready` when the tensors may change again; else when the
        checkpoint is whole.

        Raises what the save before this one ran into.
        """
        began = time.monotonic()
        self.wait()
        if not self.background:
            self._write(began, step, tensors, state, None)
            return
        done = {t.device: torch.cuda.Event() for t in tensors.values() if t.is_cuda}
        for device, event in done.items():
            event.record(torch.cuda.current_stream(device))
        self._staged.clear()
        self._thread = threading.Thread(
            target=self._work, args=(began, step, tensors, state, done), name="checkpoint", daemon=True
        )
        self._thread.start()
        self._paused = time.monotonic() - began

    def ready(self) -> None:
        """Return when the tensors of the last save may change."""
        if not self._staged.is_set():
            began = time.monotonic()
            self._staged.wait()
            self._paused += time.monotonic() - began

    @property
    def busy(self) -> bool:
        """Whether a checkpoint is being written behind the training."""
        return self._thread is not None and self._thread.is_alive()

    def check(self) -> None:
        """Raise what the save in the background ran into, if it has."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def wait(self) -> None:
        """Return when nothing is being written any more."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def wait_at_most(self, seconds: float) -> None:
        """Wait for what is being written, whatever becomes of it."""
        if self._thread is not None:
            self._thread.join(seconds)

    @torch.no_grad()
    def _stage(
        self, tensors: Mapping[str, torch.Tensor], done: Mapping[torch.device, torch.cuda.Event]
    ) -> dict[str, torch.Tensor]:
        """Copies in host memory. done: what each device had to do before the tensors were what is to be saved."""
        streams = {device: torch.cuda.Stream(device) for device in done}
        for device, stream in streams.items():
            stream.wait_event(done[device])
        for name, tensor in tensors.items():
            mine = local(tensor)
            buffer = self._buffers.get(name)
            if buffer is None or buffer.shape != mine.shape or buffer.dtype != mine.dtype:
                buffer = self._buffers[name] = torch.empty_like(mine, device="cpu", pin_memory=mine.is_cuda)
            with torch.cuda.stream(streams.get(mine.device)):
                buffer.copy_(mine, non_blocking=True)
        for stream in streams.values():
            stream.synchronize()
        return {name: self._buffers[name] for name in tensors}

    def _work(
        self,
        began: float,
        step: int,
        tensors: Mapping[str, torch.Tensor],
        state: Mapping[str, Any],
        done: Mapping[torch.device, torch.cuda.Event],
    ) -> None:
        try:
            try:
                staged = self._stage(tensors, done)
            finally:
                self._staged.set()
            self._write(began, step, tensors, state, staged)
        except BaseException as error:
            self._error = error

    def _write(
        self,
        began: float,
        step: int,
        tensors: Mapping[str, torch.Tensor],
        state: Mapping[str, Any],
        staged: Mapping[str, torch.Tensor] | None,
    ) -> None:
        if self._first:
            self._before()
        uri = checkpoint.save(self.run, step, tensors, state, self.holder, staged, self._group)
        if self._first:
            seconds = time.monotonic() - began
            self._after(step, uri, seconds, seconds if staged is None else self._paused)
