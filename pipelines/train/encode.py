"""From decoded frames to what the model trains on, with the frozen encoders of the preset and their caches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from pipelines.config import Settings
from pipelines.encode.latents import Clean, LatentCache
from pipelines.encode.text import Announcer, TextSource, source_of
from sama.errors import InputError
from sama.objective import EncodedBatch
from sama.semantic import anchor_indices

if TYPE_CHECKING:
    from pipelines.loading import MicroBatch
    from pipelines.train.parallel import World
    from sama.encoders import Encoders

SAME = "none"  # the task whose source is its target


class BatchEncoder:
    """MicroBatch (uint8 frames, text) -> EncodedBatch (latents, embeddings, semantic features) on one device.

    anchors: anchor frames per clip, taken from the target (method: section 3). text: where embeddings come from, by
    default the encoders themselves. latents: a cache; what it does not hold, and every perturbed source, is encoded
    here. The four `encode_*` methods go past that cache.
    """

    def __init__(
        self,
        encoders: Encoders,
        anchors: int,
        device: torch.device,
        text: TextSource | None = None,
        latents: LatentCache | None = None,
    ) -> None:
        self.encoders, self.anchors, self.device = encoders, anchors, device
        self.text, self.latents = text, latents

    @torch.no_grad()
    def __call__(self, batch: MicroBatch) -> EncodedBatch:
        clean = self._cached(batch)
        target, semantic = self._targets(batch, clean)
        return EncodedBatch(
            latents=target,
            source_latents=self._sources(batch, target, clean),
            text_embeds=self.encode_text(batch.prompts),
            semantic=semantic,
            seeds=[int(s) for s in batch.seeds],
            weights=torch.as_tensor(np.asarray(batch.weights, dtype=np.float32), device=self.device),
        )

    def encode_target(self, frames: torch.Tensor | np.ndarray) -> torch.Tensor:
        """Clips (B, T, H, W, 3) uint8 to normalised latents (B, C, T', H', W') float32."""
        return self._video(frames)

    def encode_source(self, frames: torch.Tensor | np.ndarray) -> torch.Tensor:
        """As `encode_target`, for the side that is shown and not noised."""
        return self._video(frames)

    def encode_text(self, prompts: Sequence[str]) -> torch.Tensor:
        """Prompts to embeddings (B, max_length, text_dim), zeros behind the text."""
        read = self.encoders.encode_text if self.text is None else self.text
        return read(list(prompts)).to(self.device)

    def encode_semantic(self, frames: torch.Tensor | np.ndarray) -> torch.Tensor:
        """Anchor frames (B, N, H, W, 3) uint8 to features (B, 65 N, semantic_dim) float32."""
        return self.encoders.encode_semantic(_pixels(frames)).to(self.device)

    def anchor_frames(self, target: np.ndarray) -> torch.Tensor:
        """The anchor frames (B, N, H, W, 3) of target clips (B, T, H, W, 3), uint8."""
        return _pixels(target[:, anchor_indices(target.shape[1], self.anchors)])

    def _video(self, frames: torch.Tensor | np.ndarray) -> torch.Tensor:
        return self.encoders.encode_video(_pixels(frames)).to(self.device)

    def _cached(self, batch: MicroBatch) -> list[Clean | None]:
        return [None] * len(batch.prompts) if self.latents is None else self.latents.get(batch.windows, batch.bucket)

    def _targets(self, batch: MicroBatch, clean: list[Clean | None]) -> tuple[torch.Tensor, torch.Tensor]:
        """Latents and semantic features of all samples."""
        live = [i for i, c in enumerate(clean) if c is None]
        if len(live) == len(clean):
            return self.encode_target(_pixels(batch.target)), self.encode_semantic(self.anchor_frames(batch.target))
        latents = torch.stack([c.target if c else torch.zeros_like(_some(clean).target) for c in clean])
        semantic = torch.stack([c.semantic if c else torch.zeros_like(_some(clean).semantic) for c in clean])
        latents, semantic = latents.to(self.device), semantic.to(self.device)
        if live:
            latents[live] = self.encode_target(_pixels(batch.target[live]))
            semantic[live] = self.encode_semantic(self.anchor_frames(batch.target[live]))
        return latents, semantic

    def _sources(self, batch: MicroBatch, target: torch.Tensor, clean: list[Clean | None]) -> torch.Tensor:
        """Latents of all sources. Zeros stand for "no source": one shape for the whole batch."""
        latents, live = torch.zeros_like(target), []
        for i, (task, dropped, found) in enumerate(zip(batch.tasks, batch.drop_source, clean, strict=True)):
            if dropped:
                continue
            if task == SAME:
                latents[i] = target[i]
            elif found is not None and found.source is not None:
                latents[i] = found.source.to(self.device)
            else:
                live.append(i)
        if len(live) == len(clean):
            return self.encode_source(_pixels(batch.source))
        if live:
            latents[live] = self.encode_source(_pixels(batch.source[live]))
        return latents


def build_encoder(
    settings: Settings, encoders: Encoders, anchors: int, world: World, ahead: Announcer | None = None
) -> BatchEncoder:
    """What the settings `text` and `latents` ask for. ahead: announces coming prompts to it; InputError where a cache
    is that of other encoders, or mode actors has no actors."""
    if settings.text.sharded and world.sequence > 1:
        raise InputError("text.sharded needs every worker at every text, and a sequence group asks once: use offload")
    cache = settings.latents.cache
    return BatchEncoder(
        encoders,
        anchors,
        world.device,
        source_of(settings.text, encoders, world.mesh, ahead, world.rank),
        LatentCache(cache, encoders, anchors) if cache is not None else None,
    )


def _pixels(frames: torch.Tensor | np.ndarray) -> torch.Tensor:
    return frames if isinstance(frames, torch.Tensor) else torch.from_numpy(np.ascontiguousarray(frames))


def _some(clean: list[Clean | None]) -> Clean:
    return next(c for c in clean if c is not None)
