"""The judge's stage of a curation: scenes in, rows of judgements or captions on disk, counts out."""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
from collections import Counter
from typing import Any

import pyarrow as pa

from pipelines.curate.ask_plan import AskPlan
from pipelines.judge import interview, protocol
from pipelines.judge.exchange import make
from pipelines.judge.interview import Judge, Sample
from pipelines.samples import storage, tables

SCENES = pa.schema(
    [
        ("dataset", pa.string()), ("ok", pa.int64()), ("failed", pa.int64()), ("unseen", pa.int64()),
        ("sample_digest", tables.DIGEST), ("target_sha256", tables.DIGEST), ("key", pa.string()),
        ("kind", pa.string()), ("instruction", pa.string()), ("answered", pa.string()),
        ("height", pa.int32()), ("width", pa.int32()),
        ("source", pa.list_(pa.large_binary())), ("target", pa.list_(pa.large_binary())),
    ]
)  # fmt: skip
COUNTS = pa.schema(
    [(n, pa.string()) for n in ("dataset", "states")]
    + [(n, pa.int64()) for n in ("ok", "failed", "unseen", "asked")]
)  # fmt: skip
MAX_CALLS = 64  # blocks in one actor at once: each is a thread that waits


class Secret:
    """A key on its way to the workers: it shows itself to nobody who prints or logs it."""

    def __init__(self, value: str | None) -> None:
        self.value = value

    def __repr__(self) -> str:
        return "Secret(***)" if self.value else "Secret()"


class Asker:
    """A Ray Data actor: asks about all samples of many blocks at once, and appends a part for each block.

    in:  SCENES, a row of counts first. out: one row of COUNTS
    """

    def __init__(self, root: str, run: str, plan: AskPlan, key: Secret) -> None:
        self.root, self.run, self.plan = root, run, plan
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True, name="judge").start()
        share = plan.settings.actors
        self.judges = [
            Judge(s, name, make(s.model_copy(update=_share_of(s, share)), key.value))
            for s, name in zip(plan.judges, plan.ids, strict=True)
        ]
        for judge in self.judges:
            self._wait(judge.backend.start())

    def __call__(self, block: pa.Table) -> pa.Table:
        return self._wait(self._block(block))

    def _wait(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result()

    async def _block(self, block: pa.Table) -> pa.Table:
        counts, *scenes = block.to_pylist()
        found = await asyncio.gather(*(self._one(scene) for scene in scenes))
        rows = [row for rows in found for row in rows]
        # named after the samples: a block that Ray repeats, after an actor was lost, replaces its part
        digest = hashlib.sha256(b"".join(s["sample_digest"] for s in scenes)).hexdigest()[:16]
        write(self.root, counts["dataset"], rows, f"{digest}-{self.run}", self.plan.caption)
        return counted(counts, len(scenes), rows)

    async def _one(self, scene: dict[str, Any]) -> list[dict[str, Any]]:
        sample = sample_of(scene)
        if self.plan.caption:
            row = await interview.describe(sample, self.judges[0])
            return [row | {"target_sha256": scene["target_sha256"]}]
        known = protocol.answers_from_json(scene["answered"])
        return await interview.interview(sample, self.judges, self.plan.thresholds(sample.kind), known)


def ask(ds: Any, root: str, run: str, plan: AskPlan, key: str | None, rows: int) -> Any:
    """Append the judge's stage to a dataset of SCENES blocks of at most `rows` samples."""
    if plan.settings.backend == "vllm":
        from pipelines.curate import engine

        return engine.ask(ds, root, run, plan)
    import ray.data

    s = plan.settings
    # so many blocks at once that the judge always has requests waiting, though three of four samples were rejected
    # and the prompts of a sample come one after another
    places = s.in_flight * max(1, *(len(j.endpoints) for j in plan.judges)) / s.actors
    calls = min(MAX_CALLS, 2 + round(8 * places / rows))
    return ds.map_batches(
        Asker,
        fn_constructor_args=(root, run, plan, Secret(key)),
        batch_format="pyarrow",
        batch_size=None,  # a block is a part
        num_cpus=s.cpus_per_actor,
        num_gpus=s.gpus_per_actor,
        compute=ray.data.ActorPoolStrategy(
            size=s.actors,
            max_concurrent_calls_per_actor=calls,
            max_tasks_in_flight_per_actor=calls + 2,
            enable_true_multi_threading=True,  # the calls only wait; the asking itself is on one event loop
        ),
        **({"resources": dict(s.resources)} if s.resources else {}),
    )


def passes(plan: AskPlan | None) -> list[AskPlan | None]:
    """A curation's ways over its rows. One will do where a judge can be asked again; an engine that is a step of the
    pipeline answers one prompt a pass, after one for the signals, and the last records what was skipped."""
    if plan is None or plan.settings.backend != "vllm":
        return [plan]
    return [None, *[plan] * (len(protocol.prompts_for("video_edit")) + 1)]


def write(root: str, dataset: str, rows: list[dict[str, Any]], name: str, caption: bool) -> None:
    """Append a part of judgements or captions; nothing for no rows."""
    if rows:
        table, schema = ("captions", tables.CAPTIONS) if caption else ("judgements", tables.JUDGEMENTS)
        storage.write_part(storage.join(root, table, dataset), pa.Table.from_pylist(rows, schema=schema), name)


def counted(counts: dict[str, Any], asked: int, rows: list[dict[str, Any]]) -> pa.Table:
    """The row of COUNTS for a block."""
    states = json.dumps(Counter(row["status"] for row in rows))
    row = {n: counts[n] for n in ("dataset", "ok", "failed", "unseen")} | {"asked": asked, "states": states}
    return pa.Table.from_pylist([row], schema=COUNTS)


def states_of(row: dict[str, Any]) -> dict[str, int]:
    return json.loads(row.get("states") or "{}")


def sample_of(scene: dict[str, Any]) -> Sample:
    return Sample(
        scene["sample_digest"], scene["key"], scene["kind"], scene["instruction"],
        tuple(scene["source"]), tuple(scene["target"]), (scene["height"], scene["width"]),
    )  # fmt: skip


def _share_of(settings: Any, actors: int) -> dict[str, Any]:
    """in_flight and rate hold for all actors together."""
    rate = settings.rate / actors if settings.rate else None
    return {"in_flight": max(1, settings.in_flight // actors), "rate": rate}
