"""From decoded frames to what the model trains on, with the frozen encoders of the preset."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from sama.objective import EncodedBatch
from sama.semantic import anchor_indices

if TYPE_CHECKING:
    from pipelines.loading import MicroBatch
    from sama.encoders import Encoders


class BatchEncoder:
    """MicroBatch (uint8 frames, text) -> EncodedBatch (latents, embeddings, semantic features) on one device.

    anchors: anchor frames per clip, taken from the target (method: section 3).
    """

    def __init__(self, encoders: Encoders, anchors: int, device: torch.device) -> None:
        self.encoders, self.anchors, self.device = encoders, anchors, device

    @torch.no_grad()
    def __call__(self, batch: MicroBatch) -> EncodedBatch:
        target = torch.from_numpy(np.ascontiguousarray(batch.target))
        source = torch.from_numpy(np.ascontiguousarray(batch.source))
        anchors = target[:, anchor_indices(target.shape[1], self.anchors)]
        source_latents = self._move(self.encoders.encode_video(source))
        dropped = torch.as_tensor(np.asarray(batch.drop_source, dtype=bool), device=self.device)
        if bool(dropped.any()):  # zeros stand for "no source": one shape for the whole batch
            source_latents = source_latents.masked_fill(dropped.view(-1, 1, 1, 1, 1), 0.0)
        return EncodedBatch(
            latents=self._move(self.encoders.encode_video(target)),
            source_latents=source_latents,
            text_embeds=self._move(self.encoders.encode_text(list(batch.prompts))),
            semantic=self._move(self.encoders.encode_semantic(anchors)),
            seeds=[int(s) for s in batch.seeds],
            weights=torch.as_tensor(np.asarray(batch.weights, dtype=np.float32), device=self.device),
        )

    def _move(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self.device)
