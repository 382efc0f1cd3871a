"""Text encoders on Ray actors of their own, for a training whose workers have no room for one."""

from __future__ import annotations

import uuid
from typing import Any

import numpy as np

from pipelines.config import Settings, TextSettings
from pipelines.encode.parts import dtype_name


class TextEncoder:
    """One text encoder."""

    def __init__(self, preset: str, weights: str | None, precision: str, threads: int) -> None:
        import torch

        from pipelines.encode.parts import open_encoders
        from pipelines.encode.parts import precision as computed_in

        torch.set_num_threads(threads)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.encoders = open_encoders(preset, weights, dtype_name(computed_in(precision, device)), device)

    def encode(self, prompts: list[str]) -> tuple[np.ndarray, list[int], str]:
        """The embeddings of each prompt's own length, one behind another, as bytes; lengths in tokens; dtype."""
        import torch

        found = self.encoders.encode_prompts(prompts)
        data = torch.cat(found).contiguous().cpu().view(torch.uint8).numpy().reshape(-1)
        return data, [len(f) for f in found], dtype_name(self.encoders.dtype)


def start(settings: Settings) -> tuple[list[Any], list[str]]:
    """The actors that text.mode actors asks for, and the names by which workers find them; none in other modes.

    They live as long as somebody holds the handles. One that dies is started again, and what it was asked for is
    asked again.
    """
    how = settings.text
    if how.mode != "actors":
        return [], []
    import ray

    names = [f"sama-text-{uuid.uuid4().hex}" for _ in range(how.actors)]
    told = (settings.preset, settings.weights, settings.train.precision, settings.train.threads_per_worker)
    handles = [
        ray.remote(TextEncoder)
        .options(
            name=name,
            num_cpus=how.cpus_per_actor,
            num_gpus=how.gpus_per_actor,
            max_restarts=-1,
            max_task_retries=-1,
        )
        .remote(*told)
        for name in names
    ]
    return handles, names


def needs(how: TextSettings) -> tuple[float, float, str]:
    """CPUs, GPUs and words for the actors of text.mode actors."""
    if how.mode != "actors":
        return 0.0, 0.0, ""
    words = f", {how.actors} text actor{'s' if how.actors > 1 else ''}"
    return how.actors * how.cpus_per_actor, how.actors * how.gpus_per_actor, words
