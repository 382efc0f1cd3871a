"""What makes two plans different, in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from pipelines.config import flatten
from pipelines.mixture.batch import GlobalBatch
from pipelines.mixture.plan import BatchPlan

LOOKED_AT = 200  # first steps that are compared batch by batch
_Facts = dict[str, Any]


def differences(old: _Facts, new: _Facts) -> list[str]:
    """Everything that differs between two plans' facts (plan.json); empty when they train the same."""
    if old.get("digest") == new.get("digest"):
        return []
    found = [*_settings(old, new), *_inputs(old, new)]
    found += _counted("rows at shape", _shapes(old), _shapes(new))
    if old.get("rows") != new.get("rows") and not found:
        found.append("other samples, as many as before")
    return found or ["only the plan's version differs"]


def lines(old: BatchPlan, new: BatchPlan) -> list[str]:
    """The differences of two plans for a terminal, with the first step that trains on something else."""
    found = differences(old.facts, new.facts)
    if not found:
        return ["the same plan"]
    head = f"another plan: {old.digest[:12]} was compiled before, this is {new.digest[:12]}"
    return [head, *(f"  {line}" for line in found), f"  {_first_step(old, new)}"]


def _settings(old: _Facts, new: _Facts) -> Iterator[str]:
    ours, theirs = flatten(old.get("mixture", {})), flatten(new.get("mixture", {}))
    for name in sorted(set(ours) | set(theirs)):
        if name != "name" and ours.get(name) != theirs.get(name):
            before, after = ours.get(name), theirs.get(name)
            if isinstance(before, (list, tuple)) and isinstance(after, (list, tuple)) and len(before) == len(after):
                for i, (a, b) in enumerate(zip(before, after, strict=True)):
                    if a != b:
                        yield from _values(f"mixture.{name}[{i}]", a, b)
            else:
                yield from _values(f"mixture.{name}", before, after)


def _values(name: str, before: Any, after: Any) -> Iterator[str]:
    if isinstance(before, dict) and isinstance(after, dict):
        for key in sorted(set(before) | set(after)):
            if before.get(key) != after.get(key):
                yield from _values(f"{name}.{key}", before.get(key), after.get(key))
    else:
        yield f"{name} was {before!r} and is {after!r}"


def _inputs(old: _Facts, new: _Facts) -> Iterator[str]:
    before, after = old.get("selections", {}), new.get("selections", {})
    for name in sorted(set(before) | set(after)):
        if before.get(name) != after.get(name):
            if name in before and name in after:
                yield f"selection {name} has other decisions"
            else:
                yield f"selection {name} is {'no longer used' if name in before else 'new'}"
    if old.get("blocklist") != new.get("blocklist"):
        yield "the blocklist has changed"
    if old.get("captions", "") != new.get("captions", ""):
        yield "clips have been given other captions"
    for what in ("in the index", "eligible", "blocklisted", "held out", "a near-duplicate of held-out footage"):
        yield from _counted(f"rows {what} of", _sources(old, what), _sources(new, what))


def _counted(what: str, before: Counter[str], after: Counter[str]) -> Iterator[str]:
    for name in sorted(set(before) | set(after)):
        if before[name] != after[name]:
            yield f"{what} {name}: were {before[name]} and are {after[name]}"


def _sources(facts: _Facts, what: str) -> Counter[str]:
    found: Counter[str] = Counter()
    for source in facts.get("summary", {}).get("sources", []):
        found[f"{source['stream']} {source['dataset']}"] += source["counts"].get(what, 0)
    return found


def _shapes(facts: _Facts) -> Counter[str]:
    found: Counter[str] = Counter()
    for group in facts.get("groups", []):
        found[f"{group['stream']} {'x'.join(map(str, group['bucket']))}"] += group["size"]
    return found


def _first_step(old: BatchPlan, new: BatchPlan) -> str:
    both = min(old.steps, new.steps)
    for step in range(min(both, LOOKED_AT)):
        if _content(old[step]) != _content(new[step]):
            return f"the first step that differs is {step}"
    return f"the first {min(both, LOOKED_AT)} steps train on the same samples"


def _content(batch: GlobalBatch) -> tuple[Any, ...]:
    slots = [(s.key, s.task, s.start, s.seed, s.drop_instruction, s.drop_source) for s in batch.slots]
    return batch.stream, batch.bucket, slots
