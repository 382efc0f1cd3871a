from __future__ import annotations

from pathlib import Path

import pytest

from pipelines import config
from pipelines.curate.rules import Rules
from sama.errors import InputError


def test_a_file_changes_only_what_it_names(tmp_path: Path):
    file = tmp_path / "rules.yaml"
    file.write_text("schema: sama.rules/1\nimage_edit: {max_blur: 0.5}\ndatasets:\n  reco-data: {min_frames: 33}\n")
    rules = config.load(Rules, file, ["text_to_video.max_shot_cuts=2"])
    assert rules.image_edit.max_blur == 0.5
    assert rules.image_edit.min_frames is None
    assert rules.image_edit.equal_frames is False
    assert rules.text_to_video.max_shot_cuts == 2
    assert rules.text_to_video.require_instruction is False
    assert rules.of("video_edit", "reco-data").min_frames == 33
    assert rules.of("video_edit", "other") == Rules().video_edit
    again = tmp_path / "again.yaml"
    again.write_text(rules.as_yaml())
    assert config.load(Rules, again) == rules


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("video_edit.max_blr=1", "video_edit.max_blr is not a setting; did you mean video_edit.max_blur"),
        ("datasets.x.max_blr=1", "datasets.x.max_blr is not a setting; did you mean max_blur"),
        ("datasets.x.max_blur=7", "datasets.x.max_blur"),
        ("video_edit.thresholds.sharpness.min=1", "sharpness is not a numeric column of verdicts"),
        ("video_edit.motion_exempt=[removal]", "removal is not a category"),
        ("judge.model=a", "judge.judge_id is missing"),
    ],
)
def test_mistakes_are_answered_in_one_sentence(setting: str, says: str):
    with pytest.raises(InputError, match=says.replace(".", r"\.")):
        config.load(Rules, None, ["judge.judge_id=abc", setting] if "judge" not in setting else [setting])


def test_the_judge_defaults_to_the_paper():
    judge = config.load(Rules, None, ["judge.judge_id=abc"]).judge
    assert judge is not None
    assert judge.video == {
        "instruction_following": 8, "visual_quality": 9, "content_preservation": 8, "motion_consistency": 8,
    }  # fmt: skip
    assert set(judge.image.values()) == {9}
