"""NHR-Edit (card of iitolstykh/NHR-Edit): [train/]metadata.jsonl beside images/, or parquet with the pictures in it.

The parquet columns source_image, edit_instruction and edited_image are documented; the keys of
metadata.jsonl are not, so the usual names are tried and `--map field=column` overrides them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pipelines.ingest.candidate import Candidate, Options, below, clean, need_folder, stem, text_of
from pipelines.ingest.categories import guess
from pipelines.ingest.manifests import Row, candidates
from pipelines.samples import storage
from sama.errors import InputError

NAME = "nhr-edit"
LICENSE = "Apache-2.0"
COLUMNS = {
    "source": ("source_image", "original_image", "source", "original", "input_image"),
    "target": ("edited_image", "target_image", "edited", "target", "output_image"),
    "instruction": ("edit_instruction", "instruction", "prompt"),
    "category": ("edit_type", "category", "type"),
}


def scan(folder: str, options: Options) -> Iterator[Candidate]:
    """Candidates of metadata.jsonl, else of all parquet files; InputError when there is neither."""
    root = need_folder(folder)
    unknown = set(options.columns) - set(COLUMNS)
    if unknown:
        raise InputError(f"--map {min(unknown)}: NHR-Edit has the fields {', '.join(COLUMNS)}")
    names = {field: (options.columns[field],) if field in options.columns else c for field, c in COLUMNS.items()}
    for place in (root, storage.join(root, "train")):
        uri = storage.join(place, "metadata.jsonl")
        manifests = [uri] if storage.exists(uri) else storage.list_files(place, ".parquet")
        for manifest in manifests:
            yield from _rows(manifest, root, place, names)
        if manifests:
            return
    parquet = storage.list_files(storage.join(root, "data"), ".parquet")
    if not parquet:
        raise InputError(f"{folder} has neither metadata.jsonl nor parquet files of NHR-Edit")
    for manifest in parquet:
        yield from _rows(manifest, root, root, names)


def _rows(uri: str, root: str, place: str, names: Mapping[str, tuple[str, ...]]) -> Iterator[Candidate]:
    def make(manifest: str, number: int, row: Row) -> Candidate:
        source, target = text_of(row, *names["source"]), text_of(row, *names["target"])
        label = next((row[n] for n in names["category"] if isinstance(row.get(n), str)), None)
        words = next((clean(row[n]) for n in names["instruction"] if n in row), None)
        inline = "#row=" in target  # a picture inside the parquet file itself
        return Candidate(
            manifest, number, f"{stem(manifest)}-{number}" if inline else stem(target),
            source=(source if "#row=" in source else below(place, source),),
            target=(target if inline else below(place, target),),
            kind="image_edit", instruction=words, category=guess(label, words), category_raw=label,
            license=LICENSE, license_evidence="card", archive=manifest if inline else None, raw=row,
        )  # fmt: skip

    yield from candidates(uri, root, make)
