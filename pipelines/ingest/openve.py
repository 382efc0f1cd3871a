"""OpenVE-3M (Lewandofski/OpenVE-3M): one csv per category, `video;prompt;original_video`; video is the edit.

The released training code drops the first four frames of both clips; that is this data set's frame policy.
Camera and creative edits are not aligned with their source: they do not keep motion.
"""

from __future__ import annotations

from collections.abc import Iterator

from pipelines.ingest.candidate import Candidate, Options, below, clean, need_folder, stem, text_of
from pipelines.ingest.manifests import Row, candidates
from pipelines.samples import storage
from sama.errors import InputError

NAME = "openve-3m"
LICENSE = "CC-BY-NC-4.0"
HEADER = ("video", "prompt", "original_video")
SKIP_HEAD = 4
CATEGORIES = {
    "global_style": "style", "background_change": "background", "local_change": "replace", "local_remove": "remove",
    "local_add": "add", "subtitle_edit": "text", "camera_edit": "camera", "creative_edit": "creative",
}  # fmt: skip
NOT_ALIGNED = ("camera_edit", "creative_edit")


def scan(folder: str, options: Options) -> Iterator[Candidate]:
    """Candidates in the order of the csv files; InputError when there is none."""
    root = need_folder(folder)
    manifests = storage.list_files(root, ".csv")
    if not manifests:
        raise InputError(f"{folder} has no <category>.csv of OpenVE-3M")

    def make(manifest: str, number: int, row: Row) -> Candidate:
        label = stem(manifest)
        edited = text_of(row, "video")
        return Candidate(
            manifest, number, f"{label}-{stem(edited)}",
            source=_places(root, label, text_of(row, "original_video")), target=_places(root, label, edited),
            kind="video_edit", instruction=clean(row["prompt"]), subset=label,
            category=CATEGORIES.get(label, "other"), category_raw=label, motion_preserving=label not in NOT_ALIGNED,
            frame_policy={"skip_head": SKIP_HEAD}, license=LICENSE, license_evidence="declared", raw=row,
        )  # fmt: skip

    for uri in manifests:
        yield from candidates(uri, root, make, delimiter=";", header=HEADER)


def _places(root: str, label: str, path: str) -> tuple[str, ...]:
    """Where readers of the data set found a clip: below videos/, beside the csv, or by its bare name."""
    name = path.rsplit("/", 1)[-1]
    places = (f"videos/{path}", path, f"videos/{label}/{name}", f"{label}/{name}", f"videos/{name}")
    return tuple(dict.fromkeys(below(root, p) for p in places))
