"""What asking would cost, before anything is sent: requests, tokens, hours, price."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.judge.prompts import Prompt
from pipelines.judge.settings import JudgeSettings

CHARACTERS_PER_TOKEN = 4.0  # of English; a rule of thumb, good to a fifth
PER_PICTURE = 2  # tokens around a picture's own


@dataclass(frozen=True)
class Cost:
    """At most: what stop_early and a cascade leave out is not known before. cached: input tokens, a part of them,
    that a server with a prefix cache need not compute again."""

    prompt_id: str
    samples: int
    requests: int
    answers: int
    image_tokens: int
    text_tokens: int
    cached: int
    output_tokens: int

    @property
    def input_tokens(self) -> int:
        return self.image_tokens + self.text_tokens


def cost_of(
    settings: JudgeSettings, prompt: Prompt, samples: int, picture_tokens: int, pictures: int, characters: int,
    shares_pictures: bool, turns: int | None = None,
) -> Cost:  # fmt: skip
    """One prompt about `samples` samples, all turns.

    picture_tokens, pictures: visual tokens and number of pictures in one request each, summed over the samples;
    characters: of all instructions; shares_pictures: an earlier prompt had the same pictures in the same order.
    """
    turns = turns or settings.turns
    requests = 1 if settings.n is not False else turns  # for one sample
    text = samples * len(prompt.system + prompt.fill(settings.frames)) + characters
    images, words = picture_tokens + PER_PICTURE * pictures, round(text / CHARACTERS_PER_TOKEN)
    again = (requests - 1) * (images + words) + (images if shares_pictures else 0)
    return Cost(
        prompt.id, samples, samples * requests, samples * turns, images * requests, words * requests, again,
        samples * turns * settings.price.output_tokens,
    )  # fmt: skip


def price_of(settings: JudgeSettings, cost: Cost) -> float | None:
    """In the settings' currency; None where a price is not stated."""
    price = settings.price
    if price.input_per_1k is None or price.output_per_1k is None:
        return None
    cached = price.input_per_1k if price.cached_input_per_1k is None else price.cached_input_per_1k
    fresh = (cost.input_tokens - cost.cached) * price.input_per_1k
    return (fresh + cost.cached * cached + cost.output_tokens * price.output_per_1k) / 1000


def hours_of(settings: JudgeSettings, cost: Cost) -> float | None:
    """At the stated requests a second; None where it is not stated."""
    rate = settings.price.requests_per_s
    return cost.requests / rate / 3600 if rate else None
