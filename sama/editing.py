"""The edit pipeline: a source clip and an instruction in, the edited clip out (method: sections 1, 2 and 4).

The source's latents stand clean beside the target's; target latents and semantic tokens start as noise and are
integrated together. A clip longer than one window is edited in overlapping windows that advance step by step
side by side: where they overlap their velocities are blended, and the semantic tokens belong to the first window
alone and are shown to all others, so that every window follows one decision about what to change.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from sama import sampler
from sama.errors import InputError
from sama.offload import blocks_on
from sama.randomness import normal
from sama.sampler import State

NO_SOURCE = ("zeros", "omit")
TEMPORAL = 4  # frames per latent frame, of every Wan VAE

Watch = Callable[[Iterable[int]], Iterable[int]]


@dataclass(frozen=True)
class EditSettings:
    """How an edit is sampled. The defaults are the released script's (method: section 4).

    guidance: the CFG scale; 1 asks the model once per step. With `source_guidance` set it is the s_T and
    source_guidance the s_I of the separate formula (`sama.sampler.separate_guidance`), three forwards per step.
    frames_per_window: the longest piece the model sees at once, 4k+1 frames. overlap: frames that neighbouring
    windows share at least; None for a quarter of a window. anchors: semantic anchor frames; 0 without.
    negative_prompt: what guidance leads away from; None for the bare prefix. no_source: what the model sees in
    v(0, .) of the separate formula: `zeros` in the source's latents, as released and as trained by source dropout,
    or `omit`: no source tokens.
    """

    steps: int = 50
    shift: float = 5.0
    guidance: float = 5.0
    source_guidance: float | None = None
    seed: int = 0
    prefix: str = "[Video edit] "
    frames_per_window: int = 81
    overlap: int | None = None
    anchors: int = 1
    negative_prompt: str | None = None
    no_source: str = "zeros"

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise InputError(f"steps must be at least 1, not {self.steps}")
        for name in ("shift", "guidance", "source_guidance"):
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise InputError(f"{name} must be a number, not {value}")
        if self.shift <= 0:
            raise InputError(f"shift must be above 0, not {self.shift}")
        if self.seed < 0:
            raise InputError(f"seed must be 0 or more, not {self.seed}")
        if self.anchors < 0:
            raise InputError(f"anchors must be 0 or more, not {self.anchors}")
        if self.no_source not in NO_SOURCE:
            raise InputError(f"{self.no_source} is not a way to leave the source out; there are {', '.join(NO_SOURCE)}")
        if self.frames_per_window < 1 or self.frames_per_window % TEMPORAL != 1:
            raise InputError(f"frames per window must be 4k+1 (1, 5, 9, ... 81), not {self.frames_per_window}")
        if self.overlap is not None and not 0 <= self.overlap < self.frames_per_window:
            raise InputError(f"an overlap of {self.overlap} frames does not fit windows of {self.frames_per_window}")

    def prompts(self, instructions: Sequence[str]) -> list[str]:
        """What the text encoder reads: the negative prompt, then each instruction behind the prefix."""
        negative = self.prefix.strip() if self.negative_prompt is None else self.negative_prompt
        return [negative, *(self.prefix + instruction.strip() for instruction in instructions)]

    @property
    def window(self) -> int:
        """Latent frames of one window."""
        return latent_frames(self.frames_per_window)

    @property
    def shared(self) -> int:
        """Latent frames that neighbouring windows share at least."""
        if self.window == 1:
            return 0
        if self.overlap is None:
            return max(1, self.window // 4)
        return min(-(-self.overlap // TEMPORAL), self.window - 1)


def latent_frames(frames: int) -> int:
    """Latent frames of a clip of 4k+1 frames: the first frame has one of its own, every four more share one."""
    return (frames - 1) // TEMPORAL + 1


def pad_length(frames: np.ndarray) -> np.ndarray:
    """Hold the last frame until the length is 4k+1; (T, H, W, 3) in and out."""
    missing = -(len(frames) - 1) % TEMPORAL
    return np.concatenate([frames, np.repeat(frames[-1:], missing, axis=0)]) if missing else frames


class EditPipeline:
    """A `SamaTransformer` and the `Encoders` of its preset, ready to edit. Nothing here keeps state between edits.

    offload: a device too small for both at once. Transformer and encoders live on the CPU and each is there only
    while it works; the text encoder, the largest, is dropped once the prompts are encoded. by_block: the transformer
    alone is too large for it, so that its blocks are there one at a time.
    """

    def __init__(
        self, model: Any, encoders: Any, offload: str | torch.device | None = None, by_block: bool = False
    ) -> None:
        self.model = model.eval()
        self.encoders = encoders
        self.offload = None if offload is None else torch.device(offload)
        self.by_block = by_block
        if self.offload:
            self.model.to("cpu")
            self.encoders.to("cpu")

    def edit(
        self,
        frames: np.ndarray,
        instruction: str,
        settings: EditSettings | None = None,
        *,
        progress: bool | Watch = True,
        **changes: Any,
    ) -> np.ndarray:
        """Edit one clip or image.

        frames: (T, H, W, 3) uint8 RGB, any T; H and W multiples of 16 pixels (32 for wan2.2-ti2v-5b). `changes` are
        fields of EditSettings. progress: True for a bar, or a function that wraps the step numbers.
        The edited frames come back with the same shape and type. The same seed gives the same frames on one
        kind of device. InputError for settings and sizes that cannot be.
        """
        return next(self.edit_each(frames, [instruction], settings, progress=progress, **changes))

    @torch.no_grad()
    def edit_each(
        self,
        frames: np.ndarray,
        instructions: Sequence[str],
        settings: EditSettings | None = None,
        *,
        progress: bool | Watch = True,
        **changes: Any,
    ) -> Iterator[np.ndarray]:
        """`edit` for several instructions on the same frames, which are encoded once; yields in order."""
        how = dataclasses.replace(settings or EditSettings(), **changes)
        for instruction in instructions:
            if not instruction.strip():
                raise InputError("the instruction is empty")
        if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not len(frames):
            raise InputError(f"frames must be (T, H, W, 3) uint8 with T > 0, not {frames.shape} {frames.dtype}")
        padded = pad_length(frames)
        self.encoders.preset.latent_shape(*padded.shape[:3])  # InputError for sides that the model cannot take
        with self._resident(self.encoders):
            negative, *texts = self.encoders.encode_text(how.prompts(instructions)).split(1)
            if self.offload:
                self.encoders.release("text_encoder")
            source = self.encoders.encode_video(padded[None])
        for text in texts:
            with self._resident(self.model):
                latents = self.sample(source, text, negative, how, progress)
            with self._resident(self.encoders):
                edited = self.encoders.decode_video(latents)[0]
            yield np.ascontiguousarray(edited.cpu().numpy()[: len(frames)])

    @torch.no_grad()
    def generate(
        self,
        prompt: str,
        frames: int,
        height: int,
        width: int,
        settings: EditSettings | None = None,
        *,
        progress: bool | Watch = True,
        **changes: Any,
    ) -> np.ndarray:
        """A clip from text alone, no source: (frames, height, width, 3) uint8. What Stage 0 keeps of text to video.

        frames: any number; height and width as in `edit`. InputError for sizes and settings that cannot be.
        """
        how = dataclasses.replace(settings or EditSettings(), **changes)
        if not prompt.strip():
            raise InputError("the prompt is empty")
        if how.source_guidance is not None:
            raise InputError("without a source there is nothing to guide it by: leave source_guidance out")
        padded = frames + -(frames - 1) % TEMPORAL
        shape = (1, *self.encoders.preset.latent_shape(padded, height, width))
        with self._resident(self.encoders):
            negative, text = self.encoders.encode_text(how.prompts([prompt])).split(1)
        with self._resident(self.model):
            latents = self.sample(None, text, negative, how, progress, shape)
        with self._resident(self.encoders):
            made = self.encoders.decode_video(latents)[0]
        return np.ascontiguousarray(made.cpu().numpy()[:frames])

    @torch.no_grad()
    def sample(
        self,
        source: torch.Tensor | None,
        text: torch.Tensor,
        negative: torch.Tensor,
        how: EditSettings,
        progress: bool | Watch = False,
        shape: Sequence[int] = (),
    ) -> torch.Tensor:
        """Target latents (1, C, T', H', W') float32 for source latents of that shape and text (1, L, text_dim).

        Without a source `shape` says how large they are to be.
        """
        device = next(self.model.parameters()).device
        source = None if source is None else source.to(device).float()
        shape = tuple(shape if source is None else source.shape)
        text, negative = text.to(device), negative.to(device)
        noise = State(normal(how.seed, "edit latents", shape).to(device), self._semantic_noise(how, device))
        length, size = shape[2], min(how.window, shape[2])
        starts = sampler.windows(length, how.window, how.shared)
        weights = sampler.window_weights(length, size, starts).to(device)

        def velocity(state: State, sigma: float) -> State:
            whole, semantic = torch.zeros_like(state.latents), None
            for i, start in enumerate(starts):
                part = slice(start, start + size)
                piece = State(state.latents[:, :, part], state.semantic)
                shown = None if source is None else source[:, :, part]
                found = self._guided(piece, sigma, shown, text, negative, how)
                whole[:, :, part] += weights[i, part].view(1, 1, -1, 1, 1) * found.latents
                semantic = found.semantic if i == 0 else semantic  # the first window decides for all
            return State(whole, semantic)

        return sampler.euler(noise, sampler.shifted_sigmas(how.steps, how.shift), velocity, _watch(progress)).latents

    @contextlib.contextmanager
    def _resident(self, part: Any) -> Iterator[None]:
        """Hold the model or the encoders on the small device for a while."""
        if self.offload and self.by_block and part is self.model:
            with blocks_on(part, self.offload):
                yield
            return
        if self.offload:
            part.to(self.offload)
        try:
            yield
        finally:
            if self.offload:
                part.to("cpu")

    def _semantic_noise(self, how: EditSettings, device: torch.device) -> torch.Tensor | None:
        if not how.anchors:
            return None
        shape = (1, how.anchors * self.model.config.semantic_tokens_per_anchor, self.model.config.semantic_dim)
        return normal(how.seed, "edit semantic", shape).to(device)

    def _guided(
        self,
        state: State,
        sigma: float,
        source: torch.Tensor | None,
        text: torch.Tensor,
        negative: torch.Tensor,
        how: EditSettings,
    ) -> State:
        both = self._predict(state, sigma, text, source)
        if how.source_guidance is not None and source is not None:
            nothing = None if how.no_source == "omit" else torch.zeros_like(source)
            text_only = self._predict(state, sigma, text, nothing)
            source_only = self._predict(state, sigma, negative, source)
            return sampler.separate_guidance(both, text_only, source_only, how.source_guidance, how.guidance)
        if how.guidance == 1.0:
            return both
        return sampler.plain_guidance(both, self._predict(state, sigma, negative, source), how.guidance)

    def _predict(self, state: State, sigma: float, text: torch.Tensor, source: torch.Tensor | None) -> State:
        """One forward; the model computes in its own precision, the answer is kept in float32."""
        velocity, semantic = self.model(
            state.latents,
            torch.full((state.latents.shape[0],), 1000.0 * sigma, device=state.latents.device),
            text,
            source_latents=source,
            semantic_tokens=state.semantic,
        )
        return State(velocity.float(), None if semantic is None else semantic.float())


def _watch(progress: bool | Watch) -> Watch:
    if callable(progress):
        return progress
    if not progress:
        return iter
    from tqdm import tqdm

    return lambda steps: tqdm(steps, desc="edit", unit="step")
