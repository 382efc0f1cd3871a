"""Every prompt that a plan can ask for is collected, once, and found again by its place."""

from __future__ import annotations

import numpy as np

from pipelines.encode import prompts, text_job
from pipelines.encode.store import as_keys
from pipelines.loading.rows import prompt_of
from pipelines.mixture import BatchPlan
from sama.encoders import Encoders, clean_text

DIGEST = "d"


def test_all_that_training_asks_for_is_there(small_plan: BatchPlan) -> None:
    wanted = prompts.collect(small_plan, DIGEST)
    asked = {
        prompt_of(small_plan.mixture, small_plan.sample(slot.sample), slot)
        for batch in small_plan
        for slot in batch.slots
    }
    asked |= {prompt_of(small_plan.mixture, item.sample, item.slot) for item in small_plan.heldout}
    assert small_plan.mixture.negative_prompt in asked
    assert np.isin(prompts.text_keys(asked, DIGEST), wanted.keys).all()
    found = prompts.at(small_plan, wanted.rows, wanted.tasks)
    assert len(set(found)) == len(found) == len(wanted)
    assert np.array_equal(prompts.text_keys(found, DIGEST), wanted.keys)
    clips = sum(g.size for g in small_plan.groups if g.dataset == "clips")
    edits = sum(g.size for g in small_plan.groups if g.dataset == "pictures")
    assert wanted.asked == 1 + 2 * clips + edits + len(small_plan.heldout)  # two tasks: none and speed
    assert sum("normal playback speed" in p for p in found) >= clips


def test_a_key_follows_the_cleaned_text_and_the_encoder(small_plan: BatchPlan) -> None:
    assert prompts.text_key(" Make  it blue. ", DIGEST) == prompts.text_key("Make it blue.", DIGEST)
    assert prompts.text_key("Make it blue.", "e") != prompts.text_key("Make it blue.", DIGEST)
    assert clean_text("a\tb &amp; c") == "a b & c"
    rows = np.asarray([0, 1])
    every = set(prompts.of_rows(small_plan, rows))
    places = prompts.collect(small_plan, DIGEST)
    mine = np.isin(places.rows, rows) | (places.rows < 0)
    assert every == set(prompts.at(small_plan, places.rows[mine], places.tasks[mine]))


def test_bytes_are_exact_where_all_are_counted(small_plan: BatchPlan, tiny: Encoders, monkeypatch) -> None:
    wanted = prompts.collect(small_plan, DIGEST)
    missing = np.ones(len(wanted), bool)
    missing[::3] = False
    places = np.flatnonzero(missing)
    texts = prompts.at(small_plan, wanted.rows[places], wanted.tasks[places])
    exact = sum(len(v) for v in text_job.encode_all(tiny, texts))
    size = text_job.measure(small_plan, wanted, missing, tiny)
    assert (size.prompts, size.counted, size.nbytes) == (len(texts), len(texts), exact)
    monkeypatch.setattr(text_job, "COUNTED", 10)
    some = text_job.measure(small_plan, wanted, missing, tiny)
    assert some.counted == 10
    assert 0.7 * exact < some.nbytes < 1.4 * exact


def test_chunks_hold_each_missing_place_once_and_keep_their_cuts(small_plan: BatchPlan, monkeypatch) -> None:
    monkeypatch.setattr(text_job, "PART_PROMPTS", 16)
    wanted = prompts.collect(small_plan, DIGEST)
    every = np.ones(len(wanted), bool)
    whole = text_job.chunks(wanted, every, 64, 20.0)
    later = every.copy()
    later[:20] = False  # the first part and a piece of the second are done
    rest = text_job.chunks(wanted, later, 64, 21.0)
    assert sum(len(c["row"][0]) for c in rest) == later.sum()
    assert [c.to_pydict() for c in rest[1:]] == [c.to_pydict() for c in whole[2:]]
    assert len(as_keys([])) == 0
