"""A judge that is a step of the pipeline itself: vLLM under Ray Data, one prompt of each sample a pass."""

from __future__ import annotations

import asyncio
import hashlib
import json
from typing import Any

import pyarrow as pa

from pipelines.curate import asking
from pipelines.curate.ask_plan import AskPlan
from pipelines.judge import interview, protocol
from pipelines.judge.backends import vllm
from pipelines.judge.backends.none import Nobody
from pipelines.judge.interview import Judge, Sample
from pipelines.judge.prompts import caption_prompt, prompts


def ask(ds: Any, root: str, run: str, plan: AskPlan) -> Any:
    """SCENES -> one row a question -> the engine's answers -> parts on disk and rows of asking.COUNTS."""
    ds = ds.map_batches(questions, fn_kwargs={"root": root, "run": run, "plan": plan}, batch_size=None,
                        batch_format="pyarrow")  # fmt: skip
    ds = vllm.processor(plan.settings)(ds)
    return ds.map_batches(record, fn_kwargs={"root": root, "run": run, "plan": plan}, batch_size=64,
                          batch_format="pyarrow")  # fmt: skip


def questions(block: pa.Table, root: str, run: str, plan: AskPlan) -> pa.Table:
    """Engine rows for the next prompt about each scene, one a turn; skips are recorded here, they need no engine.

    in:  SCENES. out: scene (JSON), turn, seed, messages, sampling_params; no rows when nothing is left to ask
    """
    rows: list[dict[str, Any]] = []
    counts, *scenes = block.to_pylist()
    skipped: list[dict[str, Any]] = []
    for scene in scenes:
        sample, settings = asking.sample_of(scene), plan.judges[0]
        prompt = caption_prompt()
        turns: tuple[int, ...] = (0,)
        if not plan.caption:
            known, least = protocol.answers_from_json(scene["answered"]), plan.thresholds(sample.kind)
            step = protocol.next_step(sample.kind, plan.ids, plan.judges, least, known)
            if step.prompt is None:  # nothing is asked of Nobody: only skips come back
                skipped += asyncio.run(interview.interview(sample, [_judge(plan)], least, known))
                continue
            prompt, turns = step.prompt, step.turns
        request = interview.request_for(sample, settings, prompt, turns)
        facts = {"key": sample.key, "kind": sample.kind, "size": sample.size, "pictures": len(sample.target)}
        facts |= {n: scene[n].hex() for n in ("sample_digest", "target_sha256")}
        facts |= {"dataset": scene["dataset"], "prompt_id": prompt.id}
        pairs = zip(request.turns, request.seeds, strict=True)
        rows += [{"scene": json.dumps(facts)} | vllm.engine_row(settings, request, t, s) for t, s in pairs]
    asking.write(root, counts["dataset"], skipped, _name(skipped, run), plan.caption)
    return pa.Table.from_pylist(rows)


def record(block: pa.Table, root: str, run: str, plan: AskPlan) -> pa.Table:
    """Parts of judgements or captions from the engine's answers. out: COUNTS, one row a dataset"""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in block.to_pylist():
        facts, answer = json.loads(row["scene"]), vllm.answer_of(row)
        sample = Sample(
            bytes.fromhex(facts["sample_digest"]), facts["key"], facts["kind"], None, (),
            (b"",) * facts["pictures"], tuple(facts["size"]),
        )  # fmt: skip
        if plan.caption:
            made = interview.caption_row(sample, _judge(plan), answer)
            made |= {"target_sha256": bytes.fromhex(facts["target_sha256"])}
        else:
            made, _ = interview.answer_row(sample, _judge(plan), prompts()[facts["prompt_id"]], answer)
        found.setdefault(facts["dataset"], []).append(made)
    parts = []
    for dataset, rows in found.items():
        asking.write(root, dataset, rows, _name(rows, run), plan.caption)
        asked = len({r["key"] for r in rows})
        parts.append(asking.counted({"dataset": dataset, "ok": 0, "failed": 0, "unseen": 0}, asked, rows))
    return pa.concat_tables(parts) if parts else asking.COUNTS.empty_table()


def _name(rows: list[dict[str, Any]], run: str) -> str:
    """Of a part: a batch that Ray repeats replaces its part."""
    place = json.dumps([[r["key"], r["prompt_id"], r["turn"]] for r in rows]).encode()
    return f"{hashlib.sha256(place).hexdigest()[:16]}-{run}"


def _judge(plan: AskPlan) -> Judge:
    return Judge(plan.judges[0], plan.ids[0], Nobody())
