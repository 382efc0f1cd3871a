"""Ditto-1M (card of QingyanBai/Ditto-1M): videos/<subset>/*.mp4 and lists of pairs.

Reads training_metadata/*.json (source_path, instruction, edited_path), else csvs_for_DiffSynth/*.csv
(vace_video is the source, video the edit). Paths are relative to videos/; whether the archives carry a
folder <subset> of their own is not documented, so both places are tried.
"""

from __future__ import annotations

from collections.abc import Iterator

from pipelines.ingest.candidate import Candidate, Options, below, clean, need_folder, stem, text_of
from pipelines.ingest.manifests import Row, candidates
from pipelines.samples import storage
from sama.errors import InputError

NAME = "ditto-1m"
LICENSE = "CC-BY-NC-SA-4.0"
CATEGORIES = {"global_style1": "style", "global_style2": "style"}  # the folder is the only label there is


def scan(folder: str, options: Options) -> Iterator[Candidate]:
    """Candidates in the order of the manifests; InputError when there is none."""
    root = need_folder(folder)
    manifests = storage.list_files(storage.join(root, "training_metadata"), ".json")
    manifests = manifests or storage.list_files(storage.join(root, "csvs_for_DiffSynth"), ".csv")
    if not manifests:
        raise InputError(f"{folder} has neither training_metadata/*.json nor csvs_for_DiffSynth/*.csv of Ditto-1M")
    videos = storage.join(root, "videos")

    def make(manifest: str, number: int, row: Row) -> Candidate:
        source, edited = text_of(row, "source_path", "vace_video"), text_of(row, "edited_path", "video")
        subset = edited.split("/")[0]
        label = "sim2real" if stem(manifest) == "sim2real" else subset
        return Candidate(
            manifest, number, stem(edited),
            source=_places(videos, source), target=_places(videos, edited), kind="video_edit",
            instruction=clean(row.get("instruction", row.get("prompt"))),
            subset=label, category=CATEGORIES.get(label, "other"), category_raw=label,
            license=LICENSE, license_evidence="card", raw=row,
        )  # fmt: skip

    first = True
    for uri in manifests:
        for candidate in candidates(uri, root, make):
            if first and _packed(videos, candidate):
                raise InputError(f"{videos} holds archives only: unpack each with `cat <subset>.tar.gz.* | tar -xz`")
            first = False
            yield candidate


def _places(videos: str, path: str) -> tuple[str, ...]:
    subset = path.split("/")[0]
    return below(videos, path), below(videos, f"{subset}/{path}")


def _packed(videos: str, first: Candidate) -> bool:
    """Whether the clips are still in their archives; folders of a million files are only listed in doubt."""
    if any(storage.exists(uri) for uri in first.source):
        return False
    folders = [storage.join(videos, name) for name in storage.list_folders(videos)]
    files = [f for folder in folders for f in storage.list_files(folder)]
    return bool(files) and all(".tar.gz" in f for f in files)
