"""The steps around an engine inside the pipeline; the engine itself needs GPUs."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pyarrow as pa
import pytest

from pipelines.curate import asking, engine
from pipelines.curate.ask_plan import AskPlan
from pipelines.judge.backends import vllm
from pipelines.judge.protocol import Known, answers_to_json
from pipelines.samples import storage, tables
from sama.errors import InputError
from tests.curate.test_judge import plan_for
from tests.judge.test_http import jpeg


def scenes(answered: str | None = None) -> pa.Table:
    counts = {"dataset": "toys", "ok": 0, "failed": 0, "unseen": 0}
    scene = {
        "dataset": "toys", "sample_digest": b"d" * 32, "target_sha256": b"t" * 32, "key": "k", "kind": "video_edit",
        "instruction": "Make it blue.", "answered": answered, "height": 56, "width": 84,
        "source": [jpeg(1)] * 2, "target": [jpeg(9)] * 2,
    }  # fmt: skip
    return pa.Table.from_pylist([counts, scene], schema=asking.SCENES)


def engine_plan(**values: object) -> AskPlan:
    return plan_for(backend="vllm", **values)


def answered(rows: pa.Table, text: str) -> pa.Table:
    """What the processor would put into the rows."""
    made = {"generated_text": text, "num_input_tokens": 7, "num_generated_tokens": 3, "__inference_error__": ""}
    return pa.Table.from_pylist([{**r, **made} for r in rows.to_pylist()])


def test_one_prompt_a_pass(tmp_path: Path):
    root, plan = str(tmp_path), engine_plan()
    rows = engine.questions(scenes(), root, "run", plan)
    assert rows["turn"].to_pylist() == [0, 1]
    first = rows.to_pylist()[0]
    assert [p["type"] for p in first["messages"][1]["content"]] == ["image_url"] * 4 + ["text"]
    assert first["sampling_params"]["structured_outputs"]["json"]["required"]
    text = json.dumps({f"{s}_score": {"explanation": "e", "score": 3} for s in tables.SCORES})
    counts = engine.record(answered(rows, text), root, "run", plan).to_pylist()
    assert (counts[0]["asked"], asking.states_of(counts[0])) == (1, {"ok": 2})
    known = {(plan.ids[0], "quality", t): Known("ok", {"visual_quality": 3}) for t in range(2)}
    # the next pass finds that a score fails: nothing is asked, the rest is recorded as skipped
    assert engine.questions(scenes(answers_to_json(known)), root, "run2", plan).num_rows == 0
    table = storage.read_parts(storage.join(root, "judgements"), tables.JUDGEMENTS).to_pylist()
    assert sorted((r["prompt_id"], r["status"]) for r in table) == sorted(
        [("quality", "ok")] * 2 + [("preservation", "skipped")] * 2 + [("motion", "skipped")] * 2
    )
    assert {r["visual_quality"] for r in table} == {3, None}
    assert len(asking.passes(plan)) == 5
    assert asking.passes(plan)[0] is None
    broken = rows.to_pylist()[0] | {"__inference_error__": "too\nlong"}
    answer = vllm.answer_of(broken)
    assert (answer.status, answer.error) == ("http_error", "too long")


def test_captions_come_from_it_too(tmp_path: Path):
    plan = engine_plan(caption=True)
    rows = engine.questions(scenes(), str(tmp_path), "run", plan)
    engine.record(answered(rows, '{"caption": "A dog."}'), str(tmp_path), "run", plan)
    [row] = storage.read_parts(storage.join(str(tmp_path), "captions"), tables.CAPTIONS).to_pylist()
    assert (row["caption"], row["target_sha256"], row["endpoint_host"]) == ("A dog.", b"t" * 32, "vllm")


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="says what is missing where it is missing")
def test_without_the_extra():
    with pytest.raises(InputError, match="extra"):
        vllm.processor(engine_plan().settings)
