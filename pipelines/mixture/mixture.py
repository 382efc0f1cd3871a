"""The mixture file: what is trained on, in which shares (schema.md, Mixture)."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterable
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from pipelines import config
from pipelines.config import Strict
from pipelines.samples import tables
from sama.pretext import PERTURBATIONS

STREAMS = ("image", "video")
EDIT = "edit"  # the task of every edit sample; text_to_video samples have a pretext task instead
WHERE_COLUMNS = tuple(
    f.name for f in tables.INDEX if f.name not in ("key", "sample_digest", "split") and "sha256" not in f.name
)


def _nearest(name: str, known: Iterable[str]) -> str:
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {close[0]}?" if close else f"there are {', '.join(names)}"


class Schedule(Strict):
    """Optimizer steps of each stream per cycle; 0 leaves a stream out."""

    image: int = Field(default=1, ge=0)
    video: int = Field(default=1, ge=0)


class LossWeight(Strict):
    image: float = Field(default=1.0, ge=0)
    video: float = Field(default=1.0, ge=0)


class Anchors(Strict):
    """Anchor frames of the semantic tokens (method: section 3)."""

    n: int = Field(default=1, gt=0)
    positions: Literal["uniform"] = "uniform"


class BucketRules(Strict):
    """Shapes of batches: every multiple with about this area (pixels) and an aspect ratio (width / height) inside."""

    area: int = Field(default=399360, gt=0)
    multiple: int = Field(default=32, gt=0)
    aspect: tuple[float, float] = (0.5, 2.0)
    frames: tuple[int, ...] = (81, 61, 33)
    min_rows: int | None = Field(default=None, gt=0)  # a bucket with fewer joins a neighbour; default: one global batch

    @field_validator("aspect")
    @classmethod
    def _ordered(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 < value[0] <= value[1]:
            raise ValueError("write the smallest and the largest aspect ratio, both above 0")
        return value

    @field_validator("frames")
    @classmethod
    def _vae_frames(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not value or any(n < 1 or n % 4 != 1 for n in value):
            raise ValueError("frame lengths must be 4k+1, as the VAE needs them")
        return value


class Source(Strict):
    """One dataset's selected rows, or the part of them that `where` (index columns) keeps."""

    dataset: str
    selection: str
    weight: Literal["size"] | float = "size"  # size: in proportion to the rows; or a number, in all sources of a stream
    where: dict[str, list[Any]] = Field(default_factory=dict)
    max_epochs: float | None = Field(default=None, gt=0)  # lowers the share so that no sample is seen more often
    optional: bool = False  # without a single eligible row it is left out instead of being an error

    @field_validator("where", mode="before")
    @classmethod
    def _lists(cls, value: Any) -> Any:
        return {k: v if isinstance(v, list) else [v] for k, v in value.items()} if isinstance(value, dict) else value

    @field_validator("where")
    @classmethod
    def _index_columns(cls, value: dict[str, list[Any]]) -> dict[str, list[Any]]:
        for name in value:
            if name not in WHERE_COLUMNS:
                raise ValueError(f"{name} is not a column that where can filter on; {_nearest(name, WHERE_COLUMNS)}")
        return value

    @field_validator("weight")
    @classmethod
    def _positive(cls, value: Any) -> Any:
        if value != "size" and value <= 0:
            raise ValueError("a weight is `size` or a number above 0")
        return value


class ImageStream(Strict):
    global_batch: int = Field(default=448, gt=0)
    sources: tuple[Source, ...] = Field(min_length=1)

    @field_validator("sources")
    @classmethod
    def _one_kind_of_weight(cls, value: tuple[Source, ...]) -> tuple[Source, ...]:
        if len({s.weight == "size" for s in value}) > 1:
            raise ValueError("either every source of a stream has weight `size`, or every one has a number")
        return value


class VideoStream(ImageStream):
    global_batch: int = Field(default=112, gt=0)
    window: Literal["head", "random"] = "head"
    fps: Literal["native"] | float = "native"  # clips slower than this keep their own rate
    pretext: dict[str, float] = Field(default_factory=dict)  # ratios; without any, text_to_video samples are not used
    pretext_options: dict[str, dict[str, Any]] = Field(default_factory=dict)

    @field_validator("pretext")
    @classmethod
    def _known_tasks(cls, value: dict[str, float]) -> dict[str, float]:
        for name, ratio in value.items():
            if name not in PERTURBATIONS:
                raise ValueError(f"{name} is not a pretext task; {_nearest(name, PERTURBATIONS)}")
            if ratio < 0:
                raise ValueError(f"the ratio of {name} must not be negative")
        return {n: r for n, r in value.items() if r > 0}

    @field_validator("pretext_options")
    @classmethod
    def _known_options(cls, value: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        for name, options in value.items():
            if name not in PERTURBATIONS:
                raise ValueError(f"{name} is not a pretext task; {_nearest(name, PERTURBATIONS)}")
            known = PERTURBATIONS[name].options
            for option in options:
                if option not in known:
                    hint = _nearest(option, known) if known else "it has none"
                    raise ValueError(f"{option} is not an option of {name}; {hint}")
            if options.get("variant") == "shorter":
                raise ValueError("the shorter variant of speed changes the length, and a batch has one shape: use hold")
        return value

    @field_validator("fps")
    @classmethod
    def _positive_rate(cls, value: Any) -> Any:
        if value != "native" and value <= 0:
            raise ValueError("fps is `native` or a number above 0")
        return value


class Streams(Strict):
    image: ImageStream | None = None
    video: VideoStream | None = None


class Mixture(Strict):
    """All of a mixture file. Defaults are the paper's where the paper has one (method: sections 3 to 6)."""

    schema_: Literal["sama.mixture/1"] = Field(default="sama.mixture/1", alias="schema")
    name: str = "mixture"
    stage: Literal[0, 1] = 1
    seed: int = Field(default=0, ge=0)
    steps: int = Field(gt=0)
    license_policy: Literal["research", "commercial"] | tuple[str, ...] = "research"
    schedule: Schedule = Schedule()
    loss_weight: LossWeight = LossWeight()
    anchors: Anchors = Anchors()
    prompt_prefix: str = "[Video edit] "
    instruction_dropout: float = Field(default=0.1, ge=0, lt=1)
    source_dropout: float = Field(default=0.0, ge=0, lt=1)
    buckets: BucketRules = BucketRules()
    streams: Streams

    @model_validator(mode="after")
    def _streams_have_turns(self) -> Mixture:
        if not self.active():
            raise ValueError("no stream has both sources and a turn in the schedule")
        return self

    def stream(self, name: str) -> ImageStream | VideoStream:
        """The stream of this name, which must be there."""
        found = getattr(self.streams, name)
        assert found is not None, name
        return found

    def active(self) -> list[str]:
        """Streams that take part: they are described and have a turn in the schedule."""
        return [s for s in STREAMS if getattr(self.streams, s) is not None and getattr(self.schedule, s) > 0]

    def model_dump(self, **how: Any) -> dict[str, Any]:
        """As pydantic's, with the names of the file (`schema`)."""
        return super().model_dump(**{"by_alias": True, **how})

    def tree(self) -> dict[str, Any]:
        """Plain values, as they would stand in the file."""
        return self.model_dump(mode="json")

    @property
    def digest(self) -> str:
        """sha256 (hex) of everything but the name."""
        tree = {k: v for k, v in self.tree().items() if k != "name"}
        return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()

    @property
    def negative_prompt(self) -> str:
        return self.prompt_prefix.strip()


def load_mixture(path: str, overrides: list[str] | tuple[str, ...] = ()) -> Mixture:
    """Read a mixture file or a shipped recipe; `overrides` are `a.b=value`. InputError names the first mistake."""
    return config.load(Mixture, config.recipe(str(path)), overrides)
