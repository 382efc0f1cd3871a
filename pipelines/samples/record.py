"""One sample as it lies in a shard (`<key>.json`), its identity, and its row in the index."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

SCHEMA = "sama.sample/1"
KEY_LENGTH = 96
_KEY = re.compile(r"[a-z0-9_-]{1,96}")

Kind = Literal["video_edit", "image_edit", "text_to_video"]
Category = Literal[
    "add", "remove", "replace", "attribute", "background", "style", "lighting", "text", "camera", "creative", "other"
]


class _Fact(BaseModel):
    # keys that a later version adds are passed over, so that older code reads newer shards
    model_config = ConfigDict(extra="ignore", frozen=True, populate_by_name=True)


class Media(_Fact):
    """Facts of one media file as stored; `fps` is null for a still image, which has 1 frame."""

    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    width: int = Field(gt=0, lt=2**15)
    height: int = Field(gt=0, lt=2**15)
    fps: float | None = Field(gt=0)
    frames: int = Field(gt=0)
    codec: str
    has_audio: bool


class FramePolicy(_Fact):
    """Which frames of a pair belong together: how many to skip, and whether by index or by time."""

    skip_head: int = Field(default=0, ge=0, lt=2**15)
    skip_tail: int = Field(default=0, ge=0, lt=2**15)
    pairing: Literal["index", "time"] = "index"
    fps: float | None = Field(default=None, gt=0)  # overrides the files' own rate


class Origin(_Fact):
    """Where a sample came from: a row of a manifest, and the archive that held the media, if any."""

    manifest: str
    row: int
    archive: str | None = None
    member: str | None = None


class Sample(_Fact):
    """The facts known at ingest (schema.md, Sample). text_to_video has its media in `target` and no source."""

    schema_: Literal["sama.sample/1"] = Field(default="sama.sample/1", alias="schema")
    key: str
    upstream_id: str
    dataset: str
    dataset_revision: str | None = None
    subset: str | None = None
    kind: Kind
    instruction: str | None = None
    caption: str | None = None
    language: str | None = None
    category: Category = "other"
    category_raw: str | None = None
    motion_preserving: bool = True
    frame_policy: FramePolicy = FramePolicy()
    source: Media | None = None
    target: Media
    license: str = "unknown"
    license_evidence: Literal["card", "file", "declared", "unknown"] = "unknown"
    attribution: str | None = None
    source_url: str | None = None
    origin: Origin
    editor: str | None = None
    extra: dict[str, Any] = {}

    @model_validator(mode="after")
    def _consistent(self) -> Sample:
        if not _KEY.fullmatch(self.key):
            raise ValueError(f"key {self.key!r} is not of the form [a-z0-9_-]{{1,96}}")
        if (self.source is None) != (self.kind == "text_to_video"):
            raise ValueError(f"a {self.kind} sample {'has no' if self.source else 'needs a'} source")
        return self

    def to_json(self) -> bytes:
        """The bytes of `<key>.json`, the same for the same facts."""
        return json.dumps(self.model_dump(mode="json", by_alias=True), ensure_ascii=False, sort_keys=True).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Sample:
        """ValueError with one line when the bytes are not a sample."""
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(p) for p in first["loc"]) or "the record"
            raise ValueError(f"{place}: {first['msg'].removeprefix('Value error, ')}") from None

    @property
    def digest(self) -> bytes:
        return sample_digest(
            self.source.sha256 if self.source else None,
            self.target.sha256,
            self.instruction,
            self.caption,
            self.frame_policy.model_dump(),
        )

    @property
    def footage(self) -> str:
        """The digest that decides the source group: of the source, or of the clip where there is no source."""
        return (self.source or self.target).sha256


def sample_digest(
    source_sha256: str | None,
    target_sha256: str,
    instruction: str | None,
    caption: str | None,
    frame_policy: Mapping[str, Any],
) -> bytes:
    """32 bytes that name what a judge would look at, and nothing else: a mended licence changes nothing."""
    policy = FramePolicy.model_validate(frame_policy)
    parts = [source_sha256, target_sha256, instruction, caption, policy.model_dump()]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, ensure_ascii=False).encode()).digest()


def make_key(dataset: str, upstream_id: str, taken: set[str] | None = None, salt: str = "") -> str:
    """A key of `[a-z0-9_-]{1,96}` for a sample, the same in every run.

    A hash is appended where the name alone would not be unique: when characters had to go, when it is too
    long, or when it is in `taken` (then of `salt`, which tells samples with one upstream id apart).
    The new key is added to `taken`.
    """
    wanted = f"{dataset}-{upstream_id}"
    key = re.sub(r"[^a-z0-9_-]+", "-", wanted.lower())
    if key != wanted or len(key) > KEY_LENGTH:
        key = _with_hash(key, wanted)
    if taken is not None:
        count = 0
        while key in taken:
            key = _with_hash(key, f"{wanted}\n{salt}\n{count}")
            count += 1
        taken.add(key)
    return key


def _with_hash(key: str, of: str) -> str:
    return key[: KEY_LENGTH - 9].rstrip("-") + "-" + hashlib.sha256(of.encode()).hexdigest()[:8]


def source_group(sha256: str | bytes) -> int:
    """A 63-bit number of the footage from its digest: equal for equal files, in any dataset."""
    digest = bytes.fromhex(sha256) if isinstance(sha256, str) else sha256
    return int.from_bytes(digest[:8], "big") >> 1


def split_of(group: int, share: float) -> str:
    """`heldout` for about `share` of all source groups, else `train`; the same in every process and run."""
    drawn = int.from_bytes(hashlib.sha256(f"sama.split/1:{group}".encode()).digest()[:8], "big")
    return "heldout" if drawn < share * 2**64 else "train"


def index_row(
    sample: Sample,
    locations: Mapping[str, tuple[str, int, int]],
    *,
    heldout_share: float,
    ingested_at: datetime | None = None,
) -> dict[str, Any]:
    """The sample's row of `tables.INDEX`.

    locations: member ("source", "target", "json") -> (URI of the shard, byte offset, size).
    """
    group = source_group(sample.footage)
    row: dict[str, Any] = {
        "sample_digest": sample.digest,
        "split": split_of(group, heldout_share),
        "source_group": group,
        "skip_head": sample.frame_policy.skip_head,
        "skip_tail": sample.frame_policy.skip_tail,
        "pairing": sample.frame_policy.pairing,
        "policy_fps": sample.frame_policy.fps,
        "origin_json": sample.origin.model_dump_json(),
        "extra_json": json.dumps(sample.extra, ensure_ascii=False, sort_keys=True),
        "ingested_at": ingested_at or datetime.now(UTC),
    }
    for name in (
        "key", "dataset", "subset", "kind", "category", "language", "license", "motion_preserving", "instruction",
        "caption", "category_raw", "upstream_id", "dataset_revision", "editor", "license_evidence", "attribution",
        "source_url",
    ):  # fmt: skip
        row[name] = getattr(sample, name)
    for side, media in (("source", sample.source), ("target", sample.target)):
        row |= _media_columns(side, media, locations.get(side))
    row["json_uri"], row["json_offset"], row["json_size"] = locations["json"]
    return row


def _media_columns(side: str, media: Media | None, location: tuple[str, int, int] | None) -> dict[str, Any]:
    names = ("uri", "offset", "size", "sha256", "width", "height", "fps", "frames", "codec", "has_audio")
    if media is None or location is None:
        return {f"{side}_{n}": None for n in names}
    facts = media.model_dump() | {"sha256": bytes.fromhex(media.sha256), "fps": media.fps or 0.0}
    facts |= dict(zip(("uri", "offset", "size"), location, strict=True))
    return {f"{side}_{n}": facts[n] for n in names}
