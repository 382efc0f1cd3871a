"""One question to a judge and the answers to it, and what every backend must do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from pipelines.judge.settings import JudgeSettings

ERROR_CHARACTERS = 300  # of an error that are kept in a row


@dataclass(frozen=True)
class Request:
    """One prompt about one sample, asked `len(turns)` times.

    images: JPEG files in the order of the prompt; they precede the text. seeds: one for each turn.
    """

    key: str
    prompt_id: str
    system: str
    text: str
    schema: dict[str, Any]
    images: tuple[bytes, ...]
    turns: tuple[int, ...]
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Answer:
    """What came back for one turn.

    status: ok (there is text, whatever it says), refused, http_error, timeout. prompt_tokens: of a request with
    several answers they stand at its first; completion_tokens: then shared out evenly. latency_s: seconds of the
    request, waiting for a place in the queue and pauses between attempts not counted.
    """

    turn: int
    seed: int
    status: str
    text: str | None = None
    error: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    latency_s: float | None = None
    host: str | None = None


class Backend(Protocol):
    """Something that can be asked. It belongs to the event loop in which it was started."""

    async def start(self) -> None:
        """Load, or look whether anybody answers. InputError where it cannot work."""

    async def ask(self, request: Request) -> list[Answer]:
        """An answer for each turn, in order; errors are answers too. Many calls run at once."""
        ...

    async def close(self) -> None:
        """Let go of connections and memory."""


def make(settings: JudgeSettings, key: str | None = None) -> Backend:
    """The backend that settings name. `key`: sent to HTTP servers and nowhere else, and never logged."""
    if settings.backend == "http":
        from pipelines.judge.backends.http import Http

        return Http(settings, key)
    if settings.backend == "transformers":
        from pipelines.judge.backends.transformers import Transformers

        return Transformers(settings)
    if settings.backend == "none":
        from pipelines.judge.backends.none import Nobody

        return Nobody()
    raise ValueError(f"backend {settings.backend} is not asked one by one: it is a step of the Ray Data pipeline")


def failed(request: Request, status: str, error: str, latency_s: float | None = None, host: str | None = None) -> list:
    """The same failure for every turn of a request."""
    pairs = zip(request.turns, request.seeds, strict=True)
    return [Answer(t, s, status, error=error, latency_s=latency_s, host=host) for t, s in pairs]
