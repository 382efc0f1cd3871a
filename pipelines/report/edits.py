"""Edited clips as `sama edit` leaves them: NAME.json, the clip beside it, and perhaps NAME.strip.png."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines.report.markup import Markup
from pipelines.report.media import Album, contact, void
from pipelines.report.runs import read_json
from pipelines.samples import storage
from sama import video
from sama.errors import InputError

MEDIA = (".mp4", ".png", ".jpg", ".webp")
SHOWN = 24


@dataclass
class Edit:
    """One edit. media: the edited clip; picture: its strip, or None."""

    name: str
    media: str
    picture: str | None
    facts: dict[str, Any]

    @property
    def instruction(self) -> str:
        return str(self.facts.get("instruction") or "")

    def strip(self, album: Album) -> Markup:
        """Source frames over edited frames: the strip that was written, else one made from the files."""
        if self.picture:
            return album.file(self.picture, f"source and edit of {self.name}")
        if not album.enabled:
            return void("pictures were not asked for")
        try:
            return album.picture(self._contact(), f"source and edit of {self.name}", quality=84)
        except (video.MediaError, OSError) as error:
            return void(f"no picture: {error}")

    def _contact(self) -> np.ndarray:
        source = self.facts.get("source")
        uris = [source] if isinstance(source, str) and storage.exists(source) else []
        rows = []
        for uri in [*uris, self.media]:
            data = storage.read_bytes(uri)
            facts = video.probe(data)
            rows.append(contact(data, 0, facts.frames - 1, facts.width, facts.height, frames=6))
        width = min(r.shape[1] for r in rows)
        return np.concatenate([video.cover_crop(r[None], r.shape[0], width)[0] for r in rows])


def read_edits(folder: str) -> list[Edit]:
    """All edits of a folder by name. InputError when there is no such folder."""
    if not storage.is_folder(folder):
        raise InputError(f"{folder} is not a folder of edits: there is no such folder")
    files = storage.list_files(folder)
    known = set(files)
    found = []
    for uri in files:
        if not uri.endswith(".json") or uri.endswith("/provenance.json"):
            continue
        stem = uri.removesuffix(".json")
        media = next((stem + s for s in MEDIA if stem + s in known), None)
        facts = read_json(uri) or {}
        if media is None or not isinstance(facts.get("instruction"), str):
            continue  # not an edit, or one that is being written
        strip = f"{stem}.strip.png"
        found.append(Edit(stem.rsplit("/", 1)[-1], media, strip if strip in known else None, facts))
    return found
