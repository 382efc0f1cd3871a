"""Selection rules: thresholds on facts of the index, on signals, and on a judge's mean scores.

Every threshold may be null (not applied). A score that is null never passes a threshold that is set.
"""

from __future__ import annotations

import difflib
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from pipelines.config import Strict
from pipelines.samples import tables

SCORES = ("instruction_following", "visual_quality", "content_preservation", "motion_consistency")
PAPER_VIDEO: dict[str, float] = {
    "instruction_following": 8,
    "visual_quality": 9,
    "content_preservation": 8,
    "motion_consistency": 8,
}
PAPER_IMAGE: dict[str, float] = {"instruction_following": 9, "visual_quality": 9, "content_preservation": 9}


SAFETY_SCORES = ("nsfw_score", "minor_risk_score", "watermark_score", "face_count", "face_area")


class Range(Strict):
    """Bounds of one numeric verdict column; both ends belong to it."""

    min: float | None = None
    max: float | None = None


class KindRules(Strict):
    """The thresholds for one kind of sample. Comments name the reason that a rejected row is given."""

    require_instruction: bool = True  # no_instruction
    min_frames: int | None = Field(default=17, ge=1)  # too_short: frames usable on both sides after the frame policy
    min_short_side: int | None = Field(default=64, ge=1)  # too_small: pixels, either side
    same_size: bool = False  # size_mismatch: off, since both clips are scaled to one bucket
    # aspect_mismatch: sizes rounded to 16 or 32 pixels differ by up to 7 % at 480p, other formats by 15 % and more
    aspect_tolerance: float | None = Field(default=0.1, ge=0)
    equal_frames: bool = True  # unequal_frames: paper; only where frames pair by index
    fps_tolerance: float | None = Field(default=0.01, ge=0)  # fps_mismatch: only where frames pair by index
    min_overlap: float | None = Field(default=0.5, ge=0, le=1)  # short_overlap: common over longer duration, by time
    identical_mad: float | None = Field(default=2.0, ge=0)  # identical: below both, or the same bytes
    identical_area: float = Field(default=0.0005, ge=0)
    reject_static: bool = True  # static
    # frozen_motion: share of the source's motion below which the edit froze, where it is also nearly still;
    # known frozen edits have 0.08 to 0.14, good ones of moving things 0.55 and more
    min_motion_ratio: float | None = Field(default=0.25, ge=0)
    frozen_motion: float = Field(default=1.0, ge=0)
    motion_exempt: tuple[str, ...] = ("remove",)  # categories: removing what moves is a good edit
    # structure_lost: in these categories the edit is to leave the rest alone (see agreement.structure_kept);
    # good edits have 0.93 and more, those that made the whole picture anew 0.25 to 0.57
    min_structure_kept: float | None = Field(default=0.7, ge=-1, le=1)
    structure_categories: tuple[str, ...] = ("add", "remove", "replace", "attribute", "text")
    # text_gone: a text edit that was not to erase, with a caption in the source (at least this dense, see
    # agreement.text_strokes) and half as much nowhere in the target
    caption_strokes: float | None = Field(default=0.25, gt=0, le=1)
    # text_unchanged: OCR (a plug-in) reads the same words in source and target of a text edit; not asked: no reason
    max_text_similarity: float | None = Field(default=0.8, ge=0, le=1)
    max_shot_cuts: int | None = Field(default=0, ge=0)  # shot_cut: either side
    max_black_border: float | None = Field(default=0.02, ge=0)  # black_border: widest bar as a share of its direction
    # blurred: the target; sharp clips, smooth drawings too, have up to 0.62, those blurred by eye 0.7 and more
    max_blur: float | None = Field(default=0.65, ge=0, le=1)
    max_blur_gain: float | None = Field(default=None, ge=0)  # blurred: target over source; a new sky may be smooth
    thresholds: dict[str, Range] = Field(default_factory=dict)  # <column>_low, <column>_high, no_<column>
    joined: dict[str, Range] = Field(default_factory=dict)  # the same for columns of `sama curate --join`

    @field_validator("thresholds")
    @classmethod
    def _numeric(cls, value: dict[str, Range]) -> dict[str, Range]:
        known = numeric_columns()
        for name in value:
            if name not in known:
                raise ValueError(f"{name} is not a numeric column of verdicts; there are {', '.join(sorted(known))}")
        return value

    @field_validator("motion_exempt", "structure_categories")
    @classmethod
    def _category(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if name not in tables.CATEGORIES:
                raise ValueError(f"{name} is not a category; there are {', '.join(tables.CATEGORIES)}")
        return value


IMAGE = KindRules(
    min_frames=None, equal_frames=False, fps_tolerance=None, min_overlap=None, reject_static=False,
    min_motion_ratio=None, max_shot_cuts=None, min_structure_kept=None, caption_strokes=None,
)  # fmt: skip
CAPTIONED = KindRules(
    require_instruction=False, aspect_tolerance=None, equal_frames=False, fps_tolerance=None, min_overlap=None,
    identical_mad=None, min_motion_ratio=None, min_structure_kept=None, caption_strokes=None, max_text_similarity=None,
)  # fmt: skip


class JudgeRules(Strict):
    """Which judge's mean scores count, and the least that is kept. Defaults: the paper's (method: section 7)."""

    judge_id: str
    video: dict[str, float] = Field(default_factory=lambda: dict(PAPER_VIDEO))
    image: dict[str, float] = Field(default_factory=lambda: dict(PAPER_IMAGE))

    @field_validator("video", "image")
    @classmethod
    def _scores(cls, value: dict[str, float]) -> dict[str, float]:
        for name in value:
            if name not in SCORES:
                raise ValueError(f"{name} is not a score of a judge; there are {', '.join(SCORES)}")
        return value


class SafetyRules(Strict):
    """Scores of optional plug-ins. What is required and was not scored is rejected, never passed."""

    require: tuple[str, ...] = ()  # no_<score>: null is a rejection
    limits: dict[str, float] = Field(default_factory=dict)  # <score>_high: above it; null passes unless required

    @field_validator("require", "limits")
    @classmethod
    def _known(cls, value: Any) -> Any:
        for name in value:
            if name not in SAFETY_SCORES:
                raise ValueError(f"{name} is not a safety score; there are {', '.join(SAFETY_SCORES)}")
        return value


class Rules(Strict):
    """A rules file. `datasets` overrides single thresholds: {openve-3m: {max_black_border: 0.05}}."""

    schema_: Literal["sama.rules/1"] = Field(default="sama.rules/1", alias="schema")
    only: tuple[str, ...] | None = None  # datasets to select from; null for all
    video_edit: KindRules = KindRules()
    image_edit: KindRules = IMAGE
    text_to_video: KindRules = CAPTIONED
    datasets: dict[str, dict[str, Any]] = Field(default_factory=dict)
    judge: JudgeRules | None = None
    safety: SafetyRules = SafetyRules()
    # near_duplicate: samples kept of the same footage, near-duplicates counted with it; the first in the index's order
    max_per_footage: int | None = Field(default=None, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, tree: Any) -> Any:
        """What a file leaves out of a kind keeps that kind's default, not the video edit's."""
        if not isinstance(tree, dict):
            return tree
        tree = dict(tree)
        for kind, default in (("image_edit", IMAGE), ("text_to_video", CAPTIONED)):
            if isinstance(tree.get(kind), dict):
                tree[kind] = {**default.model_dump(), **tree[kind]}
        return tree

    @model_validator(mode="after")
    def _overrides(self) -> Rules:
        for dataset in self.datasets:
            try:
                for kind in tables.KINDS:
                    self.of(kind, dataset)
            except ValidationError as error:
                first = error.errors()[0]
                name = ".".join(str(p) for p in first["loc"])
                close = difflib.get_close_matches(name, KindRules.model_fields, n=1)
                unknown = f"is not a setting{f'; did you mean {close[0]}?' if close else ''}"
                says = unknown if first["type"] == "extra_forbidden" else first["msg"].removeprefix("Value error, ")
                raise ValueError(f"datasets.{dataset}.{name} {says}") from None
        return self

    def as_yaml(self) -> str:
        """The resolved rules, as a rules file."""
        return yaml.safe_dump(self.model_dump(mode="json", by_alias=True), sort_keys=False)

    def of(self, kind: str, dataset: str) -> KindRules:
        """The thresholds for one kind of one dataset."""
        base: KindRules = getattr(self, kind)
        changed = self.datasets.get(dataset)
        return KindRules.model_validate({**base.model_dump(), **changed}) if changed else base


def numeric_columns() -> set[str]:
    """Columns of the verdict view that a threshold may name."""
    signals = {f.name for f in tables.SIGNALS if str(f.type) in ("float", "int32", "int16")}
    return (signals - {"signals_version", "seconds"}) | {f"{s}_mean" for s in SCORES}
