"""Manifest files row by row: csv, json (a list, or lists in lists), jsonl and parquet."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import pyarrow.parquet as pq

from pipelines.ingest.candidate import Candidate, bad_row
from pipelines.samples import storage
from sama.errors import InputError

Row = dict[str, Any]
SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
csv.field_size_limit(2**24)  # captions of hundreds of words, lists of masks


class BadLineError(Exception):
    """One row that cannot be read; the next ones can."""

    def __init__(self, detail: str, raw: str) -> None:
        super().__init__(detail)
        self.raw = raw


def candidates(
    uri: str, folder: str, make: Callable[[str, int, Row], Candidate], delimiter: str = ",", header: Iterable[str] = ()
) -> Iterator[Candidate]:
    """A candidate for every row of a manifest; rows that `make` refuses (ValueError) become `bad_row`.

    `make(manifest, row number, row)`. header: columns that must be there (InputError otherwise).
    """
    name = relative(uri, folder)
    for number, row in enumerate(read_rows(uri, delimiter, tuple(header))):
        if isinstance(row, BadLineError):
            yield bad_row(name, number, str(row), row.raw)
            continue
        try:
            yield make(name, number, row)
        except ValueError as error:
            yield bad_row(name, number, str(error), row)


def relative(uri: str, folder: str) -> str:
    return storage.absolute(uri).removeprefix(storage.absolute(folder)).lstrip("/")


def read_rows(uri: str, delimiter: str = ",", header: tuple[str, ...] = ()) -> Iterator[Row | BadLineError]:
    """Rows in order. InputError when the file as a whole is not what its name says."""
    suffix = uri[uri.rfind(".") :].lower()
    if suffix == ".parquet":
        yield from _parquet(uri)
        return
    try:
        text = storage.read_bytes(uri).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{uri} is not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise InputError(f"{uri} cannot be read: {error}") from None
    if suffix == ".csv":
        yield from _csv(uri, text, delimiter, header)
    elif suffix == ".jsonl":
        yield from _jsonl(text)
    elif suffix == ".json":
        yield from _json(uri, text)
    else:
        raise InputError(f"{uri} is no manifest: use one of {', '.join(SUFFIXES)}")


def _csv(uri: str, text: str, delimiter: str, header: tuple[str, ...]) -> Iterator[Row | BadLineError]:
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    names = [n.strip() for n in next(lines, [])]
    missing = [n for n in header if n not in names]
    if missing:
        raise InputError(f"{uri} has no column {missing[0]}; there are {', '.join(names) or 'none'}")
    while True:
        try:
            values = next(lines, None)
        except csv.Error as error:
            yield BadLineError(f"not a line of csv: {error}", "")
            continue
        if values is None:
            return
        if not values:
            continue
        if len(values) != len(names):
            yield BadLineError(f"{len(values)} values in {len(names)} columns", delimiter.join(values))
            continue
        yield dict(zip(names, values, strict=True))


def _jsonl(text: str) -> Iterator[Row | BadLineError]:
    for line in text.split("\n"):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            yield BadLineError(f"not a line of JSON: {error}", line)
            continue
        yield row if isinstance(row, dict) else BadLineError(f"expected an object, found a {type(row).__name__}", line)


def _json(uri: str, text: str) -> Iterator[Row | BadLineError]:
    try:
        tree = json.loads(text) if text.strip() else []
    except ValueError as error:
        raise InputError(f"{uri} is not JSON: {error}") from None
    if not isinstance(tree, list):
        raise InputError(f"{uri}: expected a list of records, found a {type(tree).__name__}")
    yield from _flat(tree)


def _flat(tree: list) -> Iterator[Row | BadLineError]:
    for row in tree:
        if isinstance(row, list):
            yield from _flat(row)
        else:
            found = isinstance(row, dict)
            yield row if found else BadLineError(f"expected an object, found a {type(row).__name__}", json.dumps(row))


def _parquet(uri: str) -> Iterator[Row | BadLineError]:
    """Rows of a parquet file; a picture held in a column becomes a reference to it (see references.py)."""
    fs, path = storage.locate(uri)
    try:
        file = pq.ParquetFile(fs.open_input_file(path))
    except (OSError, ValueError) as error:
        raise InputError(f"{uri} is not a parquet file: {error}") from None
    schema = file.schema_arrow
    inline = {f.name for f in schema if f.type.num_fields and {"bytes"} <= {c.name for c in f.type.fields}}
    words = [n for n in schema.names if n not in inline]
    number = 0
    for batch in file.iter_batches(batch_size=1024, columns=words):
        for row in batch.to_pylist() if words else [{}] * batch.num_rows:
            yield {**row, **{name: f"{uri}#row={number}&column={name}" for name in inline}}
            number += 1


def first_of(row: Mapping[str, Any], names: Iterable[str]) -> str | None:
    """The first column of `names` that the row has."""
    return next((n for n in names if n in row), None)
