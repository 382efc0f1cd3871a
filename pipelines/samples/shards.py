"""Shards: plain tars that the `webdataset` library reads, written whole and read by byte range."""

from __future__ import annotations

import io
import os
import posixpath
import tarfile
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow.fs as pafs

from pipelines.samples import storage

_BLOCK = 8 * 2**20


class ShardWriter:
    """Writes one tar; it appears under its name at `close`, or not at all.

    The bytes depend on the members alone (no clock, no user), so a chunk done twice gives the same file.
    Use as a context manager: leaving it with an exception throws the half-written file away.
    """

    def __init__(self, uri: str) -> None:
        self.uri = storage.absolute(uri)
        self._fs, path = storage.locate(self.uri)
        self._remote = None if isinstance(self._fs, pafs.LocalFileSystem) else path
        if self._remote:
            handle, self._temporary = tempfile.mkstemp(suffix=".tar")
            os.close(handle)
        else:
            storage.make_folder(os.path.dirname(path))
            self._temporary = f"{path}.{uuid.uuid4().hex[:8]}.tmp"
        self._file = open(self._temporary, "wb")  # noqa: SIM115  closed by close() or discard()
        self._tar = tarfile.TarFile(fileobj=self._file, mode="w", format=tarfile.PAX_FORMAT)

    def add(self, key: str, members: dict[str, bytes]) -> dict[str, tuple[str, int, int]]:
        """Append a sample; suffix ("source.mp4", "json") -> bytes, in this order.

        Returns the first part of each suffix -> (URI, byte offset, size).
        """
        locations = {}
        for suffix, data in members.items():
            info = tarfile.TarInfo(f"{key}.{suffix}")
            info.size, info.mode = len(data), 0o644
            self._tar.addfile(info, io.BytesIO(data))
            start = self._tar.offset - -(-len(data) // 512) * 512
            locations[suffix.split(".")[0]] = (self.uri, start, len(data))
        return locations

    def close(self) -> None:
        self._tar.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        if not self._remote:
            os.replace(self._temporary, self.uri)
            return
        with open(self._temporary, "rb") as source, self._fs.open_output_stream(self._remote) as sink:
            while block := source.read(_BLOCK):
                sink.write(block)
        os.unlink(self._temporary)

    def discard(self) -> None:
        self._file.close()
        if os.path.exists(self._temporary):
            os.unlink(self._temporary)

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close() if kind is None else self.discard()


@dataclass
class Entry:
    """The members of one key in a tar: suffix -> (byte offset, size)."""

    key: str
    members: dict[str, tuple[int, int]] = field(default_factory=dict)


class ShardError(Exception):
    """The rest of a tar cannot be read; the entries before it were already given."""


def read_shard(uri: str) -> Iterator[Entry]:
    """The entries of a tar in order, headers only; folders and links are passed over.

    Neighbouring members with one key make an entry. ShardError, after the entries that are whole, when the
    file is not a tar, is compressed, or ends or turns to garbage in the middle. A tar without its end mark
    passes if its last member is whole: many writers leave it out.
    """
    fs, path = storage.locate(uri)
    with fs.open_input_file(path) as file:
        length = file.size()
        entry: Entry | None = None
        fault: str | None = None
        try:
            tar = tarfile.TarFile(fileobj=file, mode="r")
            for info in tar:
                if not info.isfile():
                    continue
                key, _, suffix = posixpath.basename(info.name).partition(".")
                if info.offset_data + info.size > length:
                    fault = f"the archive ends inside {info.name}"
                    entry = None if entry and entry.key == key else entry
                    break
                if entry is None or entry.key != key:
                    if entry:
                        yield entry
                    entry = Entry(key)
                entry.members[suffix] = (info.offset_data, info.size)
            fault = fault or _unread(file, tar.offset, length)
        except tarfile.TarError as error:
            fault = _reason(file, length, error)
        if entry:
            yield entry
        if fault:
            raise ShardError(fault)


def _unread(file: Any, offset: int, length: int) -> str | None:
    """What `tarfile` does not say: it takes a cut or garbled header for the end of the archive."""
    if offset >= length:
        return None
    file.seek(offset)
    block = file.read(512)
    if block.strip(b"\0"):
        return f"the archive ends inside a header, or holds something else from byte {offset} on"
    return None


def _reason(file: Any, length: int, error: Exception) -> str:
    file.seek(0)
    start = file.read(6)
    if start[:2] == b"\x1f\x8b" or start[:3] == b"BZh" or start == b"\xfd7zXZ\x00" or start[:4] == b"\x28\xb5\x2f\xfd":
        return "the archive is compressed: unpack it to a plain tar, so that members can be read by range"
    return f"not a readable tar: {error}" if length else "the archive is empty"
