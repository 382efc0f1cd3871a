"""Ask the judges about one sample until enough is known; every answer becomes a row."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pipelines.judge import protocol
from pipelines.judge.answers import read_caption, read_scores
from pipelines.judge.exchange import Answer, Backend, Request
from pipelines.judge.prompts import Prompt, caption_prompt
from pipelines.judge.protocol import Answers, Known
from pipelines.judge.settings import JudgeSettings
from pipelines.samples import tables


@dataclass(frozen=True)
class Sample:
    """A sample as a judge sees it. source, target: JPEG files in order of time, all of `size` (height, width)."""

    digest: bytes
    key: str
    kind: str
    instruction: str | None
    source: tuple[bytes, ...]
    target: tuple[bytes, ...]
    size: tuple[int, int]


@dataclass(frozen=True)
class Judge:
    """Who is asked: settings, name and the backend that reaches it."""

    settings: JudgeSettings
    id: str
    backend: Backend


async def interview(
    sample: Sample, judges: Sequence[Judge], thresholds: Mapping[str, float], known: Answers
) -> list[dict[str, Any]]:
    """New rows (columns of tables.JUDGEMENTS) about a sample; `known` holds the answers it has already."""
    known, rows = dict(known), []
    ids, settings = [j.id for j in judges], [j.settings for j in judges]
    while True:
        step = protocol.next_step(sample.kind, ids, settings, thresholds, known)
        for number, prompt, turn, why in step.skipped:
            answer = Answer(turn, _seed(settings[number], sample, prompt, turn), "skipped", error=f"after {why}")
            rows.append(_row(sample, judges[number], prompt, answer, "skipped", {}, {}))
        if step.judge is None or step.prompt is None:
            return rows
        judge, prompt = judges[step.judge], step.prompt
        for answer in await judge.backend.ask(request_for(sample, judge.settings, prompt, step.turns)):
            row, known[judge.id, prompt.id, answer.turn] = answer_row(sample, judge, prompt, answer)
            rows.append(row)


def answer_row(sample: Sample, judge: Judge, prompt: Prompt, answer: Answer) -> tuple[dict[str, Any], Known]:
    """An answer as a row of tables.JUDGEMENTS, and what is known by it."""
    if answer.status != "ok":
        return _row(sample, judge, prompt, answer, answer.status, {}, {}), Known(answer.status)
    found = read_scores(answer.text or "", prompt.scores)
    row = _row(sample, judge, prompt, answer, found.status, found.scores, found.explanations, found.error)
    return row, Known(found.status, found.scores)


async def describe(sample: Sample, judge: Judge) -> dict[str, Any]:
    """A caption of the sample's target, as a row of tables.CAPTIONS without target_sha256."""
    [answer] = await judge.backend.ask(request_for(sample, judge.settings, caption_prompt(), (0,)))
    return caption_row(sample, judge, answer)


def caption_row(sample: Sample, judge: Judge, answer: Answer) -> dict[str, Any]:
    """A captioner's answer as a row of tables.CAPTIONS without target_sha256."""
    status, caption, error = answer.status, None, answer.error
    if status == "ok":
        status, caption, error = read_caption(answer.text or "")
    row = _common(sample, judge, caption_prompt(), answer, status, error)
    return row | {"captioner_id": judge.id, "caption": caption}


def request_for(sample: Sample, settings: JudgeSettings, prompt: Prompt, turns: tuple[int, ...]) -> Request:
    """A prompt about a sample: pictures in the prompt's order, then the text."""
    clips = {"original": sample.source, "edited": sample.target, "target": sample.target}
    images = tuple(image for name in prompt.order for image in clips[name])
    text = prompt.fill(len(sample.target), sample.instruction)
    seeds = tuple(_seed(settings, sample, prompt, turn) for turn in turns)
    return Request(sample.key, prompt.id, prompt.system, text, prompt.schema(), images, turns, seeds)


def _seed(settings: JudgeSettings, sample: Sample, prompt: Prompt, turn: int) -> int:
    return protocol.seed_of(settings.seed, sample.digest, prompt.id, turn)


def _row(
    sample: Sample, judge: Judge, prompt: Prompt, answer: Answer, status: str, scores: Mapping[str, int],
    words: Mapping[str, str], error: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    row = _common(sample, judge, prompt, answer, status, error or answer.error)
    row |= {"sample_digest": sample.digest, "judge_id": judge.id, **dict.fromkeys(tables.SCORES), **scores}
    return row | {"explanations_json": json.dumps(dict(words), ensure_ascii=False) if words else None}


def _common(
    sample: Sample, judge: Judge, prompt: Prompt, answer: Answer, status: str, error: str | None
) -> dict[str, Any]:
    facts = protocol.facts_of(judge.settings, prompt, sample.size, len(sample.target))
    return facts | {
        "key": sample.key, "turn": answer.turn, "seed": answer.seed, "status": status, "error": error,
        "raw_answer": answer.text, "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": answer.completion_tokens, "latency_s": answer.latency_s,
        "endpoint_host": answer.host, "created_at": datetime.now(UTC),
    }  # fmt: skip
