"""No judge: nothing is asked and nothing is answered."""

from __future__ import annotations

from pipelines.judge.exchange import Answer, Request


class Nobody:
    """The backend `none`."""

    async def start(self) -> None: ...

    async def ask(self, request: Request) -> list[Answer]:
        raise AssertionError("nobody is asked when there is no judge")

    async def close(self) -> None: ...
