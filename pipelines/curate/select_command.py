"""What the verb `select` and the options --join and --compare of `curate` do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipelines.curate import joined
from pipelines.curate import select as selecting
from pipelines.curate.diff import diff, page, told
from pipelines.curate.listed import select_list
from pipelines.curate.rules import Rules
from pipelines.curate.summary import funnel
from pipelines.progress import say
from pipelines.samples import storage
from sama.errors import InputError


def freeze(root: str, name: str, rules: Rules, from_list: str | None, on: str | None) -> dict[str, Any]:
    """Write the selection and print its funnel; its summary."""
    summary = selecting.select(root, name, rules) if from_list is None else select_list(root, name, from_list, on)
    say(funnel(summary))
    if from_list is not None:
        found = summary["list"]
        say(f"{from_list}: {found['rows']} rows, {found['matched']} name a sample, {found['unmatched']} do not")
        if found["examples"]:
            say(f"not found, for example: {', '.join(found['examples'][:3])}")
    say(f"selection {name}: {summary['decisions']['kept']} of {summary['rows']} samples kept")
    return summary


def differences(root: str, old: str, new: str, out: Path | None, media: bool) -> None:
    """Print what `new` gains and loses, and write the page when there is a place for it."""
    found = diff(root, old, new)
    say(told(found))
    if out is not None:
        storage.write_bytes(out, page(root, found, media))
        say(f"written: {out}")


def foreign(root: str, uri: str | None, on: str, name: str | None, compare: tuple[str, str] | None) -> None:
    """Join a file of scores, compare two judges, or both."""
    if uri is not None:
        if name is None:
            raise InputError("--join needs a name for the scores: add --as")
        counts = joined.join(root, uri, on, name)
        say(f"{uri}: {counts['rows']} rows, {counts['matched']} name a sample, {counts['unmatched']} do not")
        say(f"rules use them as, for example: --set video_edit.joined.{name}_<column>.min=8")
    if compare is not None:
        say(joined.told(joined.compare(root, *compare), *compare))
