"""Where everything on the page came from: the provenance.json files beside tables, selections and runs."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from pipelines.report.markup import Markup, clipped, duration, number, tag
from pipelines.report.runs import read_json
from pipelines.samples import storage

TABLES = ("shards", "index", "rejects", "signals", "judgements", "captions")


def find(root: str, selection: str | None, runs: Sequence[str], edits: str | None) -> list[tuple[str, dict[str, Any]]]:
    """(where, content) of every provenance.json; only known places are looked at, shards are not listed."""
    places = [("data root", root)]
    for table in TABLES:
        folder = storage.join(root, table)
        places += [(table, folder), *((f"{table}/{n}", storage.join(folder, n)) for n in storage.list_folders(folder))]
    if selection:
        places.append((f"selection {selection}", storage.join(root, "selections", selection)))
    places += [(f"run {r.rstrip('/').rsplit('/', 1)[-1]}", r) for r in runs]
    places += [("edits", edits)] if edits else []
    found = []
    for where, folder in places:
        content = read_json(storage.join(folder, "provenance.json"))
        if content is not None:
            found.append((where, content))
    return found


def section(found: Sequence[tuple[str, dict[str, Any]]]) -> Markup:
    """One entry per file: command, when, how long, commit, versions, digests."""
    if not found:
        return tag("p", "There is no provenance.json beside these data.", class_="quiet")
    rows = []
    for where, content in found:
        rows.append(
            tag("tr", tag("td", where), tag("td", tag("code", clipped(_command(content.get("command")), 400)),
                                            _rest(content)),
                tag("td", clipped(str(content.get("start") or content.get("started") or "–"), 40), class_="quiet"),
                tag("td", duration(seconds(content)), class_="n"),
                tag("td", tag("code", str(content.get("commit") or "–")[:12])))
        )  # fmt: skip
    head = tag("tr", [tag("th", h) for h in ("what", "command", "started", "took", "commit")])
    return tag("div", tag("table", tag("thead", head), tag("tbody", rows)), class_="scroll")


def commands(root: str, runs: Sequence[str], key: str | None) -> Markup:
    """What to type next: one sample in full, a run's state, the MLflow pages."""
    lines = [f"sama show {shlex.quote(root)} {shlex.quote(key)}"] if key else []
    lines += [f"sama status {shlex.quote(r)}" for r in runs]
    stores = [(read_json(storage.join(r, "tracking.json")) or {}).get("uri") for r in runs]
    lines += [f"mlflow ui --backend-store-uri {shlex.quote(redact(str(s)))}" for s in dict.fromkeys(stores) if s]
    return Markup(tag("h3", "Look further") + tag("pre", "\n".join(lines))) if lines else Markup("")


def redact(words: str) -> str:
    """Without the user and password that an address may carry."""
    return re.sub(r"(\w://)[^/@\s\"']+@", r"\1…@", words)


def versions(found: Sequence[tuple[str, dict[str, Any]]]) -> Markup:
    """Versions of libraries, once, and where they differ between the steps."""
    seen: dict[str, list[str]] = {}
    for _, content in found:
        named = content.get("versions")
        for name, version in (named if isinstance(named, dict) else {}).items():
            seen.setdefault(str(name), [])
            if str(version) not in seen[str(name)]:
                seen[str(name)].append(str(version))
    pairs = [[tag("dt", n), tag("dd", ", then ".join(v))] for n, v in sorted(seen.items())]
    return (
        tag("details", tag("summary", "versions of libraries"), tag("dl", pairs, class_="facts"))
        if pairs
        else Markup("")
    )


def seconds(content: dict[str, Any]) -> float | None:
    """How long a step took: its end minus its start."""
    start, end = (_time(content.get(a) or content.get(b)) for a, b in (("start", "started"), ("end", "ended")))
    return end - start if start is not None and end is not None else None


def _time(value: Any) -> float | None:
    if isinstance(value, (int, float)):
        return float(value)
    try:
        return datetime.fromisoformat(str(value)).timestamp() if value else None
    except ValueError:
        return None


def _command(value: Any) -> str:
    return redact(" ".join(map(str, value)) if isinstance(value, list) else str(value or "–"))


def _rest(content: dict[str, Any]) -> Markup:
    counts = content.get("counts")
    told = ""
    if isinstance(counts, dict):
        flat = [f"{k.replace('_', ' ')} {number(v)}" for k, v in counts.items() if isinstance(v, (int, float))]
        told = tag("div", ", ".join(flat[:12]), class_="quiet") if flat else ""
    more = {k: content[k] for k in ("inputs", "input_digests", "settings") if content.get(k)}
    if not more:
        return Markup(told)
    body = tag("pre", redact(json.dumps(more, indent=1, ensure_ascii=False, default=str))[:6000])
    return Markup(told + tag("details", tag("summary", "settings and inputs"), body))
