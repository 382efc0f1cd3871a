"""SAMA as a diffusers pipeline: `SamaEditPipeline.from_pretrained(folder)`, `pipe(video=frames, prompt="...")`.

The parts and their folder are diffusers' and transformers' own; the sampling is `sama.editing.EditPipeline`'s, so both
give the same frames.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from diffusers.utils import BaseOutput
from PIL import Image

from sama.editing import EditPipeline, EditSettings
from sama.encoders import Encoders
from sama.errors import InputError
from sama.lora import load_lora, merge_lora
from sama.presets import Preset, get_preset
from sama.transformer import SamaTransformer

ALIGNED = 64  # bytes
ENCODERS = ("vae", "text_encoder", "tokenizer", "vision")


@dataclass
class SamaEditOutput(BaseOutput):
    """frames: one clip per prompt; (prompts, T, H, W, 3) uint8, or lists of PIL images."""

    frames: Any


def align(model: torch.nn.Module) -> None:
    """Copy weights that begin at an odd address, as those do that are mapped from a safetensors file: on a CPU the
    last bit of a matrix product depends on it."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.device.type == "cpu" and tensor.data_ptr() % ALIGNED:
            tensor.data = tensor.data.clone()


class SamaEditPipeline(DiffusionPipeline):
    """Edits a clip as an instruction says.

    transformer: a `SamaTransformer`; scheduler: its shift is the default one; vae, text_encoder, tokenizer, vision
    (SigLIP): the frozen encoders, fetched from where the preset says when a folder comes without them. preset: the
    name of the model size.
    """

    _optional_components = list(ENCODERS)  # noqa: RUF012 - diffusers reads it from the class

    def __init__(
        self,
        transformer: SamaTransformer,
        scheduler: FlowMatchEulerDiscreteScheduler,
        vae: Any = None,
        text_encoder: Any = None,
        tokenizer: Any = None,
        vision: Any = None,
        preset: str = "wan2.1-t2v-14b",
    ) -> None:
        super().__init__()
        self.register_modules(
            transformer=transformer,
            scheduler=scheduler,
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            vision=vision,
        )
        for part in (transformer, vae, text_encoder, vision):
            if part is not None:
                align(part)
        self.register_to_config(preset=get_preset(preset).name)
        self._offload: torch.device | None = None
        self._by_block = False
        self._fetched: Encoders | None = None

    @classmethod
    def of(
        cls, transformer: SamaTransformer, preset: Preset | str, shift: float = 5.0, components: bool = True
    ) -> SamaEditPipeline:
        """A pipeline of a transformer and its preset. components: with the encoders, loaded; else without."""
        encoders = Encoders.from_preset(preset)
        parts = {name: getattr(encoders, name) for name in ENCODERS} if components else {}
        return cls(transformer, FlowMatchEulerDiscreteScheduler(shift=shift), **parts, preset=get_preset(preset).name)

    def encoders(self) -> Encoders:
        """The encoders as `sama.editing` wants them, on this pipeline's device."""
        device, dtype = self.device, self.transformer.blocks[0].attn1.to_q.weight.dtype
        given = {name: getattr(self, name) for name in ENCODERS if getattr(self, name) is not None}
        if len(given) == len(ENCODERS):
            return Encoders.from_parts(self.config.preset, given, device, dtype)
        if self._fetched is None:
            self._fetched = Encoders.from_parts(self.config.preset, given, device, dtype)
        return self._fetched.to(device)

    def load_lora(self, file: str | os.PathLike, scale: float = 1.0) -> None:
        """Merge a LoRA file (any common naming, see `sama.lora`) into the transformer, for good."""
        merge_lora(self.transformer, load_lora(file), scale, origin=str(file))

    def enable_model_cpu_offload(self, gpu_id: int | None = None, device: Any = "cuda") -> None:
        """Keep every part on the CPU but the one at work (as `EditPipeline(offload=...)`)."""
        self._offload = torch.device(device if gpu_id is None else f"{torch.device(device).type}:{gpu_id}")
        self._by_block = False

    def enable_sequential_cpu_offload(self, gpu_id: int | None = None, device: Any = "cuda") -> None:
        """As `enable_model_cpu_offload`, and the transformer's blocks one at a time: slower, for smaller devices."""
        self.enable_model_cpu_offload(gpu_id, device)
        self._by_block = True

    @torch.no_grad()
    def __call__(
        self,
        video: np.ndarray | Sequence[Image.Image],
        prompt: str | Sequence[str],
        negative_prompt: str | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float = 5.0,
        source_guidance_scale: float | None = None,
        shift: float | None = None,
        seed: int = 0,
        generator: torch.Generator | None = None,
        output_type: str = "np",
        return_dict: bool = True,
        **settings: Any,
    ) -> SamaEditOutput | tuple[Any]:
        """Edit a clip once per prompt.

        video: (T, H, W, 3) uint8, or T PIL images of one size; any T; H and W multiples of 16 pixels (32 for
        wan2.2-ti2v-5b). generator: its initial seed stands for `seed`. shift: default the scheduler's. settings:
        further fields of `EditSettings`. output_type: np (uint8) or pil. InputError for what cannot be.
        """
        if output_type not in ("np", "pil"):
            raise InputError(f"{output_type} is not an output type; there are np, pil")
        how = EditSettings(
            steps=num_inference_steps,
            shift=self.scheduler.config.shift if shift is None else shift,
            guidance=guidance_scale,
            source_guidance=source_guidance_scale,
            seed=generator.initial_seed() if generator is not None else seed,
            negative_prompt=negative_prompt,
            **settings,
        )
        frames = video if isinstance(video, np.ndarray) else np.stack([np.asarray(f.convert("RGB")) for f in video])
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        pipeline = EditPipeline(self.transformer, self.encoders(), self._offload, self._by_block)
        edited = list(pipeline.edit_each(frames, prompts, how, progress=self._watch))
        found: Any = np.stack(edited)
        if output_type == "pil":
            found = [[Image.fromarray(f) for f in clip] for clip in edited]
        return SamaEditOutput(frames=found) if return_dict else (found,)

    def _watch(self, steps: Iterable[int]) -> Iterable[int]:
        return self.progress_bar(steps)
