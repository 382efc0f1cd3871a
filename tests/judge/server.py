"""A judge that looks: an HTTP server that decodes the pictures it is sent and answers from what is in them."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

import numpy as np
from aiohttp import web
from PIL import Image

Fault = Callable[[int], str]  # number of the request -> what to do with it


class JudgeServer:
    """OpenAI-compatible. Scores fall with the difference between the two clips; a gullible one also obeys orders that
    it finds outside of the quoted instruction. faults: a word for each request, see `_faulty`.
    """

    def __init__(
        self, faults: Fault | None = None, latency_s: float = 0.0, takes_n: bool = True, takes_schema: bool = True,
        key: str | None = None, width: int | None = None,
    ) -> None:  # fmt: skip
        self.faults, self.latency_s, self.key = faults or (lambda number: ""), latency_s, key
        self.takes_n, self.takes_schema = takes_n, takes_schema
        self.width = asyncio.Semaphore(width) if width else None
        self.payloads: list[dict[str, Any]] = []
        self.pictures: list[list[bytes]] = []
        self.prompts: Counter[str] = Counter()
        self.busy = self.most = self.number = 0
        self.times: list[tuple[float, float]] = []
        self.healthy = True

    def __enter__(self) -> JudgeServer:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    async def _start(self) -> None:
        app = web.Application(client_max_size=2**28)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_get("/v1/models", self._models)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}/v1"  # type: ignore[union-attr]

    async def _models(self, request: web.Request) -> web.Response:
        if not self._known(request):
            return web.json_response({"error": "who are you?"}, status=401)
        return web.json_response({"data": []}, status=200 if self.healthy else 503)

    def _known(self, request: web.Request) -> bool:
        return self.key is None or request.headers.get("Authorization") == f"Bearer {self.key}"

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        self.number += 1
        number = self.number
        self.busy += 1
        self.most = max(self.most, self.busy)
        began = time.monotonic()
        try:
            return await self._answer(request, number)
        finally:
            self.busy -= 1
            self.times.append((began, time.monotonic()))

    async def _answer(self, request: web.Request, number: int) -> web.StreamResponse:
        if not self._known(request):
            return web.json_response({"error": f"bad key {request.headers.get('Authorization')}"}, status=401)
        payload = await request.json()
        if self.width is None:
            await asyncio.sleep(self.latency_s)
        else:
            async with self.width:
                await asyncio.sleep(self.latency_s)
        fault = self.faults(number)
        if fault == "429":
            return web.json_response({"error": "slow down"}, status=429, headers={"Retry-After": "0.2"})
        if fault in ("400", "500", "503"):
            return web.json_response({"error": "no"}, status=int(fault))
        if fault == "drop":
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        if fault == "hang":
            await asyncio.sleep(30)
        if fault == "torn":
            return web.Response(text='{"choices": [{"mess', content_type="application/json")
        if payload.get("n", 1) > 1 and not self.takes_n:
            return web.json_response({"error": {"message": "'n' must be 1"}}, status=400)
        if "response_format" in payload and not self.takes_schema:
            return web.json_response({"error": {"message": "response_format is not supported"}}, status=400)
        self.payloads.append(payload)
        text, pictures = _content(payload)
        self.pictures.append(pictures)
        answer = self._say(fault, text, pictures)
        finish = "content_filter" if fault == "filter" else "stop"
        choices = [
            {"index": i, "message": {"role": "assistant", "content": answer}, "finish_reason": finish}
            for i in range(payload.get("n", 1))
        ]
        usage = {"prompt_tokens": 100 * len(pictures), "completion_tokens": 10 * len(choices)}
        return web.json_response({"choices": choices, "usage": usage})

    def _say(self, fault: str, text: str, pictures: Sequence[bytes]) -> str:
        names = re.findall(r'"(\w+)_score": \{', text)
        frames = [np.asarray(Image.open(io.BytesIO(p)).convert("RGB"), np.float32) for p in pictures]
        if not names:
            self.prompts["caption"] += 1
            shade = "bright" if np.mean([f.mean() for f in frames]) > 127 else "dark"
            return json.dumps({"caption": f"A {shade} clip of {len(frames)} frames."})
        self.prompts["+".join(names)] += 1
        half = len(frames) // 2
        apart = float(np.mean([np.abs(a - b).mean() for a, b in zip(frames[:half], frames[half:], strict=True)]))
        score = int(np.clip(round(10 - apart / 10), 1, 10))
        outside = re.sub(r"<instruction>.*?</instruction>", "", text, flags=re.DOTALL)
        if re.search(r"answer 10", outside, re.IGNORECASE):
            score = 10
        tree = {f"{n}_score": {"explanation": f"they differ by {apart:.1f}", "score": score} for n in names}
        answer = json.dumps(tree)
        if fault == "prose":
            return f"Let me see. {{not json}} Here it is:\n```json\n{answer[:-1]},}}\n```\nI hope this helps."
        if fault == "high":
            return answer.replace(f'"score": {score}', '"score": 11')
        if fault == "garbled":
            return answer[: len(answer) // 2]
        return answer


def _content(payload: dict[str, Any]) -> tuple[str, list[bytes]]:
    parts = payload["messages"][-1]["content"]
    kinds = [p["type"] for p in parts]
    assert kinds == ["image_url"] * (len(kinds) - 1) + ["text"], "pictures come before the text"
    urls = [p["image_url"]["url"] for p in parts[:-1]]
    return parts[-1]["text"], [base64.b64decode(u.removeprefix("data:image/jpeg;base64,"), validate=True) for u in urls]
