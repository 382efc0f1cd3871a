"""Anybody's manifest: csv, json, jsonl or parquet, one pair, picture pair or captioned clip a row.

Columns are found by their usual names and can be named with `--map field=column`. `video` beside
`source_video` means the edited clip, as in the released code's own training lists.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pipelines.ingest.candidate import Candidate, Options, below, clean, need_folder, stem, text_of
from pipelines.ingest.categories import guess
from pipelines.ingest.manifests import SUFFIXES, Row, candidates, relative
from pipelines.samples import storage
from sama.errors import InputError

NAME = "pairs"
FIELDS: Mapping[str, tuple[str, ...]] = {
    "source": ("source", "source_video", "src_video", "source_image", "source_path", "original_video", "vace_video",
               "source_video_path"),
    "target": ("target", "target_video", "tgt_video", "edited_image", "edited_path", "edited_video", "video",
               "target_video_path"),
    "instruction": ("instruction", "prompt", "edit_instruction", "enhanced_instruction"),
    "caption": ("caption",),
    "category": ("category", "task_type", "edit_type", "edited_type"),
    "upstream_id": ("id", "sample_id", "upstream_id", "key"),
    "license": ("license", "licence"),
    "source_url": ("source_url", "url"),
    "editor": ("editor",),
}  # fmt: skip


def scan(folder: str, options: Options) -> Iterator[Candidate]:
    """Candidates of the one manifest in `folder`, or of `folder` itself when that is a manifest."""
    unknown = set(options.columns) - set(FIELDS)
    if unknown:
        raise InputError(f"--map {min(unknown)}: a pair has the fields {', '.join(FIELDS)}")
    root, uri = _find(folder, options.manifest)
    names = {f: (options.columns[f],) if f in options.columns else known for f, known in FIELDS.items()}

    def make(manifest: str, number: int, row: Row) -> Candidate:
        words = {f: _words(row, names[f]) for f in ("instruction", "caption", "category", "upstream_id", "source_url")}
        target = text_of(row, *names["target"])
        source = _words(row, names["source"])
        given = options.license or _words(row, names["license"])
        lone_caption = source is None and words["caption"] is None
        return Candidate(
            manifest, number, words["upstream_id"] or stem(target),
            source=(_place(root, source),) if source else (), target=(_place(root, target),),
            instruction=clean(words["instruction"]) if source else None,
            caption=clean(words["instruction"] if lone_caption else words["caption"]),
            category=guess(words["category"], words["instruction"]), category_raw=words["category"],
            license=given or "unknown", license_evidence="declared" if given else "unknown",
            source_url=words["source_url"], editor=_words(row, names["editor"]), language=None, raw=row,
        )  # fmt: skip

    found = False
    for candidate in candidates(uri, root, make):
        if not found and candidate.error and f"{names['target'][0]} is missing" in candidate.error[1]:
            columns = ", ".join(candidate.raw)
            raise InputError(f"{uri} has no column for the edited clip; there are {columns}: use --map target=COLUMN")
        found = True
        yield candidate


def _find(folder: str, manifest: str | None) -> tuple[str, str]:
    if storage.exists(folder) and not storage.is_folder(folder):
        uri = storage.absolute(folder)
        return uri.rsplit("/", 1)[0], uri
    root = need_folder(folder)
    if manifest:
        uri = storage.join(root, manifest)
        if not storage.exists(uri):
            raise InputError(f"{uri} is not there")
        return root, uri
    found = [f for f in storage.list_files(root) if f.lower().endswith(SUFFIXES)]
    if len(found) != 1:
        names = ", ".join(relative(f, root) for f in found[:5]) or "none"
        raise InputError(f"{folder} must hold one manifest ({', '.join(SUFFIXES)}), found {names}: name it --manifest")
    return root, found[0]


def _words(row: Row, names: tuple[str, ...]) -> str | None:
    try:
        return text_of(row, *names)
    except ValueError:
        return None


def _place(root: str, path: str) -> str:
    """A user's own manifest may point anywhere; relative paths are below the manifest's folder."""
    if path.startswith("/") or "://" in path or "#row=" in path:
        return storage.absolute(path)
    return below(root, path)
