"""What a data rank receives: the pixels of one micro-batch, and how it travels as one Arrow row."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from sama.video import Bucket

SCHEMA = pa.schema(
    [
        ("step", pa.int64()), ("micro", pa.int32()), ("rank", pa.int32()), ("facts", pa.large_string()),
        ("source", pa.large_binary()), ("target", pa.large_binary()),
    ]
)  # fmt: skip
_LISTS = ("prompts", "tasks", "keys", "datasets", "categories", "substituted", "windows")
_ARRAYS = {"slots": np.int32, "starts": np.int32, "seeds": np.int64, "weights": np.float32, "drop_source": np.bool_}


@dataclass
class MicroBatch:
    """One rank's part of one micro-step: B samples of one shape. Lists and arrays have length B.

    source, target: (B, T, H, W, 3) uint8; T is 1 for images. weights: 1 for a real slot, 0 for one that only
    fills up; the loss of a step is the sum of weight * loss over all ranks and micro-steps, divided by
    real_global_batch. seeds: 63 bits, the key of every random draw of the slot. drop_source: train this sample
    as if it had no source. micro_steps: rows of each rank in this step. timings: seconds spent on fetch, decode and
    perturb. fetched_bytes, frames: read from storage, and decoded, for this row. rows_ahead, bytes_ahead: made and not
    yet taken when this row came, as far as rank 0 knows it. substituted: one line for every slot whose own media did
    not decode.
    """

    step: int
    micro: int
    rank: int
    stream: str
    bucket: Bucket
    source: np.ndarray
    target: np.ndarray
    prompts: list[str]
    tasks: list[str]
    keys: list[str]
    datasets: list[str]
    categories: list[str]
    slots: np.ndarray  # int32: number of the slot in the global batch
    starts: np.ndarray  # int32: first frame of the window
    seeds: np.ndarray  # int64
    weights: np.ndarray  # float32
    drop_source: np.ndarray  # bool
    real_global_batch: int
    micro_steps: int
    timings: dict[str, float] = field(default_factory=dict)
    fetched_bytes: int = 0
    frames: int = 0
    rows_ahead: int = 0
    bytes_ahead: int = 0
    substituted: list[str] = field(default_factory=list)
    windows: list[str] = field(default_factory=list)  # mixture.windows.window_id of each sample

    @property
    def nbytes(self) -> int:
        """Bytes of the pixels."""
        return self.source.nbytes + self.target.nbytes

    def to_table(self) -> pa.Table:
        """One row of SCHEMA; the pixels are referred to, not copied."""
        facts = {
            "stream": self.stream, "bucket": [self.bucket.frames, self.bucket.height, self.bucket.width],
            "shape": list(self.target.shape), "real_global_batch": self.real_global_batch,
            "micro_steps": self.micro_steps, "timings": self.timings,
            "fetched_bytes": self.fetched_bytes, "frames": self.frames,
            **{n: getattr(self, n) for n in _LISTS}, **{n: getattr(self, n).tolist() for n in _ARRAYS},
        }  # fmt: skip
        numbers = [pa.array([getattr(self, n)], SCHEMA.field(n).type) for n in ("step", "micro", "rank")]
        text = pa.array([json.dumps(facts)], pa.large_string())
        return pa.table([*numbers, text, _binary(self.source), _binary(self.target)], schema=SCHEMA)

    @classmethod
    def from_table(cls, table: pa.Table) -> MicroBatch:
        """The inverse of `to_table`. The pixels are the table's own memory, read-only: it is given back with them."""
        facts = json.loads(table["facts"][0].as_py())
        shape = facts.pop("shape")
        pixels: dict[str, Any] = {n: _pixels(table[n].chunk(0)).reshape(shape) for n in ("source", "target")}
        arrays: dict[str, Any] = {n: np.asarray(facts.pop(n), dtype) for n, dtype in _ARRAYS.items()}
        place = {n: table[n][0].as_py() for n in ("step", "micro", "rank")}
        return cls(**place, bucket=Bucket(*facts.pop("bucket")), **pixels, **arrays, **facts)


def _binary(pixels: np.ndarray) -> pa.Array:
    data = np.ascontiguousarray(pixels)
    ends = pa.py_buffer(np.asarray([0, data.nbytes], np.int64))
    return pa.Array.from_buffers(pa.large_binary(), 1, [None, ends, pa.py_buffer(data.reshape(-1))])


def _pixels(column: pa.LargeBinaryArray) -> np.ndarray:
    """The bytes of the first value, where they lie: a scalar of Arrow would be a copy."""
    _, ends, data = column.buffers()
    first, stop = np.frombuffer(ends, np.int64)[column.offset : column.offset + 2]
    return np.frombuffer(data, np.uint8)[first:stop]
