"""Reading what a judge wrote: scores where it gave them, the status `unparseable` where it did not. Never a guess."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

LOWEST, HIGHEST = 1, 10
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_OUT_OF_TEN = re.compile(r"(?:score\s*[:=]\s*)?([a-z]+|[+-]?\d+(?:\.\d+)?)\s*(?:(?:/|out of)\s*(10|ten))?\.?")
_COMMA = re.compile(r",(\s*[}\]])")
_THOUGHTS = re.compile(r"<think>.*?</think>", re.DOTALL)


class UnreadableError(ValueError):
    """Why an answer cannot be used."""


@dataclass(frozen=True)
class Reading:
    """An answer as read: status ok with every score asked for, or unparseable with the reason and no score."""

    status: str
    scores: dict[str, int] = field(default_factory=dict)
    explanations: dict[str, str] = field(default_factory=dict)
    error: str | None = None


def read_scores(text: str, scores: Sequence[str]) -> Reading:
    """The scores of an answer: for each name `<name>_score`, nested with its explanation or beside it.

    Prose around the JSON, code fences, trailing commas, Python's quotes, and scores as words ("eight") or as
    "8/10" are read. Unparseable: no object, a cut one, a score missing, not whole, outside 1..10, given twice, or
    two objects that disagree.
    """
    try:
        found = [_scores_of(tree, scores) for tree in objects(text) if any(f"{s}_score" in tree for s in scores)]
        if not found:
            raise UnreadableError("no JSON object with a score in it")
        if any(one[0] != found[0][0] for one in found):
            raise UnreadableError("two answers that disagree")
    except UnreadableError as error:
        return Reading("unparseable", error=str(error))
    return Reading("ok", *found[0])


def read_caption(text: str) -> tuple[str, str | None, str | None]:
    """(status, caption, error) of a captioner's answer: {"caption": "..."} with whatever is around it."""
    try:
        found = {str(t["caption"]).strip() for t in objects(text) if isinstance(t.get("caption"), str)}
    except UnreadableError as error:
        return "unparseable", None, str(error)
    found -= {"", "..."}
    if len(found) != 1:
        return "unparseable", None, "two captions that differ" if found else "no JSON object with a caption in it"
    return "ok", " ".join(found.pop().split()), None


def objects(text: str) -> Iterator[dict[str, Any]]:
    """The outermost JSON objects in a text, in order. UnreadableError where a key is given twice with two values."""
    text = _THOUGHTS.sub(" ", text)
    if '"' not in text:
        text = text.translate({0x201C: '"', 0x201D: '"'})  # typographic quotes
    start = text.find("{")
    while start >= 0:
        stop = _end_of(text, start)
        tree = _load(text[start:stop]) if stop else None
        if isinstance(tree, dict):
            yield tree
            start = text.find("{", stop)
        else:
            start = text.find("{", start + 1)


def _end_of(text: str, start: int) -> int:
    """One past the brace that closes the one at `start`; 0 where none does. Braces within strings do not count."""
    depth, quote, i = 0, False, start
    while i < len(text):
        char = text[i]
        if quote:
            if char == "\\":
                i += 1
            elif char == '"':
                quote = False
        elif char == '"':
            quote = True
        elif char == "{":
            depth += 1
        elif char == "}":
            depth -= 1
            if not depth:
                return i + 1
        i += 1
    return 0


def _load(text: str) -> Any:
    for candidate in (text, _COMMA.sub(r"\1", text)):
        try:
            return json.loads(candidate, strict=False, object_pairs_hook=_once)
        except json.JSONDecodeError:
            continue
    try:
        tree = ast.parse(text.strip(), mode="eval").body
        if isinstance(tree, ast.Dict):
            names = [k.value for k in tree.keys if isinstance(k, ast.Constant)]
            if len(names) == len(set(names)) == len(tree.keys):
                return ast.literal_eval(tree)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        pass
    return None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    tree = dict(pairs)
    for name, value in pairs:
        if tree[name] is not value and tree[name] != value:
            raise UnreadableError(f"{name} is given twice")
    return tree


def _scores_of(tree: dict[str, Any], scores: Sequence[str]) -> tuple[dict[str, int], dict[str, str]]:
    values, explanations = {}, {}
    for name in scores:
        key = f"{name}_score"
        if key not in tree:
            raise UnreadableError(f"{key} is missing")
        value, words = tree[key], tree.get(f"{name}_explanation", tree.get("explanation"))
        if isinstance(value, dict):
            words = value.get("explanation", words)
            if "score" not in value:
                raise UnreadableError(f"{key} holds no score")
            value = value["score"]
        values[name] = _whole(key, value)
        if isinstance(words, str):
            explanations[name] = words
    return values, explanations


def _whole(key: str, value: Any) -> int:
    number: float | None = None
    if isinstance(value, str):
        match = _OUT_OF_TEN.fullmatch(value.strip().strip("*").strip().lower())
        if match and match[1] in WORDS:
            number = WORDS.index(match[1])
        elif match and not match[1].isalpha():
            number = float(match[1])
    elif isinstance(value, int | float) and not isinstance(value, bool):
        number = value
    if number is None or number != number:
        raise UnreadableError(f"{key}: {str(value)[:40]!r} is not a number")
    if not LOWEST <= number <= HIGHEST:
        raise UnreadableError(f"{key}: {number:g} is outside {LOWEST}..{HIGHEST}")
    if number != int(number):
        raise UnreadableError(f"{key}: {number:g} is not a whole number")
    return int(number)
