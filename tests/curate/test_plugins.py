from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipelines import config
from pipelines.curate import plugins
from pipelines.curate.rules import Rules
from pipelines.curate.select import read_selection, select
from pipelines.curate.verdicts import signals_of
from pipelines.demo import world
from pipelines.samples.index import read_index
from sama.errors import InputError
from tests.curate.samples import add_signals, signals_entry, write_media_root

HERE = "tests.curate.test_plugins"


def brightness(frames: np.ndarray) -> float:
    assert frames.dtype == np.uint8
    assert frames.shape[0] == plugins.FRAMES
    if frames.mean() > 250:
        raise ValueError("too bright to look at")
    return float(frames.mean() / 255)


def no_faces(frames: np.ndarray) -> tuple[int, float]:
    return 0, 0.0


@pytest.fixture
def root(tmp_path: Path) -> str:
    clip = world.render(world.random_scene(1), 17, 96, 128)
    dark, white, moved = clip // 8, np.full_like(clip, 255), np.roll(clip, 3, axis=2)
    where = write_media_root(tmp_path / "root", {"dark": (clip, dark), "plain": (clip, moved), "white": (clip, white)})
    add_signals(where, [signals_entry(r) for r in read_index(where).to_pylist()])
    return where


def test_a_plug_in_fills_its_column_and_rules_use_it(root: str, ray_session: None):
    asked = plugins.parse([f"nsfw={HERE}:brightness", f"faces={HERE}.no_faces"])
    select(root, "free")
    assert {r["decision"] for r in read_selection(root, "free").to_pylist()} == {"kept"}
    strict = config.load(Rules, None, ["safety.require=[nsfw_score]", "safety.limits.nsfw_score=0.2"])
    select(root, "early", strict)
    early = read_selection(root, "early").to_pylist()
    assert {(r["decision"], *r["reasons"]) for r in early} == {("rejected", "no_nsfw_score")}  # null is no permission
    assert plugins.curate(root, asked) == {"asked": 3, "scored": 2, "failed": 1}
    rows = {r["sample_digest"]: r for r in signals_of(root).to_pylist()}
    assert len(rows) == 3
    seen = {r["key"]: rows[r["sample_digest"]] for r in read_index(root).to_pylist()}
    assert seen["toys-dark"]["nsfw_score"] < 0.2 < seen["toys-plain"]["nsfw_score"]
    assert seen["toys-dark"]["face_count"] == 0
    assert seen["toys-white"]["nsfw_score"] is None
    assert seen["toys-plain"]["blur_target"] == pytest.approx(0.3)  # what was known stays
    summary = select(root, "late", strict)
    late = {r["key"]: (r["decision"], *r["reasons"]) for r in read_selection(root, "late").to_pylist()}
    assert late == {
        "toys-dark": ("kept",),
        "toys-plain": ("rejected", "nsfw_score_high"),
        "toys-white": ("rejected", "no_nsfw_score"),
    }
    assert sum(summary["decisions"].values()) == 3
    assert plugins.curate(root, asked) == {"asked": 1, "scored": 0, "failed": 1}  # only what is missing


def test_text_is_read_on_both_sides_of_text_edits_only(root: str):
    row = read_index(root).to_pylist()[0] | {"category": "text"}
    words = iter(["What's locked in", "WHATS LOCKED, IN"])
    found = plugins.apply(row, {"text": lambda frames: next(words)})
    assert found == {"text_source": "What's locked in", "text_target": "WHATS LOCKED, IN", "text_similarity": 1.0}
    assert plugins.apply(row | {"category": "add"}, {"text": brightness}) == {}
    assert plugins.similarity("", "") == 0.0  # nothing was read: no reason to reject
    assert plugins.similarity("rewrite her story", "a life unspooling") < 0.6


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ("smell=a:b", "smell is not a plug-in; there are nsfw"),
        ("nsfw=nowhere.at_all:f", "cannot be loaded"),
        (f"nsfw={HERE}:HERE", "is not a function"),
        ("nsfw=", "is not a function"),
    ],
)
def test_mistakes(asked: str, says: str):
    with pytest.raises(InputError, match=says):
        plugins.parse([asked])


def test_a_safety_rule_names_a_known_score():
    with pytest.raises(InputError, match="nsfw is not a safety score"):
        config.load(Rules, None, ["safety.require=[nsfw]"])
