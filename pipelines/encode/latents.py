"""Clean latents with their semantic features: what an entry of the cache holds and under which key it lies.

An entry is float16: the target's latents (C, T', H', W'), those of the source where the sample has one of its own, and
the semantic features of the target's anchor frames (N, semantic_dim). One window per sample: the mixture's head window.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.encode.store import Store, as_keys
from pipelines.mixture.mixture import VideoStream
from pipelines.mixture.windows import window_id
from pipelines.samples import storage
from sama.errors import InputError

if TYPE_CHECKING:
    import torch

    from pipelines.mixture import BatchPlan
    from pipelines.mixture.mixture import Mixture
    from sama.encoders import Encoders
    from sama.presets import Preset
    from sama.video import Bucket

FOLDER, DTYPE = "latents", "float16"
SLICE = 1 << 16  # rows whose keys are computed at a time


@dataclass
class Clean:
    """One sample's entry, float32. source: None where the sample has no source of its own."""

    target: torch.Tensor
    source: torch.Tensor | None
    semantic: torch.Tensor


def identity(encoders: Encoders, anchors: int) -> dict[str, Any]:
    """What the entries of a latents cache depend on."""
    return {"vae_digest": encoders.digest_of("vae"), "semantic_digest": encoders.digest_of("semantic"),
            "anchors": anchors}  # fmt: skip


def facts(encoders: Encoders, anchors: int) -> dict[str, Any]:
    """What the latents part of a cache holds (store.json)."""
    from pipelines.encode.parts import dtype_name

    return {
        "kind": "latents", "dtype": DTYPE, "computed_in": dtype_name(encoders.dtype), **identity(encoders, anchors)
    }  # fmt: skip


def keys_of(windows: Iterable[str], who: dict[str, Any]) -> np.ndarray:
    """Keys ("S32") of windows (`window_id`) under an `identity`."""
    end = "".join(f"\n{k}={v}" for k, v in sorted(who.items()))
    return as_keys(hashlib.sha256(f"{window}{end}".encode()).digest() for window in windows)


def check(mixture: Mixture) -> None:
    """InputError when windows are random: a cache holds one window per sample."""
    for stream in mixture.active():
        how = mixture.stream(stream)
        if isinstance(how, VideoStream) and how.window != "head":
            raise InputError(
                f"the {stream} stream draws {how.window} windows and a latents cache holds one window per sample: "
                "set streams.video.window to head, or leave the latents uncached"
            )


def row_keys(plan: BatchPlan, who: dict[str, Any]) -> np.ndarray:
    """The key of every row of the plan ("S32"), in order."""
    found = [np.zeros(0, "S32")]
    for group in plan.groups:
        for first in range(group.first, group.first + group.size, SLICE):
            found.append(keys_at(plan, np.arange(first, min(first + SLICE, group.first + group.size)), who))
    return np.concatenate(found)


def keys_at(plan: BatchPlan, rows: np.ndarray, who: dict[str, Any]) -> np.ndarray:
    """The keys of some rows."""
    numbers = np.searchsorted([g.first for g in plan.groups], rows, side="right") - 1
    facts = plan.table_of(rows, ["sample_digest", "source_stride", "target_stride"]).to_pylist()
    return keys_of((window_id(f, 0, plan.groups[n].bucket) for f, n in zip(facts, numbers.tolist(), strict=True)), who)


def row_bytes(plan: BatchPlan, preset: Preset, anchors: int) -> np.ndarray:
    """Bytes of every row's entry (int64), in order."""
    found = [np.zeros(0, np.int64)]
    for group in plan.groups:
        one, both = (2 * entry_values(preset, group.bucket, anchors, own) for own in (False, True))
        for first in range(group.first, group.first + group.size, SLICE):
            numbers = np.arange(first, min(first + SLICE, group.first + group.size))
            kinds = plan.table_of(numbers, ["kind"])["kind"].to_pylist()
            found.append(np.asarray([one if kind == "text_to_video" else both for kind in kinds], np.int64))
    return np.concatenate(found)


def entry_values(preset: Preset, bucket: Bucket, anchors: int, own_source: bool) -> int:
    """Numbers in an entry."""
    video = math.prod(preset.latent_shape(bucket.frames, bucket.height, bucket.width))
    return video * (2 if own_source else 1) + min(anchors, bucket.frames) * preset.semantic_tokens * preset.semantic_dim


def pack(clean: Clean) -> memoryview:
    """The bytes of an entry."""
    parts = [clean.target, *([clean.source] if clean.source is not None else []), clean.semantic]
    return np.concatenate([p.cpu().numpy().astype(np.float16).reshape(-1) for p in parts]).view(np.uint8).data


def unpack(data: np.ndarray, preset: Preset, bucket: Bucket, anchors: int) -> Clean:
    """The inverse of `pack`. ValueError when the bytes are not an entry of this shape."""
    import torch

    shape = preset.latent_shape(bucket.frames, bucket.height, bucket.width)
    values = torch.from_numpy(data.view(np.float16).astype(np.float32))
    own_source = len(values) == entry_values(preset, bucket, anchors, True)
    if not own_source and len(values) != entry_values(preset, bucket, anchors, False):
        raise ValueError(f"an entry of {len(values)} values does not hold latents of {shape}")
    video = math.prod(shape)
    target, source = values[:video], values[video : 2 * video] if own_source else None
    semantic = values[video * (2 if own_source else 1) :].reshape(-1, preset.semantic_dim)
    return Clean(target.reshape(shape), None if source is None else source.reshape(shape), semantic)


class LatentCache:
    """Entries of a cache by window."""

    def __init__(self, cache: str, encoders: Encoders, anchors: int) -> None:
        """InputError when there is no cache, or it is that of other encoders.

        The precision in which it was computed may differ from that of training: it is the cache's own.
        """
        import torch

        from sama.encoders import Encoders as Made

        folder = storage.join(cache, FOLDER)
        if not storage.exists(folder):
            raise InputError(f"{cache} holds no latents: run `sama encode MIXTURE --data ROOT --out {cache} --latents`")
        self.store, self.preset = Store(folder), encoders.preset
        dtype = getattr(torch, str(self.store.facts.get("computed_in")), torch.float32)
        self._who = identity(Made(encoders.preset, "cpu", dtype, encoders.sources), anchors)
        for name, value in self._who.items():
            if self.store.facts.get(name) != value:
                raise InputError(f"{cache} was made with {name} {self.store.facts.get(name)}, training has {value}")

    def get(self, windows: list[str], bucket: Bucket) -> list[Clean | None]:
        """The entry of each window, None where there is none."""
        keys = keys_of(windows, self._who)
        there = self.store.has(keys)
        found = iter(self.store.read(keys[there]))
        anchors = self._who["anchors"]
        return [unpack(next(found), self.preset, bucket, anchors) if yes else None for yes in there.tolist()]

    def has_rows(self, plan: BatchPlan, rows: np.ndarray) -> np.ndarray:
        """Which rows of a plan have their entry (bool)."""
        return self.store.has(keys_at(plan, rows, self._who))
