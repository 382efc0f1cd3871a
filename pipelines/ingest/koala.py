"""Koala-36M (Koala-36M/Koala-36M-v1): Koala_36M_*.csv with captions; the clips are fetched by the user.

Readers keep the clips as <root>/<videoID>.mp4. A row whose clip was not fetched is a reject like any other.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from pipelines.ingest.candidate import Candidate, Options, below, clean, need_folder, text_of
from pipelines.ingest.manifests import Row, candidates
from pipelines.samples import storage
from sama.errors import InputError

NAME = "koala-36m"
LICENSE = "LicenseRef-Koala-36M-NonCommercial"
HEADER = ("videoID", "caption")
SCORES = ("clarity_score", "aesthetic_score", "motion_score", "video_training_suitability_score")


def scan(folder: str, options: Options) -> Iterator[Candidate]:
    """Candidates in the order of the csv files; InputError when there is none."""
    root = need_folder(folder)
    manifests = [f for f in storage.list_files(root, ".csv") if f.rsplit("/", 1)[-1].startswith("Koala_36M")]
    if not manifests:
        raise InputError(f"{folder} has no Koala_36M_*.csv")

    def make(manifest: str, number: int, row: Row) -> Candidate:
        name = text_of(row, "videoID")
        extra = {s: float(row[s]) for s in SCORES if row.get(s)}
        if row.get("timestamp"):
            extra["start_s"], extra["end_s"] = seconds(row["timestamp"])
        return Candidate(
            manifest, number, name,
            target=(below(root, f"{name}.mp4"), below(root, f"videos/{name}.mp4"), below(root, f"clips/{name}.mp4")),
            kind="text_to_video", caption=clean(row["caption"]), needs_caption=True,
            license=LICENSE, license_evidence="file", source_url=row.get("url") or None, extra=extra, raw=row,
        )  # fmt: skip

    for uri in manifests:
        yield from candidates(uri, root, make, header=HEADER)


def seconds(text: str) -> tuple[float, float]:
    """ "['0:00:22.089', '0:00:28.161']" as (22.089, 28.161); ValueError when it is anything else."""
    try:
        start, end = ast.literal_eval(text)
        return _seconds(start), _seconds(end)
    except (ValueError, SyntaxError, TypeError, AttributeError, RecursionError, MemoryError):
        raise ValueError(f"timestamp {text!r} is not a list of two times") from None


def _seconds(clock: str) -> float:
    total = 0.0
    for part in clock.split(":"):
        total = total * 60 + float(part)
    return total
