"""A run folder with a checkpoint of random tiny weights, as training would leave it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch


def lively_weights(seed: int) -> dict[str, torch.Tensor]:
    """Tiny weights whose video head is not zero, so that prompt, source and seed all show in an edit."""
    from sama.checkpoints import random_transformer
    from sama.randomness import normal

    state = random_transformer("tiny", seed=seed).state_dict()
    state["proj_out.weight"] = 0.1 * normal(seed, "head", state["proj_out.weight"].shape)
    state["segment_embedding.weight"] = 0.1 * normal(seed, "roles", state["segment_embedding.weight"].shape)
    return state


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run at step 3: its EMA (seed 1) and raw (seed 2) weights differ."""
    from pipelines.train import checkpoint

    folder = tmp_path_factory.mktemp("runs") / "stage1"
    ema, raw = lively_weights(1), lively_weights(2)
    tensors = {f"ema.{k}": v for k, v in ema.items()} | {f"model.{k}": v for k, v in raw.items()}
    checkpoint.save(str(folder), 3, tensors, {"preset": "tiny"})
    mixture = {"buckets": {"frames": [9, 5]}, "prompt_prefix": "[Video edit] ", "anchors": {"n": 1}}
    (folder / "plan.json").write_text(json.dumps({"mixture": mixture}))
    return folder
