"""Does a cache hold what a training will ask for? Asked before anything is started."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pipelines.config import Settings
from pipelines.progress import say

if TYPE_CHECKING:
    from pipelines.mixture import BatchPlan

SAMPLE = 2000  # rows looked up, evenly over the plan


def check(settings: Settings, plan: BatchPlan) -> None:
    """InputError when a cache is not there, is that of other encoders, or lacks sampled prompts of the plan.

    Samples whose clean latents are not in the cache are encoded live, so of those only the share is told.
    """
    if settings.text.mode != "cached" and settings.latents.cache is None:
        return
    from pipelines.encode import latents, prompts, text
    from pipelines.encode.parts import open_encoders
    from sama.errors import InputError

    how = settings.train
    dtype = "bfloat16" if how.precision == "bfloat16" and how.gpus_per_worker else "float32"
    encoders = open_encoders(settings.preset, settings.weights, dtype, "cpu")
    total = prompts.total_rows(plan)
    rows = np.unique(np.linspace(0, total - 1, min(SAMPLE, total)).astype(np.int64))
    if settings.text.mode == "cached":
        assert settings.text.cache is not None
        lost = text.missing(
            settings.text.cache, text.open_text(settings.text.cache, encoders), prompts.of_rows(plan, rows)
        )
        if lost:
            raise InputError(lost)
    if settings.latents.cache is not None:
        latents.check(plan.mixture)
        cache = latents.LatentCache(settings.latents.cache, encoders, plan.mixture.anchors.n)
        share = float(cache.has_rows(plan, rows).mean())
        say(f"latents: {share:.1%} of {len(rows)} sampled windows are in {settings.latents.cache}")
