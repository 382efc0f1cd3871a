"""The prompts of prompts.yaml, filled in for one sample; the instruction goes in as quoted data."""

from __future__ import annotations

import functools
import hashlib
import importlib.resources
import json
from dataclasses import dataclass
from typing import Any

import yaml

CAPTION = "caption"


@dataclass(frozen=True)
class Prompt:
    """One question. `order`: the clips in the order of their pictures; `scores`: what it answers for."""

    id: str
    version: str
    system: str
    text: str
    order: tuple[str, ...]
    kinds: tuple[str, ...]
    scores: tuple[str, ...]

    def fill(self, frames: int, instruction: str | None = None) -> str:
        """The text for clips of `frames` pictures each. It comes after the pictures."""
        names, first = {}, 1
        for clip in self.order:
            last = first + frames - 1
            names[clip] = f"Picture {first}" if frames == 1 else f"Pictures {first} to {last}"
            first = last + 1
        text = self.text.replace("{example}", json.dumps(self.example()))
        if frames == 1:
            text = text.replace("} are ", "} is ").replace(", in order of time", "")
        for name, value in names.items():
            text = text.replace("{" + name + "}", value)
        return text.replace("{instruction}", quoted(instruction or ""))  # last: nothing in it is filled in again

    def example(self) -> dict[str, Any]:
        """The form of an answer, with dots for what is to be filled in."""
        if self.id == CAPTION:
            return {"caption": "..."}
        return {f"{score}_score": {"explanation": "...", "score": "..."} for score in self.scores}

    def schema(self) -> dict[str, Any]:
        """JSON schema of an answer, for servers that hold a model to one."""
        if self.id == CAPTION:
            return _object({"caption": {"type": "string"}})
        # an enumeration, since not every server minds minimum and maximum; explanation first: reasons before scores
        score = {"type": "integer", "enum": list(range(1, 11))}
        one = _object({"explanation": {"type": "string"}, "score": score})
        return _object({f"{name}_score": one for name in self.scores})


def quoted(text: str) -> str:
    """Text as a JSON string in which no tag can be closed: data, whatever it says."""
    return json.dumps(text, ensure_ascii=False).replace("<", "\\u003c").replace(">", "\\u003e")


@functools.cache
def prompts() -> dict[str, Prompt]:
    """All prompts by id, in the order in which they are asked: two scores first, and the same pictures after it."""
    tree = _file()
    parts = {"{data}": tree["data"], "{scale}": tree["scale"]}
    found = {}
    for name, one in tree["prompts"].items():
        text = one["text"]
        for mark, part in parts.items():
            text = text.replace(mark, part)
        order, kinds, scores = (tuple(one[n]) for n in ("order", "kinds", "scores"))
        found[name] = Prompt(name, tree["version"], tree["system"], text, order, kinds, scores)
    return found


@functools.cache
def caption_prompt() -> Prompt:
    """The captioner's question about one clip."""
    tree = _file()
    one = tree["caption"]
    return Prompt(CAPTION, tree["version"], one["system"], one["text"], ("target",), ("text_to_video",), ())


@functools.cache
def digest(caption: bool = False) -> str:
    """sha256 (hex) over all words of the judge's prompts, or of the captioner's."""
    chosen = [caption_prompt()] if caption else list(prompts().values())
    words = [[p.id, p.version, p.system, p.text, p.order, p.kinds, p.scores] for p in chosen]
    return hashlib.sha256(json.dumps(words).encode()).hexdigest()


@functools.cache
def _file() -> dict[str, Any]:
    return yaml.safe_load(importlib.resources.files("pipelines.judge").joinpath("prompts.yaml").read_text())


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object", "properties": properties, "required": list(properties), "additionalProperties": False,
    }  # fmt: skip
