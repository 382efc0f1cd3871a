"""A folder of real clips: manifest.jsonl with rows of kind video_pair, image_pair or raw_video.

Columns: id, kind, source, target (relative paths) with *_sha256, instruction, category, editor, licence,
origin, and measurements that are kept as they are. A raw clip is text to video without a caption.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from pipelines.ingest.candidate import Candidate, Options, below, clean, need_folder, text_of
from pipelines.ingest.categories import guess
from pipelines.ingest.manifests import Row, candidates
from pipelines.samples import storage
from sama.errors import InputError

NAME = "clips"
KINDS = {"video_pair": "video_edit", "image_pair": "image_edit", "raw_video": "text_to_video"}
CATEGORIES = {
    "replace_background": "background", "replace_text": "text", "remove_text": "text",
    "replace_attribute": "attribute", "style_lighting": "lighting",
}  # fmt: skip
# the licence as a person wrote it -> SPDX; what follows the identifier (whose footage it is) stays in `extra`
_SPDX = {"Apache-2.0": "Apache-2.0", "MIT": "MIT", "BSD-3": "BSD-3-Clause", "CC-BY-4.0": "CC-BY-4.0", "CC0": "CC0-1.0"}
KEPT = ("licence", "origin", "quirk", "eye_verdict", "instruction_status", "mismatch", "metrics", "source_group")


def scan(folder: str, options: Options) -> Iterator[Candidate]:
    """Candidates of manifest.jsonl; InputError when it is not there."""
    root = need_folder(folder)
    uri = storage.join(root, options.manifest or "manifest.jsonl")
    if not storage.exists(uri):
        raise InputError(f"{folder} has no {options.manifest or 'manifest.jsonl'}")

    def make(manifest: str, number: int, row: Row) -> Candidate:
        if row.get("kind") not in KINDS:
            raise ValueError(f"kind {row.get('kind')!r} is none of {', '.join(KINDS)}")
        kind = KINDS[row["kind"]]
        raw_clip = kind == "text_to_video"
        media, label = text_of(row, "source"), row.get("category")
        spdx = options.license or licence(row.get("licence"))
        extra = {k: row[k] for k in KEPT if row.get(k) is not None}
        if raw_clip and clean(row.get("instruction")):
            extra["instruction"] = row["instruction"]  # no edit of this clip exists, so it is not a pair
        return Candidate(
            manifest, number, text_of(row, "id"),
            source=() if raw_clip else (below(root, media),),
            target=(below(root, media if raw_clip else text_of(row, "target")),), kind=kind,
            instruction=None if raw_clip else clean(row.get("instruction")), caption=clean(row.get("caption")),
            subset=row["kind"], category=CATEGORIES.get(label or "") or guess(label), category_raw=label,
            license=spdx, license_evidence="declared" if spdx != "unknown" else "unknown", editor=row.get("editor"),
            # some editors resampled in time (16 to 24 fps) or cut the end off: frames of one moment belong together
            frame_policy={"pairing": "time"} if kind == "video_edit" else {},
            source_sha256=None if raw_clip else row.get("source_sha256"),
            target_sha256=row.get("source_sha256" if raw_clip else "target_sha256"), extra=extra, raw=row,
        )  # fmt: skip

    yield from candidates(uri, root, make)


def licence(text: str | None) -> str:
    """The SPDX identifier that a licence note begins with, else `unknown`."""
    first = re.match(r"[A-Za-z0-9.-]+", text or "")
    return _SPDX.get(first.group(), "unknown") if first else "unknown"
