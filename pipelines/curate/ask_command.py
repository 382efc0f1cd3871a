"""The judge's half of `sama curate`: reading its settings, trying to reach it, and telling what came of it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from typing import Any

from pipelines import config
from pipelines.curate.ask_plan import AskPlan
from pipelines.curate.rules import Rules
from pipelines.judge.backends import vllm
from pipelines.judge.exchange import make
from pipelines.judge.settings import JudgeFile
from pipelines.progress import say
from sama.errors import InputError


def plan_of(judge: str | None, overrides: Sequence[str], rules: str | None, caption: bool) -> AskPlan | None:
    """Whom to ask; None for nobody (no judge, or backend none). InputError for settings that mean nothing."""
    settings = _settings(judge, overrides)
    loaded = config.load(Rules, rules)
    if settings.backend == "none":
        if caption:
            raise InputError(
                "--caption needs a judge that can see: --judge FILE with judge.backend http, transformers or vllm"
            )
        return None
    return AskPlan(settings, loaded, caption)


def as_yaml(judge: str | None, overrides: Sequence[str]) -> str:
    """The resolved judge file."""
    return config.dump(JudgeFile(judge=_settings(judge, overrides))).rstrip()


def _settings(judge: str | None, overrides: Sequence[str]) -> Any:
    wrong = [o for o in overrides if not o.startswith("judge.")]
    if wrong:
        raise InputError(f"--set {wrong[0]}: the settings of curate are judge.<name>=<value>")
    return config.load(JudgeFile, judge, list(overrides)).judge


def reachable(plan: AskPlan | None) -> str | None:
    """The key from the environment, after a look at every endpoint. InputError before Ray starts, not hours later."""
    if plan is None:
        return None
    settings = plan.settings
    key = None
    if settings.api_key_env:
        key = os.environ.get(settings.api_key_env)
        if not key:
            raise InputError(f"the environment variable {settings.api_key_env} (judge.api_key_env) is not set")
    if settings.backend == "vllm":
        vllm.check()
    if settings.backend == "http":
        asyncio.run(_greet(plan, key))
    return key


async def _greet(plan: AskPlan, key: str | None) -> None:
    for judge in plan.judges:
        backend = make(judge, key)
        await backend.start()
        await backend.close()


def dry_run(root: str, plan: AskPlan | None, datasets: Sequence[str] | None, sample: int | None) -> None:
    """Print the costs."""
    from pipelines.curate import dry_run as dry

    if plan is None:
        raise InputError("--dry-run needs a judge: --judge FILE, or --set judge.backend=http and its endpoints")
    lines, unseen = dry.dry_run(root, plan, datasets, sample)
    if not lines:
        say("nothing is left to ask")
        return
    say(dry.table(lines, unseen, plan))


def told(plan: AskPlan, counts: dict[str, Any]) -> str:
    """One line on what a run has asked."""
    answers = ", ".join(f"{n} {status}" for status, n in sorted(counts["answers"].items())) or "none"
    unseen = f", {counts['unseen']} could not be shown" if counts["unseen"] else ""
    what = "captions" if plan.caption else "answers"
    return f"  {counts['asked']} asked about by {' then '.join(plan.ids)}{unseen}; {what}: {answers}"
