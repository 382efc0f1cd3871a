"""Where training takes its text embeddings from: live in the worker, from a cache, or from Ray actors.

Every way gives `(B, max_length, text_dim)` in the encoders' dtype, zeros behind the text. `announce` says which prompts
will be asked for soon; it never waits.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from pipelines.config import TextSettings
from pipelines.encode import store, text_job
from pipelines.encode.prompts import text_keys
from pipelines.samples import storage
from sama.errors import InputError

if TYPE_CHECKING:
    import torch

    from pipelines.loading import MicroBatch
    from sama.encoders import Encoders

AHEAD = 8  # micro-batches whose embeddings may be on their way
NEEDS_RAY = "text.mode actors works on Ray only: train with `sama train`, or set text.mode to live or cached"
COMMAND = "sama encode MIXTURE --data ROOT --out"


class TextSource(Protocol):
    def announce(self, prompts: Sequence[str]) -> None: ...

    def __call__(self, prompts: Sequence[str]) -> torch.Tensor: ...


class LiveText:
    """The text encoder in this process. offload: it waits on the CPU between uses. mesh: its weights are sharded over
    the ranks, and every rank must ask at the same time."""

    def __init__(self, encoders: Encoders, offload: bool = False, mesh: Any = None) -> None:
        self.encoders, self.offload = encoders, offload
        if mesh is not None:
            shard(encoders, mesh)

    def announce(self, prompts: Sequence[str]) -> None:
        pass

    def __call__(self, prompts: Sequence[str]) -> torch.Tensor:
        if not self.offload:
            return self.encoders.encode_text(prompts)
        self.encoders.text_encoder.to(self.encoders.device)
        found = self.encoders.encode_text(prompts)
        self.encoders.text_encoder.to("cpu")
        return found


class CachedText:
    """Embeddings from the cache that `sama encode` filled; the text encoder is not loaded."""

    def __init__(self, cache: str, encoders: Encoders) -> None:
        """InputError when there is no such cache, or it is that of another text encoder."""
        self.store, self.encoders = open_text(cache, encoders), encoders
        self._cache, self._coming = cache, _Coming(AHEAD)
        self._pool = ThreadPoolExecutor(2, "text") if "://" in self.store.folder else None

    def announce(self, prompts: Sequence[str]) -> None:
        if self._pool is not None:  # a local cache is mapped: nothing to wait for
            pool = self._pool
            self._coming.put(prompts, lambda: pool.submit(self._read, list(prompts)))

    def __call__(self, prompts: Sequence[str]) -> torch.Tensor:
        from sama.encoders import pad_text

        waiting = self._coming.take(prompts)
        embeds = self._read(list(prompts)) if waiting is None else waiting.result()
        length = self.encoders.preset.text_max_length
        return pad_text(embeds, length).to(self.encoders.device, self.encoders.dtype)

    def _read(self, prompts: list[str]) -> list[torch.Tensor]:
        import torch

        try:
            found = self.store.read(text_keys(prompts, self.store.facts["text_digest"]))
        except store.MissingEntryError as error:
            raise InputError(_missing(self._cache, [prompts[i] for i in error.missing])) from None
        width = self.encoders.preset.text_dim
        return [torch.from_numpy(np.array(data)).view(torch.bfloat16).reshape(-1, width) for data in found]


class ActorText:
    """Embeddings from Ray actors (`pipelines.encode.actors`), asked for as soon as a coming batch is known."""

    def __init__(self, actors: Sequence[Any], encoders: Encoders, rank: int = 0) -> None:
        """encoders: say in which shape, precision and place the embeddings are wanted; rank: begins at this actor."""
        self._actors, self._next, self.encoders = list(actors), rank, encoders
        self._coming = _Coming(AHEAD)

    def announce(self, prompts: Sequence[str]) -> None:
        self._coming.put(prompts, lambda: self._ask(prompts))

    def __call__(self, prompts: Sequence[str]) -> torch.Tensor:
        import ray
        import torch

        from sama.encoders import pad_text

        waiting = self._coming.take(prompts)
        data, tokens, dtype = ray.get(self._ask(prompts) if waiting is None else waiting)
        embeds = torch.from_numpy(np.array(data)).view(getattr(torch, dtype)).reshape(sum(tokens), -1).split(tokens)
        length = self.encoders.preset.text_max_length
        return pad_text(embeds, length).to(self.encoders.device, self.encoders.dtype)

    def _ask(self, prompts: Sequence[str]) -> Any:
        self._next += 1
        return self._actors[self._next % len(self._actors)].encode.remote(list(prompts))


class _Coming:
    """What was asked for ahead of time, by its prompts; more than `most` are not."""

    def __init__(self, most: int) -> None:
        self._most, self._lock = most, threading.Lock()
        self._waiting: OrderedDict[tuple[str, ...], Any] = OrderedDict()

    def put(self, prompts: Sequence[str], ask: Callable[[], Any]) -> None:
        name = tuple(prompts)
        with self._lock:
            if name not in self._waiting and len(self._waiting) < self._most:
                self._waiting[name] = ask()

    def take(self, prompts: Sequence[str]) -> Any | None:
        with self._lock:
            return self._waiting.pop(tuple(prompts), None)


class Announcer:
    """Tells the text source of coming prompts; batches come before there is one. actors: those that the driver
    started, for mode actors."""

    def __init__(self, actors: Sequence[Any] = ()) -> None:
        self.actors = list(actors)
        self.source: TextSource | None = None

    def watch(self, batches: Iterator[MicroBatch]) -> Iterator[MicroBatch]:
        """The batches as they come, each announced."""
        for batch in batches:
            if self.source is not None:
                self.source.announce(batch.prompts)
            yield batch


def open_text(cache: str, encoders: Encoders) -> store.Store:
    """The text part of a cache. InputError when there is none or it is that of another text encoder.

    The precision in which it was computed may differ from that of training: it is the cache's own.
    """
    import torch

    from sama.encoders import Encoders as Made

    folder = storage.join(cache, text_job.FOLDER)
    if not storage.exists(folder):
        raise InputError(f"{cache} holds no text embeddings: run `{COMMAND} {cache}`")
    found = store.Store(folder)
    dtype = getattr(torch, str(found.facts.get("computed_in")), torch.float32)
    same = Made(encoders.preset, "cpu", dtype, encoders.sources)
    if found.facts.get("text_digest") != same.digest_of("text"):
        raise InputError(
            f"{cache} holds the embeddings of another text encoder than that of {encoders.preset.name} here: "
            f"run `{COMMAND}` into another cache"
        )
    return found


def missing(cache: str, texts: store.Store, prompts: list[str]) -> str | None:
    """What is wrong when some of the prompts are not in the cache."""
    there = texts.has(text_keys(prompts, texts.facts["text_digest"]))
    lost = [p for p, found in zip(prompts, there.tolist(), strict=True) if not found]
    return _missing(cache, lost) if lost else None


def shard(encoders: Encoders, mesh: Any) -> None:
    """Load the text encoder on the CPU and shard it over a device mesh, block by block."""
    import torch
    from torch.distributed.fsdp import fully_shard

    home, encoders.device = encoders.device, torch.device("cpu")  # no rank ever holds it whole on its device
    model = encoders.text_encoder
    encoders.device = home
    for block in model.encoder.block:
        fully_shard(block, mesh=mesh)
    # by default the outermost group, the token table among it, would stay gathered after its first use
    fully_shard(model, mesh=mesh, reshard_after_forward=True)


def source_of(
    settings: TextSettings, encoders: Encoders, mesh: Any = None, ahead: Announcer | None = None, rank: int = 0
) -> TextSource:
    """What the settings ask for, and what `ahead` announces to from now on.

    mesh: of the ranks, for a sharded encoder. InputError for mode actors without the driver's actors.
    """
    source = _source(settings, encoders, mesh, ahead.actors if ahead else [], rank)
    if ahead is not None:
        ahead.source = source
    return source


def _source(settings: TextSettings, encoders: Encoders, mesh: Any, actors: list[Any], rank: int) -> TextSource:
    if settings.mode == "cached":
        assert settings.cache is not None
        return CachedText(settings.cache, encoders)
    if settings.mode == "actors":
        if not actors:
            raise InputError(NEEDS_RAY)
        return ActorText(actors, encoders, rank)
    return LiveText(encoders, settings.offload, mesh if settings.sharded else None)


def _missing(cache: str, prompts: list[str]) -> str:
    more = f" and {len(prompts) - 1} others" if len(prompts) > 1 else ""
    return f"{cache} has no embeddings of the prompt {prompts[0]!r}{more}: run `{COMMAND} {cache}` again"
