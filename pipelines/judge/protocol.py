"""The paper's protocol: which prompts for which sample, how often, on which frames, and when enough is known."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipelines.judge.prompts import Prompt, digest, prompts
from pipelines.judge.settings import JudgeSettings

FINAL = ("ok", "unparseable", "refused")  # answers that stay; errors are asked again by the next run
PATCH = 28  # pixels: sides of one visual token of Qwen2.5-VL (14 x 14 patches, merged 2 x 2)
JPEG_QUALITY = 92


def judge_id(settings: JudgeSettings, caption: bool = False) -> str:
    """Who answers: 12 hex digits over everything that changes an answer (schema: Judgements)."""
    schemas = [p.schema() for p in prompts().values()]
    parts: list[Any] = [settings.model, settings.revision, digest(caption), settings.frames, settings.size]
    parts += [settings.temperature, settings.max_tokens, None if caption else schemas]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]


def prompts_for(kind: str) -> list[Prompt]:
    """The prompts for a kind of sample, cheap ones first; none for captioned clips."""
    return [p for p in prompts().values() if kind in p.kinds]


def moments(
    count: int, source: tuple[int, float], target: tuple[int, float], pairing: str = "index",
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Frame numbers, evenly from the first to the last common moment, of source and target.

    source, target: (frames left after the policy, fps). Clips paired by time share a clock, others frame numbers.
    Fewer than `count` where the clips are shorter.
    """
    (frames_s, fps_s), (frames_t, fps_t) = source, target
    if pairing != "time" or not fps_s or not fps_t:
        common = min(frames_s, frames_t)
        at = np.round(np.linspace(0, common - 1, min(count, common))).astype(int)
        return at, at
    clock = min(fps_s, fps_t)
    common = max(1, int(min(frames_s / fps_s, frames_t / fps_t) * clock + 1e-6))
    seconds = np.round(np.linspace(0, common - 1, min(count, common))) / clock
    of = [np.minimum(np.round(seconds * rate).astype(int), n - 1) for n, rate in (source, target)]
    return of[0], of[1]


def frame_size(height: int, width: int, short: int) -> tuple[int, int]:
    """(height, width) of the pictures: short side about `short`, never enlarged, sides in whole visual tokens."""
    factor = min(1.0, short / min(height, width))
    return max(PATCH, round(height * factor / PATCH) * PATCH), max(PATCH, round(width * factor / PATCH) * PATCH)


def seed_of(seed: int, sample_digest: bytes, prompt_id: str, turn: int) -> int:
    """31 bits that only these four decide."""
    words = f"{seed} {sample_digest.hex()} {prompt_id} {turn}"
    return int.from_bytes(hashlib.sha256(words.encode()).digest()[:4], "big") >> 1


@dataclass(frozen=True)
class Known:
    """What is known of one turn: the status of its newest answer, and the scores of a readable one."""

    status: str
    scores: Mapping[str, int] = field(default_factory=dict)


Answers = dict[tuple[str, str, int], Known]  # (judge_id, prompt_id, turn)


@dataclass(frozen=True)
class Step:
    """What to do next: a prompt for one judge (none: nothing), and the turns that are to be recorded as skipped."""

    judge: int | None
    prompt: Prompt | None
    turns: tuple[int, ...]
    skipped: tuple[tuple[int, Prompt, int, str], ...]  # judge, prompt, turn, why


def next_step(
    kind: str, ids: Sequence[str], settings: Sequence[JudgeSettings], thresholds: Mapping[str, float], known: Answers
) -> Step:
    """The next question about a sample, from the answers so far; a pure function, so a killed run goes on.

    ids, settings: the judges in order. A mean score below its threshold fails: with `stop_early` it skips that
    judge's later prompts, and it always skips the judges after it. Missing scores fail nobody. A turn in `known`
    with an error has been tried in this run: what comes after it waits for the next.
    """
    fails, skipped = "", []
    for number, (name, judge) in enumerate(zip(ids, settings, strict=True)):
        stop = fails  # of a judge before this one
        for prompt in prompts_for(kind):
            turns = {t: known.get((name, prompt.id, t)) for t in range(judge.turns)}
            missing = tuple(t for t, k in turns.items() if k is None or k.status == "skipped")
            why = stop or (fails if judge.stop_early else "")
            if why:
                skipped += [(number, prompt, t, why) for t in missing if turns[t] is None]
                continue
            if missing:
                return Step(number, prompt, missing, ())
            if any(k is not None and k.status not in FINAL for k in turns.values()):
                return Step(None, None, (), ())
            low = failing(prompt, [k for k in turns.values() if k is not None], thresholds)
            fails = fails or (f"{low} by judge {name}" if low else "")
    return Step(None, None, (), tuple(skipped))


def failing(prompt: Prompt, answers: Sequence[Known], thresholds: Mapping[str, float]) -> str | None:
    """The first score of a prompt whose mean over readable answers is below its threshold, as `<score>_low`."""
    for score in prompt.scores:
        values = [a.scores[score] for a in answers if score in a.scores]
        if values and score in thresholds and float(np.mean(values)) < thresholds[score]:
            return f"{score}_low"
    return None


def finished(
    kind: str, ids: Sequence[str], settings: Sequence[JudgeSettings], thresholds: Mapping[str, float], known: Answers
) -> bool:
    """Whether nothing is left to ask or to record about a sample."""
    step = next_step(kind, ids, settings, thresholds, known)
    return step.judge is None and not step.skipped


def answers_to_json(known: Answers) -> str:
    """For the way through a table."""
    return json.dumps([[*place, k.status, dict(k.scores)] for place, k in known.items()])


def answers_from_json(text: str | None) -> Answers:
    return {(j, p, int(t)): Known(status, scores) for j, p, t, status, scores in json.loads(text or "[]")}


def facts_of(settings: JudgeSettings, prompt: Prompt, size: tuple[int, int], frames: int) -> dict[str, Any]:
    """Columns of an answer's row that say how it was asked."""
    return {
        "model": settings.model, "model_revision": settings.revision, "prompt_id": prompt.id,
        "prompt_version": prompt.version, "temperature": settings.temperature, "frames": frames,
        "height": size[0], "width": size[1],
    }  # fmt: skip
