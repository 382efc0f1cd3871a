"""Sample strips: source, wanted result and the model's result of a few held-out samples, as one picture each."""

from __future__ import annotations

import copy
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pipelines.config import Settings
from pipelines.samples import storage
from pipelines.train.heldout import label_of
from pipelines.train.loop import Parts, StepNotes
from sama.video import encode_image

if TYPE_CHECKING:
    from pipelines.loading import MicroBatch
    from pipelines.mixture import BatchPlan
    from pipelines.mixture.batch import HeldOut
    from pipelines.tracking import Tracker
    from sama.encoders import Encoders

FOLDER = "samples"
STRIPS = 3  # samples shown: each costs `strip_steps` forward passes on every rank
FRAMES = 5  # of a clip, evenly spread
GAP = 4  # pixels between pictures


class Strips:
    """Writes samples/step-N-<label>-<key>.png every `strip_every` steps: one row each for source, target, prediction.

    The prediction is sampled with the raw weights in `strip_steps` Euler steps without guidance: what the weights say.
    All ranks do the same forward passes, as sharded weights need it; rank 0 decodes and writes in a thread, while
    training goes on. Call `close` at the end.
    """

    def __init__(
        self, plan: BatchPlan, items: list[HeldOut], settings: Settings, encoders: Encoders, tracker: Tracker | None
    ) -> None:
        how = settings.train
        self.every, self.steps, self.shift = how.strip_every, how.strip_steps, how.shift
        self.plan, self.encoders, self.tracker = plan, encoders, tracker
        self.items = choose(items, STRIPS)
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def __call__(self, parts: Parts, row: dict[str, Any], notes: StepNotes) -> None:
        step = parts.progress.step
        if step % self.every and step != parts.steps:
            return
        drawn = [(item, *self.sample(parts, item)) for item in self.items]
        if not parts.world.first or not drawn:
            return
        self.close()  # one set of pictures at a time

        def write() -> None:
            try:
                self._write(parts.run, step, drawn)
            except Exception as error:  # raised by the next call
                self._error = error

        self._thread = threading.Thread(target=write, name="strips", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Wait for the pictures; raise what went wrong with them."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    @torch.no_grad()
    def sample(self, parts: Parts, item: HeldOut) -> tuple[MicroBatch, torch.Tensor]:
        """A sample and the latents of what the model makes of it; every rank calls it."""
        from pipelines.loading import read_item
        from sama.editing import EditPipeline, EditSettings

        batch = read_item(self.plan, item)
        encoded = parts.encode(batch)
        assert encoded.source_latents is not None
        how = EditSettings(
            steps=self.steps, shift=self.shift, guidance=1.0, seed=item.slot.seed,
            frames_per_window=item.bucket.frames, anchors=min(self.plan.mixture.anchors.n, item.bucket.frames),
        )  # fmt: skip
        training = parts.model.training
        pipeline = EditPipeline(parts.model, self.encoders)
        latents = pipeline.sample(encoded.source_latents, encoded.text_embeds, encoded.text_embeds, how)
        parts.model.train(training)
        return batch, latents

    def _write(self, run: str, step: int, drawn: list[tuple[HeldOut, MicroBatch, torch.Tensor]]) -> None:
        # the VAE keeps what it has seen of a clip in itself: training encodes with it at the same time, so another
        # face of the same weights decodes here
        decoder = copy.copy(self.encoders)
        decoder.vae = copy.copy(self.encoders.vae)
        for item, batch, latents in drawn:
            predicted = decoder.decode_video(latents)[0].numpy()
            picture = encode_image(strip([batch.source[0], batch.target[0], predicted]))
            uri = storage.join(run, FOLDER, f"step-{step:06d}-{label_of(item)}-{item.slot.key}.png")
            storage.write_bytes(uri, picture)
            if self.tracker is not None:
                self.tracker.artifact(uri, FOLDER)


def choose(items: list[HeldOut], count: int) -> list[HeldOut]:
    """A few samples, clips before images, and of as many different tasks or categories as there are."""
    found: list[HeldOut] = []
    for fresh in (True, False):
        for item in sorted(items, key=lambda i: i.stream != "video"):
            known = {label_of(f) for f in found}
            if len(found) < count and item not in found and (not fresh or label_of(item) not in known):
                found.append(item)
    return found


def strip(clips: list[np.ndarray]) -> np.ndarray:
    """Clips (T, H, W, 3) of one shape under each other, FRAMES of each side by side, on white; (H', W', 3) uint8."""
    frames, height, width = clips[0].shape[:3]
    shown = sorted({round(i * (frames - 1) / max(1, FRAMES - 1)) for i in range(FRAMES)})
    sheet = np.full(
        (len(clips) * (height + GAP) - GAP, len(shown) * (width + GAP) - GAP, 3), 255, np.uint8
    )  # fmt: skip
    for line, clip in enumerate(clips):
        for column, index in enumerate(shown):
            top, left = line * (height + GAP), column * (width + GAP)
            sheet[top : top + height, left : left + width] = clip[min(index, len(clip) - 1)]
    return sheet
