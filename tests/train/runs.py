"""A small data root, mixtures and settings for tests that train the real tiny model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from pipelines.config import Settings
from tests.mixture.roots import write_media_root

FRAMES, SIDE = 5, 32


def data_root(folder: Path) -> str:
    return write_media_root(folder, {"pictures": ("image_edit", 30), "clips": ("text_to_video", 30)}, 8, (SIDE, SIDE))


def mixture(folder: Path, name: str, steps: int, **changes: Any) -> str:
    """A mixture file: image edits and clips under two pretext tasks, five slots a step."""
    tree = {
        "schema": "sama.mixture/1", "name": name, "stage": 0, "seed": 3, "steps": steps,
        "buckets": {"area": SIDE * SIDE, "multiple": 16, "aspect": [0.9, 1.1], "frames": [FRAMES]},
        "streams": {
            "image": {"global_batch": 3, "sources": [{"dataset": "pictures", "selection": "all"}]},
            "video": {
                "global_batch": 3, "pretext": {"speed": 1, "none": 1},
                "sources": [{"dataset": "clips", "selection": "all"}],
            },
        },
        **changes,
    }  # fmt: skip
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(tree))
    return str(file)


def settings(folder: Path, run: str, mixture_file: str, data: str, **train: Any) -> Settings:
    how = {
        "lr": 1e-3, "warmup_steps": 2, "ema_decay": 0.9, "precision": "float32", "activation_checkpointing": "none",
        "checkpoint_every": 2, "heldout_every": 4, "heldout_samples": 4, "strip_every": 4, "strip_steps": 2,
        "workers": 1, **train,
    }  # fmt: skip
    return Settings.model_validate(
        {
            "run": str(folder / run), "data": data, "mixture": mixture_file, "preset": "tiny", "train": how,
            "loader": {"max_decoders": 1, "read_ahead_rows": 8},
        }
    )  # fmt: skip
