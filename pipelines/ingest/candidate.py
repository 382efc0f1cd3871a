"""What an adapter says about one manifest row, before any media file is opened."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import posixpath
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipelines.samples import storage
from sama.errors import InputError

# what data sets write where a captioner or an instruction model gave nothing
NULL_TEXTS = frozenset({"", "none", "null", "nan", "n/a", "error"})


@dataclass(frozen=True)
class Candidate:
    """One row of a manifest.

    source, target: URIs tried in this order (layouts differ between downloads); empty where the kind has none.
    kind: None to decide by the media (two pictures are an image edit, a lone clip is text to video).
    error: (reason, detail) when the row is a reject already.
    """

    manifest: str
    row: int
    upstream_id: str
    target: tuple[str, ...] = ()
    source: tuple[str, ...] = ()
    kind: str | None = None
    instruction: str | None = None
    caption: str | None = None
    needs_caption: bool = False
    subset: str | None = None
    category: str = "other"
    category_raw: str | None = None
    language: str | None = "en"
    motion_preserving: bool = True
    frame_policy: dict[str, Any] = field(default_factory=dict)
    license: str = "unknown"
    license_evidence: str = "unknown"
    attribution: str | None = None
    source_url: str | None = None
    editor: str | None = None
    dataset_revision: str | None = None
    archive: str | None = None
    member: str | None = None
    source_sha256: str | None = None  # as the manifest promises
    target_sha256: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    raw: dict[str, Any] = field(default_factory=dict)
    error: tuple[str, str] | None = None
    key: str = ""  # given by the driver, which sees all rows

    @property
    def identity(self) -> bytes:
        """8 bytes: which manifest row this is."""
        return row_identity(self.manifest, self.row, self.upstream_id)

    @property
    def content(self) -> bytes:
        """8 bytes: which media and which words; equal for rows that repeat each other."""
        words = [self.source, self.target, self.instruction, self.caption]
        return hashlib.sha256(json.dumps(words).encode()).digest()[:8]

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False, default=str)

    @classmethod
    def from_json(cls, text: str) -> Candidate:
        facts = json.loads(text)
        for name in ("source", "target", "error"):
            facts[name] = None if facts[name] is None else tuple(facts[name])
        return cls(**facts)


@dataclass(frozen=True)
class Options:
    """What a user may tell an adapter about a folder."""

    columns: Mapping[str, str] = field(default_factory=dict)  # our field -> the manifest's column
    manifest: str | None = None  # relative to the folder, where it is not found by itself
    license: str | None = None


def row_identity(manifest: str, row: int, upstream_id: str) -> bytes:
    return hashlib.sha256(f"{manifest}\n{row}\n{upstream_id}".encode()).digest()[:8]


def bad_row(manifest: str, row: int, detail: str, raw: Any = None) -> Candidate:
    """The reject of a row that says too little to look for its media."""
    kept = raw if isinstance(raw, dict) else {"raw": raw}
    return Candidate(manifest, row, "", raw={str(k): v for k, v in kept.items()}, error=("bad_row", detail))


def clean(text: Any) -> str | None:
    """Words without surrounding blanks; None for what stands for no words at all."""
    if not isinstance(text, str):
        return None
    words = text.strip()
    return None if words.lower().strip(".") in NULL_TEXTS else words


def text_of(row: Mapping[str, Any], *names: str) -> str:
    """The first of the columns that holds words; ValueError when none of them does."""
    for name in names:
        value = row.get(name)
        if isinstance(value, str) and value.strip():
            return value.strip()
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
    raise ValueError(f"{names[0]} is missing")


def below(folder: str, path: str) -> str:
    """A manifest's relative path inside its folder; ValueError when it leads out of it."""
    tidy = posixpath.normpath(path.replace("\\", "/"))
    if tidy.startswith(("/", "../")) or tidy == ".." or "://" in path:
        raise ValueError(f"the path {path} leads out of the data set's folder")
    return storage.join(folder, tidy)


def stem(path: str) -> str:
    return posixpath.splitext(posixpath.basename(path.replace("\\", "/")))[0]


def need_folder(folder: str) -> str:
    """The folder's URI. InputError when it is not there."""
    if not storage.is_folder(folder):
        raise InputError(f"{folder} is not a folder")
    return storage.absolute(folder)
