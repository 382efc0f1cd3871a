from __future__ import annotations

import numpy as np
import pytest

from pipelines.curate.agreement import changed_box, structure_kept, text_strokes
from pipelines.curate.look import see
from pipelines.curate.words import ERASES, language
from pipelines.demo import world


def scene(seed: int, frames: int = 9) -> np.ndarray:
    return see(world.render(world.random_scene(seed), frames, 240, 320)).cells


def textured(seed: int) -> np.ndarray:
    return np.repeat(np.random.default_rng(seed).uniform(0, 255, (1, 60, 80, 3)).astype(np.float32), 5, axis=0)


def test_the_box_is_where_the_change_is():
    source = scene(1)
    target = source.copy()
    target[:, 12:24, 40:60] += 90.0
    top, bottom, left, right = changed_box(source, target, 25.0) or []
    assert (top, bottom) == pytest.approx((0.2, 0.4), abs=0.03)
    assert (left, right) == pytest.approx((0.5, 0.75), abs=0.03)
    assert changed_box(source, source, 25.0) is None


def test_structure_survives_tone_and_a_local_edit_but_not_a_new_picture():
    source = textured(0)
    assert structure_kept(source, source) == pytest.approx(1.0)
    assert structure_kept(source, source * 0.6 + 20) == pytest.approx(1.0, abs=1e-3)
    local = source.copy()
    local[:, :40] = textured(1)[:, :40]  # two thirds of the picture
    assert structure_kept(source, local) == pytest.approx(1.0, abs=1e-3)
    assert (structure_kept(source, textured(1)) or 0) < 0.3
    moved = np.roll(source, 3, axis=2)
    assert (structure_kept(source, moved) or 0) < 0.3
    assert structure_kept(np.full_like(source, 90), source) is None


def test_captions_have_dense_strokes_and_scenes_do_not():
    from PIL import Image, ImageDraw, ImageFont

    for seed in range(4):
        frame = world.render(world.random_scene(seed), 1, 480, 832)[0]
        picture = Image.fromarray(frame)
        style = {"font": ImageFont.load_default(30), "fill": "white", "stroke_width": 2, "stroke_fill": "black"}
        ImageDraw.Draw(picture).text((120, 400), "What is locked in these frames", **style)
        plain, captioned = (text_strokes(np.asarray(p.convert("L"))) for p in (Image.fromarray(frame), picture))
        assert plain is not None
        assert captioned is not None
        assert plain < 0.12
        assert captioned > 0.25
    assert text_strokes(np.zeros((600, 20), np.uint8)) is not None  # scaled up first


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("Make the sky red and add a bird.", "en"), ("把天空变成红色", "zh"), ("空を赤くしてください", "ja"),
        ("하늘을 빨갛게", "ko"), ("Сделай небо красным", "ru"), ("Haz que el cielo sea rojo con las nubes", "es"),
        ("starry night", "und"), ("123 !", "und"), ("  ", None), (None, None),
    ],
)  # fmt: skip
def test_languages(text: str | None, code: str | None):
    assert language(text) == code


def test_erasing_is_told_from_without():
    import re

    assert re.search(ERASES, "Remove the subtitles at the top")
    assert re.search(ERASES, "请去除字幕")
    assert not re.search(ERASES, "Replace the subtitle with X in white text without border style")
