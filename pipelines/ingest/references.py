"""The bytes behind a candidate's URI: a file, or a picture in a column of a parquet file."""

from __future__ import annotations

import functools
import time
from urllib.parse import parse_qs

import pyarrow.parquet as pq

from pipelines.samples import storage

TRIES = 3


class MissingError(Exception):
    """None of the places where a file could lie has it."""


def read_first(uris: tuple[str, ...]) -> tuple[bytes, str]:
    """The bytes of the first URI that exists, and that URI.

    Missing when none exists. OSError when the file is there but cannot be read, after some tries.
    """
    for uri in uris:
        for attempt in range(TRIES):
            try:
                return _read(uri), uri
            except (FileNotFoundError, NotADirectoryError):
                break
            except (IsADirectoryError, PermissionError):
                raise
            except OSError:
                if attempt + 1 == TRIES:
                    raise
                time.sleep(0.5 * 2**attempt)
    raise MissingError(f"not found: {uris[0]}" if uris else "the manifest names no file")


def _read(uri: str) -> bytes:
    path, mark, fragment = uri.partition("#row=")
    if not mark:
        return storage.read_bytes(uri)
    where = parse_qs(f"row={fragment}")
    value = _cell(path, int(where["row"][0]), where["column"][0])
    if value is None:
        raise FileNotFoundError(uri)
    return value


def _cell(uri: str, row: int, column: str) -> bytes | None:
    file = _open(uri)
    for group in range(file.metadata.num_row_groups):
        rows = file.metadata.row_group(group).num_rows
        if row < rows:
            return _column(uri, group, column)[row]
        row -= rows
    return None


@functools.lru_cache(maxsize=4)
def _open(uri: str) -> pq.ParquetFile:
    fs, path = storage.locate(uri)
    return pq.ParquetFile(fs.open_input_file(path))


@functools.lru_cache(maxsize=2)
def _column(uri: str, group: int, column: str) -> list[bytes | None]:
    """One row group's pictures; neighbouring rows are asked for one after the other."""
    values = _open(uri).read_row_group(group, columns=[column]).column(0).to_pylist()
    return [v and v.get("bytes") for v in values]
