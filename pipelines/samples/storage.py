"""Files anywhere: every path is a URI through `pyarrow.fs` (a plain path, `file://`, `s3://`, `gs://`).

A local file appears under its final name only when it is whole (temporary name, then rename); on an
object store one completed PUT does the same.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from sama.errors import InputError


def absolute(uri: str | os.PathLike) -> str:
    """A plain path made absolute (worker processes have other working directories); a URI as it is."""
    text = os.fspath(uri)
    if "://" in text:
        return text[len("file://") :] if text.startswith("file://") else text.rstrip("/")
    return str(Path(text).expanduser().absolute())


@functools.lru_cache(maxsize=64)
def _remote(root: str) -> pafs.FileSystem:
    try:
        return pafs.FileSystem.from_uri(root)[0]
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{root} is not a place this installation can read: {error}") from None


_LOCAL = pafs.LocalFileSystem()


def locate(uri: str | os.PathLike) -> tuple[pafs.FileSystem, str]:
    """The file system of a URI and the path on it."""
    text = absolute(uri)
    if "://" not in text:
        return _LOCAL, text
    scheme, rest = text.split("://", 1)
    return _remote(f"{scheme}://{rest.split('/', 1)[0]}"), rest


def join(uri: str | os.PathLike, *parts: str) -> str:
    return "/".join([absolute(uri).rstrip("/"), *(p.strip("/") for p in parts)])


def exists(uri: str | os.PathLike) -> bool:
    fs, path = locate(uri)
    return fs.get_file_info(path).type != pafs.FileType.NotFound


def is_folder(uri: str | os.PathLike) -> bool:
    fs, path = locate(uri)
    return fs.get_file_info(path).type == pafs.FileType.Directory


def size_of(uri: str | os.PathLike) -> int:
    """Bytes of a file. FileNotFoundError when there is none."""
    fs, path = locate(uri)
    info = fs.get_file_info(path)
    if info.type == pafs.FileType.NotFound:
        raise FileNotFoundError(absolute(uri))
    return int(info.size or 0)


def list_files(uri: str | os.PathLike, suffix: str = "", recursive: bool = False) -> list[str]:
    """Files below a folder in name order; an absent folder has none. Temporary files are not listed."""
    return list(list_sizes(uri, suffix, recursive))


def list_sizes(uri: str | os.PathLike, suffix: str = "", recursive: bool = False) -> dict[str, int]:
    """The same, with the bytes of each."""
    fs, path = locate(uri)
    found = fs.get_file_info(pafs.FileSelector(path, allow_not_found=True, recursive=recursive))
    prefix = absolute(uri).split("://", 1)[0] + "://" if "://" in absolute(uri) else ""
    sizes = {prefix + i.path: int(i.size or 0) for i in found if i.type == pafs.FileType.File}
    return {n: sizes[n] for n in sorted(sizes) if n.endswith(suffix) and not n.endswith(".tmp")}


def name_of(uri: str) -> str:
    """The last part of a path."""
    return uri.rsplit("/", 1)[-1]


def list_folders(uri: str | os.PathLike) -> list[str]:
    """Names (not paths) of the folders directly below, in order."""
    fs, path = locate(uri)
    found = fs.get_file_info(pafs.FileSelector(path, allow_not_found=True))
    return sorted(i.base_name for i in found if i.type == pafs.FileType.Directory)


def read_bytes(uri: str | os.PathLike) -> bytes:
    fs, path = locate(uri)
    with fs.open_input_file(path) as file:
        return file.read()


def read_range(uri: str | os.PathLike, offset: int, size: int) -> bytes:
    """`size` bytes from `offset`. EOFError when the file ends before."""
    fs, path = locate(uri)
    with fs.open_input_file(path) as file:
        data = file.read_at(size, offset)
    if len(data) != size:
        raise EOFError(f"{uri} ends {size - len(data)} bytes before the end of the range {offset}+{size}")
    return data


def make_folder(uri: str | os.PathLike) -> None:
    fs, path = locate(uri)
    fs.create_dir(path, recursive=True)


def remove(uri: str | os.PathLike) -> None:
    """Delete a file or a folder with all below it; nothing happens when there is none."""
    fs, path = locate(uri)
    kind = fs.get_file_info(path).type
    if kind == pafs.FileType.Directory:
        fs.delete_dir(path)
    elif kind == pafs.FileType.File:
        fs.delete_file(path)


def write_bytes(uri: str | os.PathLike, data: bytes | str) -> None:
    """Write a whole file atomically, making its folder."""
    payload = data.encode() if isinstance(data, str) else data
    fs, path = locate(uri)
    if not isinstance(fs, pafs.LocalFileSystem):
        with fs.open_output_stream(path) as file:
            file.write(payload)
        return
    fs.create_dir(os.path.dirname(path), recursive=True)
    temporary = f"{path}.{uuid.uuid4().hex[:8]}.tmp"
    with open(temporary, "wb") as file:
        file.write(payload)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def copy(uri: str | os.PathLike, to: str | os.PathLike) -> None:
    """Copy a file of any size, between any two places; under its final name it appears whole.

    On one local disk it is linked instead: for files that nobody changes in place.
    """
    (fs, path), (there, target) = locate(uri), locate(to)
    local = isinstance(there, pafs.LocalFileSystem)
    temporary = f"{target}.{uuid.uuid4().hex[:8]}.tmp" if local else target
    if local:
        there.create_dir(os.path.dirname(target), recursive=True)
    if local and isinstance(fs, pafs.LocalFileSystem):
        try:
            os.link(path, temporary)
        except OSError:  # another disk
            shutil.copyfile(path, temporary)
    else:
        with fs.open_input_stream(path) as source, there.open_output_stream(temporary) as sink:
            while block := source.read(1 << 24):
                sink.write(block)
    if local:
        os.replace(temporary, target)


def write_part(folder: str | os.PathLike, table: pa.Table, name: str | None = None) -> str:
    """Append a uniquely named parquet part to a table's folder; the URI written."""
    sink = pa.BufferOutputStream()
    pq.write_table(_readable(table), sink, compression="zstd")
    uri = join(folder, f"part-{name or uuid.uuid4().hex}.parquet")
    write_bytes(uri, sink.getvalue().to_pybytes())
    return uri


def _readable(table: pa.Table) -> pa.Table:
    """Fixed-size lists as plain lists: pyarrow writes a null among them in a way that it cannot read again."""
    for i, field in enumerate(table.schema):
        if pa.types.is_fixed_size_list(field.type):
            table = table.set_column(i, field.name, table.column(i).cast(pa.list_(field.type.value_type)))
    return table


def read_table(uri: str) -> pa.Table:
    """A whole parquet file as it is."""
    fs, path = locate(uri)
    with fs.open_input_file(path) as file:
        return pq.ParquetFile(file).read()


@contextlib.contextmanager
def open_table(uri: str, schema: pa.Schema, plain: Sequence[str] = ()) -> Iterator[pq.ParquetWriter]:
    """A parquet file written table by table; it appears under its name when the block ends without an error.

    plain: columns in which nothing repeats (digests), stored as they are.
    """
    fs, path = locate(uri)
    local = isinstance(fs, pafs.LocalFileSystem)
    temporary = f"{path}.{uuid.uuid4().hex[:8]}.tmp" if local else path
    if local:
        fs.create_dir(os.path.dirname(path), recursive=True)
    packed = {f.name: "none" if f.name in plain else "zstd" for f in schema}
    words = [f.name for f in schema if f.name not in plain and f.name != "key"]
    # pyarrow names a column inside a list by its leaf
    packed |= {f"{f.name}.list.element": "zstd" for f in schema if pa.types.is_list(f.type)}
    try:
        with (
            fs.open_output_stream(temporary) as sink,
            pq.ParquetWriter(sink, schema, compression=packed, use_dictionary=words) as writer,
        ):
            yield writer
        if local:
            os.replace(temporary, path)
    except BaseException:
        if local and os.path.exists(temporary):
            os.remove(temporary)
        raise


def read_parts(folder: str | os.PathLike, schema: pa.Schema, columns: list[str] | None = None) -> pa.Table:
    """All parts of a table in name order, cast to `schema`; an absent folder is an empty table."""
    parts = [table for _, table in each_part(folder, schema, columns)]
    wanted = pa.schema([schema.field(n) for n in columns or schema.names])
    return pa.concat_tables(parts) if parts else wanted.empty_table()


def each_part(
    folder: str | os.PathLike, schema: pa.Schema, columns: list[str] | None = None,
    wanted: Callable[[str], bool] = lambda uri: True,
) -> Iterator[tuple[str, pa.Table]]:  # fmt: skip
    """URI and rows of every part of a table, cast to `schema`; wanted: which of them.

    Parts that are merged meanwhile (`compact`) are read where they went; then some rows come twice.
    """
    done: set[str] = set()
    for _ in range(8):
        for uri in [u for u in list_files(folder, ".parquet", recursive=True) if u not in done and wanted(u)]:
            try:
                table = read_part(uri, schema, columns)
            except FileNotFoundError:
                break
            done.add(uri)
            yield uri, table
        else:
            return
    raise FileNotFoundError(f"the parts below {absolute(folder)} vanish while they are read")


def read_part(uri: str, schema: pa.Schema, columns: list[str] | None = None) -> pa.Table:
    """One part, cast to `schema`; columns that came into the version after it was written are null."""
    names = columns or schema.names
    wanted = pa.schema([schema.field(n) for n in names])
    fs, path = locate(uri)
    with fs.open_input_file(path) as file:
        part = pq.ParquetFile(file)
        table = part.read(columns=[n for n in names if n in part.schema_arrow.names])
    for name in names:
        if name not in table.column_names:
            table = table.append_column(name, pa.nulls(table.num_rows, wanted.field(name).type))
    return table.select(names).cast(wanted)


def scan_part(uri: str, wanted: pa.Schema, rows: int) -> Iterator[tuple[pa.Table, dict[bytes, bytes]]]:
    """One part in tables of at most `rows` rows, cast to `wanted`, each with the part's metadata.

    Columns that came into the version after the part was written are null.
    """
    fs, path = locate(uri)
    words = [f.name for f in wanted if pa.types.is_dictionary(f.type)]
    with fs.open_input_file(path) as file:
        part = pq.ParquetFile(file, read_dictionary=words, pre_buffer=False, buffer_size=1 << 20)
        known = set(part.schema_arrow.names)
        metadata = part.schema_arrow.metadata or {}
        for batch in part.iter_batches(rows, columns=[f.name for f in wanted if f.name in known]):
            table = pa.Table.from_batches([batch]).replace_schema_metadata(None)
            for field in wanted:
                if field.name not in known:
                    table = table.append_column(field, pa.nulls(table.num_rows, field.type))
            yield table.select(wanted.names).cast(wanted), metadata
