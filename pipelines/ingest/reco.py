"""ReCo-Data (card of HiDream-ai/ReCo-Data): <task>/<task>_data_configs.json beside src_videos/ and tar_videos/."""

from __future__ import annotations

from collections.abc import Iterator

from pipelines.ingest.candidate import Candidate, Options, below, clean, need_folder, stem, text_of
from pipelines.ingest.manifests import Row, candidates
from pipelines.samples import storage
from sama.errors import InputError

NAME = "reco-data"
LICENSE = "CC-BY-NC-SA-4.0"
TASKS = ("add", "remove", "replace", "style")  # the task folder is the category


def scan(folder: str, options: Options) -> Iterator[Candidate]:
    """Candidates task by task; InputError when no task's list is there."""
    root = need_folder(folder)
    manifests = {t: storage.join(root, t, f"{t}_data_configs.json") for t in TASKS}
    manifests = {t: uri for t, uri in manifests.items() if storage.exists(uri)}
    if not manifests:
        raise InputError(f"{folder} has no <task>/<task>_data_configs.json of ReCo-Data (tasks: {', '.join(TASKS)})")

    for task, uri in manifests.items():

        def make(manifest: str, number: int, row: Row, task: str = task) -> Candidate:
            target = text_of(row, "tar_video")
            return Candidate(
                manifest, number, f"{task}-{stem(target)}",
                source=(below(root, text_of(row, "src_video")),), target=(below(root, target),), kind="video_edit",
                instruction=clean(row.get("instruction_final_refine")),
                subset=task, category=task, category_raw=task,
                license=LICENSE, license_evidence="card", raw=row,
            )  # fmt: skip

        yield from candidates(uri, root, make)
