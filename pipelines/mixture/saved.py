"""A compiled plan on disk: facts as JSON beside the files of its rows, which open without being read."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from typing import Any

from pipelines.config import flatten
from pipelines.mixture.build import LAYOUT, VERSION, Compiled
from pipelines.mixture.store import FILES, Rows
from pipelines.samples import storage
from sama.errors import InputError


def write(compiled: Compiled, folder: str) -> str:
    """Write a plan for workers to open, `plan.json` last; the folder. InputError where another plan lies."""
    uri = storage.join(folder, "plan.json")
    if storage.exists(uri):
        old = _read_facts(folder)
        differs = difference(old, compiled.facts)
        if differs is not None:
            raise InputError(f"{folder} holds another plan ({differs}): choose another folder")
        if all(old.get(n) == compiled.facts[n] for n in ("places", "layout")):
            return storage.absolute(folder)
    for name in FILES:
        storage.copy(os.path.join(compiled.folder, name), storage.join(folder, name))
    storage.write_bytes(uri, json.dumps(compiled.facts, indent=1))
    return storage.absolute(folder)


def read(folder: str) -> Compiled:
    """A saved plan, memory-mapped; from an object store it is copied once per machine. InputError without one."""
    facts = facts_of(folder)
    here = _local_copy(folder, facts["digest"] + facts["places"])
    return Compiled(facts, here, Rows(here))


def facts_of(folder: str) -> dict[str, Any]:
    """The content of a folder's plan.json. InputError when there is none or it is of another version."""
    facts = _read_facts(folder)
    if facts.get("version") != VERSION or facts.get("layout") != LAYOUT:
        raise InputError(f"{folder} was not written as a plan by this version: compile it again with `sama plan`")
    return facts


def _read_facts(folder: str) -> dict[str, Any]:
    uri = storage.join(folder, "plan.json")
    try:
        facts = json.loads(storage.read_bytes(uri))
    except (FileNotFoundError, OSError):
        raise InputError(f"{folder} holds no plan: run `sama plan MIXTURE --data ROOT --out {folder}`") from None
    except json.JSONDecodeError:
        raise InputError(f"{uri} is not a plan: not valid JSON") from None
    if not isinstance(facts, dict) or facts.get("schema") != "sama.plan/1":
        raise InputError(f"{uri} is not a plan: its schema is not sama.plan/1")
    return facts


def difference(old: dict[str, Any], new: dict[str, Any]) -> str | None:
    """The first thing that makes two plans' facts (plan.json) different, in words; None when they train the same."""
    if old.get("digest") == new.get("digest"):
        return None
    ours, theirs = flatten(old.get("mixture", {})), flatten(new.get("mixture", {}))
    for name in sorted(set(ours) | set(theirs)):
        if name != "name" and ours.get(name) != theirs.get(name):
            return f"mixture.{name} was {ours.get(name)!r} and is {theirs.get(name)!r}"
    for name in sorted(set(old.get("selections", {})) | set(new.get("selections", {}))):
        if old.get("selections", {}).get(name) != new.get("selections", {}).get(name):
            return f"selection {name} has other decisions"
    if old.get("blocklist") != new.get("blocklist"):
        return "the blocklist has changed"
    if old.get("captions", "") != new.get("captions", ""):
        return "clips have been given other captions"
    if old.get("near_duplicates", "") != new.get("near_duplicates", ""):
        return "other footage is known to resemble held-out footage"
    return "the samples in the data root have changed" if old.get("version") == new.get("version") else "plan version"


def _local_copy(folder: str, digest: str) -> str:
    """A folder on this machine with the plan's files."""
    path = storage.absolute(folder)
    if "://" not in path:
        return path
    here = os.path.join(tempfile.gettempdir(), f"sama-plan-{hashlib.sha256(digest.encode()).hexdigest()[:32]}")
    for name in FILES:
        local = os.path.join(here, name)
        if not os.path.exists(local):
            storage.copy(storage.join(folder, name), local)
    return here
