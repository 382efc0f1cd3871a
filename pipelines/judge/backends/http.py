"""Any server that speaks OpenAI's chat completions: vLLM, SGLang, llama.cpp, hosted ones."""

from __future__ import annotations

import asyncio
import base64
import json
import random
import re
import time
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from pipelines.judge.backends.endpoints import Endpoint, Endpoints, SilentError
from pipelines.judge.exchange import ERROR_CHARACTERS, Answer, Request, failed
from pipelines.judge.settings import JudgeSettings
from sama.errors import InputError

RETRIED = {408, 409, 425, 429, 500, 502, 503, 504, 529}
LONGEST_PAUSE_S = 120.0
LARGEST_ANSWER = 16 * 2**20  # bytes; a server that sends more is broken
_SCHEMA_WORDS = re.compile(r"response_format|json_schema|guided|structured|grammar", re.IGNORECASE)
_N_WORDS = re.compile(
    r"['\"`]n['\"`]|\bn\s*(?:=|>|must|should|is|greater|parameter|\))|multiple (?:choices|completions)"
)
_POLICY = re.compile(r"content_(?:policy|filter)", re.IGNORECASE)


class _StatusError(Exception):
    def __init__(self, code: int, body: str, retry_after: float | None) -> None:
        super().__init__(f"HTTP {code}: {body}")
        self.code, self.body, self.retry_after = code, body, retry_after


class Http:
    """The backend `http`. One is enough for thousands of requests in flight: it waits, it does not compute."""

    def __init__(self, settings: JudgeSettings, key: str | None = None) -> None:
        self.settings, self._key = settings, key
        self._schema = settings.json_schema is not False
        self._n = settings.n is not False
        self._session: aiohttp.ClientSession | None = None
        self._endpoints: Endpoints | None = None

    async def start(self) -> None:
        """Ask every endpoint for its models. InputError when none answers, or one turns the key away."""
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        timeout = aiohttp.ClientTimeout(total=self.settings.timeout_s, connect=min(30.0, self.settings.timeout_s))
        # no limit here: Endpoints counts. No proxies from the environment: what is local stays local
        self._session = aiohttp.ClientSession(
            headers=headers, timeout=timeout, connector=aiohttp.TCPConnector(limit=0), trust_env=False
        )
        s = self.settings
        self._endpoints = Endpoints(s.endpoints, s.in_flight, s.rate, self._alive, give_up_s=s.timeout_s)
        states = await asyncio.gather(*(self._probe(url) for url in s.endpoints))
        if any(code in (401, 403) for code in states):
            await self.close()
            place = f"the variable {s.api_key_env}" if s.api_key_env else "api_key_env, which is not set"
            raise InputError(f"the judge's server turns us away (HTTP 401 or 403): check {place}")
        if not any(code is not None and code < 500 for code in states):
            await self.close()
            raise InputError(f"no judge answers at {', '.join(s.endpoints)}: is the server running?")

    async def close(self) -> None:
        if self._endpoints is not None:
            await self._endpoints.close()
        if self._session is not None:
            await self._session.close()

    async def ask(self, request: Request) -> list[Answer]:
        """An answer for each turn: in one request where the server can, else in one request each, at once."""
        together = self._n and len(request.turns) > 1
        if not together:
            return [a for found in await asyncio.gather(*self._each(request)) for a in found]
        answers = await self._request(request, request.turns, request.seeds)
        if len(answers) == len(request.turns):
            return answers
        if answers[0].status == "ok" and len(answers) == 1 and self.settings.n is None:
            self._n = False  # the server read over `n`
        rest = await asyncio.gather(*self._each(request, len(answers)))
        return answers + [a for found in rest for a in found]

    def _each(self, request: Request, first: int = 0) -> list[Any]:
        return [
            self._request(request, (turn,), (seed,))
            for turn, seed in zip(request.turns[first:], request.seeds[first:], strict=True)
        ]

    async def _request(self, request: Request, turns: tuple[int, ...], seeds: tuple[int, ...]) -> list[Answer]:
        """Answers to some turns of one prompt; fewer than asked for where the server gave fewer."""
        mine = Request(**{**request.__dict__, "turns": turns, "seeds": seeds})
        messages = _messages(request)
        error, status, began, host = "", "http_error", time.monotonic(), None
        attempt, form = 0, (self._schema, len(turns) > 1)
        while attempt <= self.settings.retries:
            try:
                assert self._endpoints is not None
                async with self._endpoints.place() as endpoint:
                    began, host = time.monotonic(), urlsplit(endpoint.url).netloc
                    reply = await self._post(endpoint, self._payload(request, messages, seeds[0], len(turns), form))
                self._schema = form[0]  # what worked after something was left out is how it is asked from now on
                return _answers(mine, reply, time.monotonic() - began, host)
            except SilentError as problem:
                return failed(mine, "http_error", self._clean(str(problem)))
            except _StatusError as problem:
                error, status = self._clean(str(problem)), "http_error"
                if problem.code not in RETRIED:
                    if _POLICY.search(problem.body):
                        return failed(mine, "refused", error, time.monotonic() - began, host)
                    simpler = self._simpler(form, problem)
                    if simpler is None:
                        break
                    form = simpler
                    if len(turns) > 1 and not form[1]:
                        first = Request(**{**request.__dict__, "turns": turns[:1], "seeds": seeds[:1]})
                        return await self._request(first, turns[:1], seeds[:1])
                    continue
                pause = problem.retry_after
            except TimeoutError:
                error, status, pause = f"no answer within {self.settings.timeout_s:g} s", "timeout", None
            except (aiohttp.ClientError, OSError, ValueError) as problem:
                error, status, pause = self._clean(f"{type(problem).__name__}: {problem}"), "http_error", None
            attempt += 1
            if attempt <= self.settings.retries:
                await asyncio.sleep(self._pause(attempt, pause))
        return failed(mine, status, error, time.monotonic() - began, host)

    def _simpler(self, form: tuple[bool, bool], problem: _StatusError) -> tuple[bool, bool] | None:
        """The request without what the server seems to refuse; None when nothing can be left out."""
        schema, n = form
        if problem.code not in (400, 404, 415, 422, 501):
            return None
        may_schema, may_n = schema and self.settings.json_schema is None, n and self.settings.n is None
        if may_n and (_N_WORDS.search(problem.body) or not may_schema) and not _SCHEMA_WORDS.search(problem.body):
            return schema, False
        return (False, n) if may_schema else None

    def _pause(self, attempt: int, told: float | None) -> float:
        doubled = self.settings.backoff_s * 2 ** (attempt - 1)
        # up to half more, so that requests that failed together do not come back together
        return min(LONGEST_PAUSE_S, max(doubled, told or 0.0) * random.uniform(1.0, 1.5))

    def _payload(
        self, request: Request, messages: list[dict], seed: int, count: int, form: tuple[bool, bool]
    ) -> dict[str, Any]:
        s = self.settings
        payload: dict[str, Any] = {"model": s.model, "messages": messages, "seed": seed}
        payload |= {"temperature": s.temperature, "max_tokens": s.max_tokens}
        if form[0]:
            named = {"name": request.prompt_id, "schema": request.schema, "strict": True}
            payload["response_format"] = {"type": "json_schema", "json_schema": named}
        if count > 1:
            payload["n"] = count
        return payload

    async def _post(self, endpoint: Endpoint, payload: dict[str, Any]) -> dict[str, Any]:
        assert self._session is not None
        assert self._endpoints is not None
        try:
            # a redirect could carry pictures and key to another host
            async with self._session.post(
                f"{endpoint.url}/chat/completions", json=payload, allow_redirects=False
            ) as response:
                if response.status != 200:
                    body = (await response.content.read(4096)).decode(errors="replace")
                    wait = _seconds(response.headers.get("Retry-After"))
                    if response.status == 429:
                        self._endpoints.rest(endpoint, wait or self.settings.backoff_s)
                    raise _StatusError(response.status, body, wait)
                data = await response.content.read(LARGEST_ANSWER)
                while len(data) < LARGEST_ANSWER and (more := await response.content.read(LARGEST_ANSWER - len(data))):
                    data += more
            reply = json.loads(data)
            if not isinstance(reply, dict) or not isinstance(reply.get("choices"), list) or not reply["choices"]:
                raise ValueError("the server's reply holds no choices")
        except (_StatusError, TimeoutError, aiohttp.ClientError, OSError, ValueError) as problem:
            healthy = isinstance(problem, _StatusError) and problem.code < 500
            self._endpoints.report(endpoint, healthy)
            raise
        self._endpoints.report(endpoint, True)
        return reply

    async def _probe(self, url: str) -> int | None:
        """The HTTP status of GET <url>/models, None where nobody answers."""
        assert self._session is not None
        try:
            limit = aiohttp.ClientTimeout(total=min(10.0, self.settings.timeout_s))
            async with self._session.get(f"{url}/models", timeout=limit, allow_redirects=False) as response:
                return response.status
        except (TimeoutError, aiohttp.ClientError, OSError):
            return None

    async def _alive(self, endpoint: Endpoint) -> bool:
        code = await self._probe(endpoint.url)
        return code is not None and code < 500

    def _clean(self, text: str) -> str:
        if self._key:
            text = text.replace(self._key, "***")
        return " ".join(text.split())[:ERROR_CHARACTERS]


def _messages(request: Request) -> list[dict[str, Any]]:
    # equal bytes in equal order for prompts that share pictures: a server with a prefix cache encodes them once
    pictures = [
        {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{base64.b64encode(image).decode()}"}}
        for image in request.images
    ]
    return [
        {"role": "system", "content": request.system},
        {"role": "user", "content": [*pictures, {"type": "text", "text": request.text}]},
    ]


def _answers(request: Request, reply: dict[str, Any], latency_s: float, host: str) -> list[Answer]:
    choices = sorted(reply["choices"], key=lambda c: c.get("index") or 0)[: len(request.turns)]
    usage = reply.get("usage") or {}
    made, share = usage.get("completion_tokens"), None
    answers = []
    for i, (choice, turn) in enumerate(zip(choices, request.turns, strict=False)):
        message = choice.get("message") or {}
        text = message.get("content")
        if isinstance(text, list):
            text = "".join(p.get("text") or "" for p in text if isinstance(p, dict))
        refusal = message.get("refusal")
        refused = bool(refusal) or choice.get("finish_reason") == "content_filter"
        if isinstance(made, int):
            share = made // len(choices) + (i < made % len(choices))
        answers.append(
            Answer(
                turn, request.seeds[0] if len(request.seeds) > 1 else request.seeds[i],
                "refused" if refused else "ok", text=text or "",
                error=str(refusal or choice.get("finish_reason"))[:ERROR_CHARACTERS] if refused else None,
                prompt_tokens=(usage.get("prompt_tokens") if i == 0 else 0) if usage else None,
                completion_tokens=share, latency_s=latency_s, host=host,
            )
        )  # fmt: skip
    return answers


def _seconds(header: str | None) -> float | None:
    """Retry-After: seconds, or a date."""
    if not header:
        return None
    try:
        return max(0.0, float(header))
    except ValueError:
        from email.utils import parsedate_to_datetime

        try:
            return max(0.0, parsedate_to_datetime(header).timestamp() - time.time())
        except (TypeError, ValueError):
            return None
