"""Settings of a judge: the file judge.yaml, or `sama curate --set judge.<name>=<value>`."""

from __future__ import annotations

import ipaddress
import re
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from pipelines.config import Strict
from sama.errors import InputError

Backend = Literal["http", "transformers", "vllm", "none"]
MODEL = "Qwen/Qwen2.5-VL-72B-Instruct"  # the paper's judge


class Price(Strict):
    """What a dry run computes with; null where unknown, and the dry run then says so."""

    currency: str = "USD"
    input_per_1k: float | None = Field(default=None, ge=0)  # per 1,000 tokens of images and text
    output_per_1k: float | None = Field(default=None, ge=0)
    cached_input_per_1k: float | None = Field(default=None, ge=0)  # prefix hits; null: they cost as much as others
    output_tokens: int = Field(default=160, gt=0)  # assumed length of one answer
    requests_per_s: float | None = Field(default=None, gt=0)  # throughput of all endpoints together


class OneJudge(Strict):
    """What may differ between the judges of a cascade. Null: as in the settings around it."""

    model: str
    revision: str | None = None
    endpoints: tuple[str, ...] | None = None
    price: Price | None = None


class JudgeSettings(Strict):
    """A judge. What changes an answer (model, prompts, frames, size, temperature, max_tokens) makes its judge_id."""

    backend: Backend = "none"
    model: str = MODEL
    revision: str | None = None
    endpoints: tuple[str, ...] = ()  # http: base URLs that end in /v1
    cascade: tuple[OneJudge, ...] = ()  # small to large; each sees only what the one before it let pass
    turns: int = Field(default=3, ge=1, le=100)
    frames: int = Field(default=8, ge=1, le=256)  # of each clip, evenly spread; the paper does not say
    # short side in pixels, both clips; the paper does not say. Up to 240 the frames come from the decoding that the
    # signals need anyway, above it each clip that is judged is read once more
    size: int = Field(default=240, ge=56, le=2048)
    temperature: float = Field(default=0.7, ge=0, le=2)  # above 0, or three turns are one; the paper does not say
    max_tokens: int = Field(default=512, ge=16)
    seed: int = 0
    stop_early: bool = True  # a score that already fails its threshold skips the prompts after it
    allow_external: bool = False  # endpoints beyond this machine: pictures leave it
    api_key_env: str | None = None  # name of the environment variable that holds the key
    in_flight: int = Field(default=16, ge=1, le=4096)  # requests at once, for each endpoint
    rate: float | None = Field(default=None, gt=0)  # requests a second over all endpoints; null: no limit
    timeout_s: float = Field(default=300.0, gt=0)
    retries: int = Field(default=6, ge=0)  # of one request, after 429, 5xx, a timeout or a dropped connection
    backoff_s: float = Field(default=1.0, gt=0)  # first pause, doubled each time; Retry-After goes before it
    n: bool | None = None  # all turns of a prompt in one request; null: until a server refuses
    json_schema: bool | None = None  # ask for JSON by schema; null: until a server refuses
    device: str = "cuda"  # transformers
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"  # transformers
    actors: int = Field(default=1, ge=1)  # transformers, vllm: copies of the model; http: one is enough for thousands
    cpus_per_actor: float = Field(default=0.25, ge=0)  # an HTTP judge waits, it does not compute
    gpus_per_actor: float = Field(default=0.0, ge=0)
    resources: dict[str, float] = Field(default_factory=dict)  # custom Ray resources of each judge actor
    engine: dict[str, Any] = Field(default_factory=dict)  # vllm: engine_kwargs, such as tensor_parallel_size
    price: Price = Price()

    @field_validator("endpoints")
    @classmethod
    def _urls(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(checked_url(url) for url in value)

    @field_validator("api_key_env")
    @classmethod
    def _name(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value):
            # not a ValueError: that would be told with the value, which may be a key
            raise InputError("judge.api_key_env must be the name of an environment variable, not a key")
        return value

    @model_validator(mode="after")
    def _whole(self) -> JudgeSettings:
        for judge in self.judges():
            if judge.backend == "http" and not judge.endpoints:
                raise ValueError("backend http needs endpoints, such as [http://127.0.0.1:8000/v1]")
            for url in judge.endpoints:
                if judge.backend == "http" and not self.allow_external and not is_loopback(url):
                    raise ValueError(
                        f"{urlsplit(url).hostname} is beyond this machine: pictures would leave it; "
                        "set allow_external: true when they may"
                    )
        if self.backend == "vllm" and len(self.cascade) > 1:
            raise ValueError("backend vllm takes no cascade: curate with the small model first, then with the large")
        return self

    def judges(self) -> list[JudgeSettings]:
        """The judges one after another, each complete: the cascade's, or this one alone."""
        if not self.cascade:
            return [self]
        own = self.model_dump(exclude={"cascade"})
        filled = []
        for one in self.cascade:
            given = {name: value for name, value in one.model_dump().items() if value is not None}
            filled.append(JudgeSettings.model_construct(**_typed({**own, "revision": None, **given})))
        return filled


class JudgeFile(Strict):
    """A judge.yaml: everything under the one key `judge`."""

    judge: JudgeSettings = JudgeSettings()


def _typed(tree: dict[str, Any]) -> dict[str, Any]:
    endpoints = tuple(checked_url(url) for url in tree["endpoints"])
    return {**tree, "endpoints": endpoints, "price": Price.model_validate(tree["price"]), "cascade": ()}


def checked_url(url: str) -> str:
    """A base URL without a slash at its end. ValueError unless it is http(s), InputError with a password in it."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{parts.hostname or 'an endpoint'} is not an http:// or https:// address")
    if parts.username or parts.password or parts.query:
        # not a ValueError: that would be told with the address
        raise InputError(f"the address of {parts.hostname} must not hold a key: name its variable in api_key_env")
    return url.rstrip("/")


def is_loopback(url: str) -> bool:
    """Whether an address is this machine's own."""
    host = urlsplit(url).hostname or ""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
