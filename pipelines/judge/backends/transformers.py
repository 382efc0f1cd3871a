"""Qwen2.5-VL in this process, on the frames as single pictures; the PIL image processor, no torchvision."""

from __future__ import annotations

import asyncio
import io
import time
from typing import Any

from pipelines.judge.exchange import ERROR_CHARACTERS, Answer, Request, failed
from pipelines.judge.settings import JudgeSettings
from sama.errors import InputError

IMAGE = "<|image_pad|>"


class Transformers:
    """The backend `transformers`: one request at a time, all its turns in one generation."""

    def __init__(self, settings: JudgeSettings) -> None:
        self.settings = settings
        self._lock = asyncio.Lock()
        self._tokenizer: Any = None
        self._images: Any = None
        self._model: Any = None

    async def start(self) -> None:
        """Load tokenizer, image processor and model (safetensors only). InputError where there is none."""
        await asyncio.to_thread(self._load)

    async def close(self) -> None:
        self._model = None

    async def ask(self, request: Request) -> list[Answer]:
        async with self._lock:
            began = time.monotonic()
            try:
                answers = await asyncio.to_thread(self._generate, request)
            except (RuntimeError, ValueError, OSError) as error:  # such as a picture too many for the memory
                text = " ".join(f"{type(error).__name__}: {error}".split())[:ERROR_CHARACTERS]
                return failed(request, "http_error", text, time.monotonic() - began, "in process")
        seconds = time.monotonic() - began
        return [Answer(**{**a.__dict__, "latency_s": seconds, "host": "in process"}) for a in answers]

    def _load(self) -> None:
        import torch
        from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration, Qwen2VLImageProcessorPil

        s = self.settings
        if s.device.startswith("cuda") and not torch.cuda.is_available():
            raise InputError(
                "judge.device is cuda and this process sees no GPU: set judge.gpus_per_actor or device cpu"
            )
        where: dict[str, Any] = {"revision": s.revision} if s.revision else {}
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(s.model, **where)
            self._images = Qwen2VLImageProcessorPil.from_pretrained(s.model, **where)
            self._model = Qwen2_5_VLForConditionalGeneration.from_pretrained(
                s.model, dtype=getattr(torch, s.dtype), use_safetensors=True, **where
            )
        except (OSError, ValueError) as error:
            raise InputError(f"judge.model {s.model} cannot be loaded: {str(error).splitlines()[0]}") from None
        self._model.to(s.device).eval()

    def _generate(self, request: Request) -> list[Answer]:
        import torch
        from PIL import Image

        s = self.settings
        pictures = [Image.open(io.BytesIO(image)).convert("RGB") for image in request.images]
        pixels = self._images(images=pictures, return_tensors="pt")
        content = [*({"type": "image"} for _ in pictures), {"type": "text", "text": request.text}]
        messages = [{"role": "system", "content": request.system}, {"role": "user", "content": content}]
        text = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        # one placeholder a picture becomes one a visual token. The instruction is data: a placeholder in it is none
        parts = text.split(IMAGE)
        counts = (pixels["image_grid_thw"].prod(dim=1) // self._images.merge_size**2).tolist()
        head = "".join(part + IMAGE * n for part, n in zip(parts, counts, strict=False))
        tokens = self._tokenizer(head + "".join(parts[len(counts) :]), return_tensors="pt")
        ids = tokens["input_ids"].to(s.device)
        inputs = {
            "input_ids": ids,
            "attention_mask": tokens["attention_mask"].to(s.device),
            "mm_token_type_ids": (ids == self._model.config.image_token_id).int(),
            "pixel_values": pixels["pixel_values"].to(s.device, self._model.dtype),
            "image_grid_thw": pixels["image_grid_thw"].to(s.device),
        }
        several = len(request.turns) if s.temperature > 0 else 1
        how: dict[str, Any] = {"do_sample": s.temperature > 0, "max_new_tokens": s.max_tokens}
        # the model's own settings may narrow the choice to one token, and three turns would be one
        how |= {"temperature": s.temperature, "top_p": 1.0, "top_k": 0} if several > 1 or s.temperature else {}
        torch.manual_seed(request.seeds[0])  # a process of its own: no other draws are disturbed
        with torch.inference_mode():
            made = self._model.generate(**inputs, num_return_sequences=several, **how)[:, ids.shape[1] :]
        answers = []
        for i, turn in enumerate(request.turns):
            row = made[min(i, several - 1)]
            words = self._tokenizer.decode(row, skip_special_tokens=True)
            length = int((row != self._tokenizer.pad_token_id).sum())
            answers.append(
                Answer(
                    turn, request.seeds[0], "ok", text=words,
                    prompt_tokens=ids.shape[1] if i == 0 else 0, completion_tokens=length,
                )
            )  # fmt: skip
        return answers
