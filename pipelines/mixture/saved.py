"""A compiled plan on disk: facts as JSON, tables as Arrow files that open without being read."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from typing import Any

import pyarrow as pa

from pipelines.config import flatten
from pipelines.mixture.build import VERSION, Compiled
from pipelines.samples import storage
from sama.errors import InputError

TABLES = ("rows", "text", "heldout")


def write(compiled: Compiled, folder: str) -> str:
    """Write a plan for workers to open, `plan.json` last; the folder. InputError where another plan lies."""
    uri = storage.join(folder, "plan.json")
    if storage.exists(uri):
        old = facts_of(folder)
        differs = difference(old, compiled.facts)
        if differs is not None:
            raise InputError(f"{folder} holds another plan ({differs}): choose another folder")
        if old.get("places") == compiled.facts["places"]:
            return storage.absolute(folder)
    for name in TABLES:
        table, sink = getattr(compiled, name), pa.BufferOutputStream()
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
        storage.write_bytes(storage.join(folder, f"{name}.arrow"), sink.getvalue().to_pybytes())
    storage.write_bytes(uri, json.dumps(compiled.facts, indent=1))
    return storage.absolute(folder)


def read(folder: str) -> Compiled:
    """A saved plan, memory-mapped; from an object store it is copied once per machine. InputError without one."""
    facts = facts_of(folder)
    here = _local_copy(folder, facts["digest"] + facts["places"])
    opened = {n: pa.ipc.open_file(pa.memory_map(os.path.join(here, f"{n}.arrow"))).read_all() for n in TABLES}
    return Compiled(facts, **opened)


def facts_of(folder: str) -> dict[str, Any]:
    """The content of a folder's plan.json. InputError when there is none or it is of another version."""
    uri = storage.join(folder, "plan.json")
    try:
        facts = json.loads(storage.read_bytes(uri))
    except (FileNotFoundError, OSError):
        raise InputError(f"{folder} holds no plan: run `sama plan MIXTURE --data ROOT --out {folder}`") from None
    except json.JSONDecodeError:
        raise InputError(f"{uri} is not a plan: not valid JSON") from None
    if facts.get("schema") != "sama.plan/1" or facts.get("version") != VERSION:
        raise InputError(f"{uri} was not written as a plan by this version: compile it again with `sama plan`")
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
    return "the samples in the data root have changed" if old.get("version") == new.get("version") else "plan version"


def _local_copy(folder: str, digest: str) -> str:
    """A folder on this machine with the plan's tables."""
    path = storage.absolute(folder)
    if "://" not in path:
        return path
    here = os.path.join(tempfile.gettempdir(), f"sama-plan-{hashlib.sha256(digest.encode()).hexdigest()[:32]}")
    for name in TABLES:
        local = os.path.join(here, f"{name}.arrow")
        if not os.path.exists(local):
            storage.write_bytes(local, storage.read_bytes(storage.join(folder, f"{name}.arrow")))
    return here
