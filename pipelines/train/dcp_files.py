"""torch.distributed.checkpoint on any file system that Arrow knows, with an unpickler that runs nothing."""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow.fs as pafs
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.filesystem import FileSystemBase
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta

from pipelines.samples import storage
from sama.errors import InputError

METADATA = ".metadata"


class _ArrowFiles(FileSystemBase):
    """The few operations that DCP needs, through pyarrow.fs."""

    @contextmanager
    def create_stream(self, path: Any, mode: str) -> Iterator[Any]:
        fs, name = storage.locate(str(path))
        if isinstance(fs, pafs.LocalFileSystem):
            with open(name, mode) as file:
                yield file
        elif mode == "rb":
            with fs.open_input_file(name) as stream:
                yield _Stream(stream)
        else:
            with fs.open_output_stream(name) as stream:
                yield _Stream(stream)

    def concat_path(self, path: Any, suffix: str) -> str:
        return storage.join(str(path), suffix)

    def rename(self, path: Any, new_path: Any) -> None:
        fs, name = storage.locate(str(path))
        fs.move(name, storage.locate(str(new_path))[1])

    def init_path(self, path: Any) -> str:
        return storage.absolute(str(path))

    def mkdir(self, path: Any) -> None:
        storage.make_folder(str(path))

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        return True

    def exists(self, path: Any) -> bool:
        return storage.exists(str(path))

    def rm_file(self, path: Any) -> None:
        storage.remove(str(path))


class _Stream(io.RawIOBase):
    """An Arrow stream with the manners of a Python file that torch.save and torch.load expect."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return bool(self._stream.readable())

    def writable(self) -> bool:
        return bool(self._stream.writable())

    def seekable(self) -> bool:
        return bool(self._stream.seekable())

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def write(self, data: Any) -> int:
        self._stream.write(bytes(data))
        return len(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        return int(self._stream.seek(offset, whence))

    def tell(self) -> int:
        return int(self._stream.tell())

    def close(self) -> None:
        if not self.closed:
            self._stream.close()
        super().close()


class Writer(FileSystemWriter):
    def __init__(self, uri: str) -> None:
        # an object store has no fsync, and os.sync() would flush the whole machine instead
        super().__init__(uri, sync_files="://" not in uri)
        self.fs = _ArrowFiles()  # type: ignore[assignment]
        self.path = self.fs.init_path(uri)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        return True


class Reader(FileSystemReader):
    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self.fs = _ArrowFiles()  # type: ignore[assignment]
        self.path = self.fs.init_path(uri)

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        data = storage.read_bytes(self.fs.concat_path(self.path, METADATA))
        metadata = _Unpickler(io.BytesIO(data)).load()
        if metadata.storage_meta is None:
            metadata.storage_meta = StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        return True


class _Unpickler(pickle.Unpickler):
    """Reads DCP's metadata and nothing else: these names build plain records, none of them runs anything."""

    ALLOWED = frozenset(
        {
            ("torch", "Size"),
            ("torch", "float32"),
            ("torch", "bfloat16"),
            ("torch", "uint8"),  # quantised optimizer states
            ("torch.serialization", "_get_layout"),
            ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
            ("torch.distributed.checkpoint.metadata", "_MEM_FORMAT_ENCODING"),
            ("torch.distributed.checkpoint.metadata", "ChunkStorageMetadata"),
            ("torch.distributed.checkpoint.metadata", "Metadata"),
            ("torch.distributed.checkpoint.metadata", "MetadataIndex"),
            ("torch.distributed.checkpoint.metadata", "StorageMeta"),
            ("torch.distributed.checkpoint.metadata", "TensorProperties"),
            ("torch.distributed.checkpoint.metadata", "TensorStorageMetadata"),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise InputError(f"the checkpoint's metadata asks for {module}.{name}, which no checkpoint of ours holds")
        return super().find_class(module, name)
