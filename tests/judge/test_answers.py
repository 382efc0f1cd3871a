from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.judge.answers import read_caption, read_scores

TWO = ("instruction_following", "visual_quality")
ONE = ("motion_consistency",)


def nested(score: object, name: str = ONE[0]) -> str:
    return json.dumps({f"{name}_score": {"explanation": "so }, it {is}", "score": score}})


@pytest.mark.parametrize(
    ("text", "score"),
    [
        (nested(8), 8),
        (nested("8"), 8),
        (nested("8/10"), 8),
        (nested("8 out of 10."), 8),
        (nested("Eight"), 8),
        (nested("**8**"), 8),
        (nested(8.0), 8),
        (nested("ten"), 10),
        ('{"motion_consistency_score": 8, "explanation": "fine"}', 8),
        ('{"motion_consistency_score": 8, "motion_consistency_explanation": "fine",}', 8),
        ("Sure! ```json\n" + nested(8)[:-2] + ",},}\n``` as asked {}", 8),
        ("{'motion_consistency_score': {'explanation': 'it\\'s ok', 'score': 8}}", 8),
        ('{"motion_consistency_score": {"explanation": "two\nlines", "score": 8}}', 8),
        ("{“motion_consistency_score”: 8}", 8),
        ("<think>{" + nested(2) + "}</think>" + nested(8), 8),
        (nested(8) + "\n" + nested(8), 8),
        ('{"a": {}} ' + nested(8), 8),
    ],
)
def test_what_can_be_read_is_read(text: str, score: int):
    found = read_scores(text, ONE)
    assert (found.status, found.scores) == ("ok", {"motion_consistency": score})


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no JSON"),
        ("I would give this an 8.", "no JSON"),
        (nested(11), "outside"),
        (nested(0), "outside"),
        (nested("95"), "outside"),
        (nested(-3), "outside"),
        (nested(8.5), "whole"),
        (nested("7-8"), "not a number"),
        (nested("8/5"), "not a number"),
        (nested("thirteen"), "not a number"),
        (nested(True), "not a number"),
        (nested(None), "not a number"),
        (nested("..."), "not a number"),
        (nested([8]), "not a number"),
        (nested(8)[:-1], "no JSON"),
        (nested(8) + nested(9), "disagree"),
        ('{"motion_consistency_score": 8, "motion_consistency_score": 9}', "twice"),
        ('{"motion_consistency_score": {"explanation": "good"}}', "no score"),
        ('{"motion_consistency_score": NaN}', "not a number"),
        ('{"motion_consistency_score": Infinity}', "outside"),
        (nested(8, "visual_quality"), "no JSON"),
    ],
)
def test_what_cannot_be_read_stays_so(text: str, why: str):
    found = read_scores(text, ONE)
    assert (found.status, found.scores) == ("unparseable", {})
    assert found.error is not None
    assert why in found.error


def test_half_an_answer_is_none():
    found = read_scores('{"visual_quality_score": 9}', TWO)
    assert found.status == "unparseable"
    assert "instruction_following_score is missing" in (found.error or "")
    both = {f"{n}_score": {"explanation": n, "score": i + 8} for i, n in enumerate(TWO)}
    found = read_scores(json.dumps(both), TWO)
    assert found.scores == {"instruction_following": 8, "visual_quality": 9}
    assert found.explanations == {n: n for n in TWO}


@given(st.text(alphabet='{}[]",:\\abc 0123456789score_motion\n', max_size=200))
def test_no_text_brings_it_down(text: str):
    assert read_scores(text, ONE).status in ("ok", "unparseable")
    assert read_scores(text + nested(8), ("x",)).status == "unparseable"
    assert read_caption(text)[0] in ("ok", "unparseable")


def test_captions():
    assert read_caption('Here: {"caption": " A dog\\n runs. "}') == ("ok", "A dog runs.", None)
    for text in ("A dog runs.", '{"caption": ""}', '{"caption": 3}', '{"caption": "a"} {"caption": "b"}'):
        assert read_caption(text)[:2] == ("unparseable", None)
