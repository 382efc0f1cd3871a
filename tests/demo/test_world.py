"""The procedural world: deterministic, and edits change what they name and nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.demo.world import EDITS, describe, edit_scene, random_scene, render


def test_a_seed_is_a_scene() -> None:
    assert random_scene(5) == random_scene(5)
    assert random_scene(5) != random_scene(6)
    frames = render(random_scene(5), 7, 48, 80)
    assert frames.shape == (7, 48, 80, 3)
    assert frames.dtype == np.uint8
    assert np.array_equal(frames, render(random_scene(5), 7, 48, 80))


def test_longer_clips_begin_like_shorter_ones() -> None:
    scene = random_scene(9)
    assert np.array_equal(render(scene, 9, 48, 48)[:5], render(scene, 5, 48, 48))


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("seed", range(6))
def test_edits_are_exact(edit: str, seed: int) -> None:
    scene = random_scene(seed)
    edited, instruction = edit_scene(scene, edit, seed)
    before, after = (render(s, 9, 64, 64).astype(int) for s in (scene, edited))
    changed = (np.abs(before - after).max(-1) > 8).mean()
    assert changed > 0.001, "an edit that nobody sees"
    assert instruction.endswith(".")
    if edit in ("recolour", "replace", "remove", "add"):
        assert changed < 0.5, "a local edit leaves most of the picture alone"
        assert edited.background == scene.background
    if edit in ("background", "style"):
        assert edited.things == scene.things


def test_things_move_and_captions_name_them() -> None:
    scene = random_scene(3)
    frames = render(scene, 17, 64, 64).astype(int)
    assert np.abs(frames[0] - frames[-1]).mean() > 1
    for thing in scene.things:
        assert f"{thing.colour} {thing.shape}" in describe(scene).lower()


def test_an_unknown_edit_is_refused() -> None:
    with pytest.raises(ValueError, match="is not an edit"):
        edit_scene(random_scene(1), "explode", 1)
