"""Checkpoints: torch.distributed.checkpoint, each rank its own shards, onto any file system that Arrow knows.

`RUN/checkpoints/step-N/` holds the tensors when steps 0..N-1 are done. `state.json` in it is written last and alone
makes it a checkpoint: a folder without it is what a crash left, never read, and overwritten. Only tensors go through
DCP (whose metadata is a pickle, read through an unpickler that knows a dozen harmless names); all else is in state.json.
"""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyarrow.fs as pafs
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import DefaultLoadPlanner, DefaultSavePlanner, FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.filesystem import FileSystemBase
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata

from pipelines.samples import storage
from sama.errors import InputError

FOLDER, MARKER = "checkpoints", "state.json"
METADATA = ".metadata"
LEASE = "lease.json"


class Superseded(Exception):
    """Another job has taken over this run folder: whoever is told this must stop writing."""


def folder_of(run: str, step: int) -> str:
    return storage.join(run, FOLDER, f"step-{step}")


def complete_steps(run: str) -> list[int]:
    """Steps of all whole checkpoints of a run, ascending."""
    names = storage.list_folders(storage.join(run, FOLDER))
    steps = sorted(int(n[5:]) for n in names if n.startswith("step-") and n[5:].isdigit())
    return [s for s in steps if storage.exists(storage.join(folder_of(run, s), MARKER))]


def newest_step(run: str) -> int | None:
    """The step at which a run would go on; None before the first checkpoint."""
    return max(complete_steps(run), default=None)


def read_state(run: str, step: int) -> dict[str, Any]:
    """The scalars of a checkpoint."""
    return json.loads(storage.read_bytes(storage.join(folder_of(run, step), MARKER)))


def take_lease(run: str, holder: str) -> None:
    """Say who may write checkpoints into this run folder from now on."""
    storage.write_bytes(storage.join(run, LEASE), json.dumps({"holder": holder}))


def check_lease(run: str, holder: str | None) -> None:
    """Superseded when somebody else took the run folder over in the meantime."""
    if holder is None:
        return
    found = json.loads(storage.read_bytes(storage.join(run, LEASE)))["holder"]
    if found != holder:
        raise Superseded(f"another training job has taken over {run}")


def save(
    run: str, step: int, tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any], holder: str | None = None
) -> str:
    """Write a checkpoint; every rank calls it with its shards and the same step, and it is whole when rank 0 returns.

    state: scalars only, JSON. holder: the lease under which this job runs (see `take_lease`).
    """
    target = folder_of(run, step)
    first = not dist.is_initialized() or dist.get_rank() == 0
    if first:
        check_lease(run, holder)
        storage.remove(target)
        storage.make_folder(target)
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.barrier()
    dcp.save(
        dict(tensors),
        storage_writer=_Writer(target),
        planner=DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False),
        no_dist=not dist.is_initialized(),
    )
    if first:
        check_lease(run, holder)
        storage.write_bytes(storage.join(target, MARKER), json.dumps({"schema": "sama.checkpoint/1", **state}, indent=1))
    return target


def load(run: str, step: int, tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Fill `tensors` in place from a checkpoint, resharding as needed; the state. Every rank calls it."""
    load_tensors(folder_of(run, step), tensors)
    return read_state(run, step)


def load_tensors(uri: str, tensors: Mapping[str, torch.Tensor]) -> None:
    """Fill `tensors` in place from a checkpoint folder. KeyError names a tensor that it lacks."""
    dcp.load(
        dict(tensors),
        storage_reader=_Reader(uri),
        planner=DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False),
        no_dist=not dist.is_initialized(),
    )


def read_full(uri: str, prefix: str) -> dict[str, torch.Tensor]:
    """All tensors whose name starts with `prefix`, whole, on the CPU, without the prefix; needs no process group."""
    found = _Reader(uri).read_metadata().state_dict_metadata
    named = {k: v for k, v in found.items() if k.startswith(prefix) and isinstance(v, TensorStorageMetadata)}
    tensors = {k: torch.empty(v.size, dtype=v.properties.dtype) for k, v in named.items()}
    dcp.load(
        dict(tensors),
        storage_reader=_Reader(uri),
        planner=DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False),
        no_dist=True,
    )
    return {k.removeprefix(prefix): t for k, t in tensors.items()}


def prune(run: str, keep: int) -> list[int]:
    """Delete all but the newest `keep` checkpoints, and what crashes left; the steps deleted."""
    whole = complete_steps(run)
    kept = whole[-keep:]
    for name in storage.list_folders(storage.join(run, FOLDER)):
        if name not in {f"step-{s}" for s in kept}:
            gone = storage.join(run, FOLDER, name)
            storage.remove(storage.join(gone, MARKER))  # first, so that half a folder is never taken for a whole one
            storage.remove(gone)
    return whole[:-keep]


def load_weights(run: str, step: int | None = None, which: str = "ema") -> tuple[dict[str, torch.Tensor], str, dict]:
    """Weights of a run: (state dict of whole float32 tensors, preset name, the checkpoint's state).

    which: `ema` (the averaged weights, what one normally wants) or `raw`. step: None for the newest checkpoint.
    """
    run = storage.absolute(run)
    if not storage.is_folder(run):
        raise InputError(f"there is no run folder {run}")
    steps = complete_steps(run)
    if not steps:
        raise InputError(f"{run} has no checkpoint yet")
    if step is not None and step not in steps:
        raise InputError(f"{run} has no checkpoint of step {step}; there are {', '.join(map(str, steps))}")
    step = steps[-1] if step is None else step
    state = read_state(run, step)
    prefix = {"ema": "ema.", "raw": "model."}[which]
    return read_full(folder_of(run, step), prefix), state["preset"], state


def load_ema(run: str, step: int | None = None) -> tuple[dict[str, torch.Tensor], str, dict]:
    """The averaged weights of a run; see `load_weights`."""
    return load_weights(run, step, "ema")


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


class _Writer(FileSystemWriter):
    def __init__(self, uri: str) -> None:
        # an object store has no fsync, and os.sync() would flush the whole machine instead
        super().__init__(uri, sync_files="://" not in uri)
        self.fs = _ArrowFiles()  # type: ignore[assignment]
        self.path = self.fs.init_path(uri)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        return True


class _Reader(FileSystemReader):
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
