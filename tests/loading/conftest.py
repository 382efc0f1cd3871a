"""A small data root with real media, its plan, and the plan saved as workers open it."""

from __future__ import annotations

import pytest

from pipelines.config import validate
from pipelines.mixture import BatchPlan, Mixture
from tests.mixture.roots import write_media_root

COUNTS = {"stills": ("image_edit", 12), "clips": ("text_to_video", 14), "edits": ("video_edit", 14)}


def small_mixture(steps: int = 12) -> Mixture:
    return validate(
        Mixture,
        {
            "name": "small", "stage": 0, "seed": 1, "steps": steps, "instruction_dropout": 0.2, "source_dropout": 0.2,
            "schedule": {"image": 1, "video": 2},
            "buckets": {"area": 1024, "multiple": 16, "frames": [5]},
            "streams": {
                "image": {"global_batch": 5, "sources": [{"dataset": "stills", "selection": "all"}]},
                "video": {
                    "global_batch": 4, "window": "random",
                    "pretext": {"none": 1, "cube_inpainting": 2, "speed": 3, "tube_shuffle": 4},
                    "sources": [{"dataset": "clips", "selection": "all"}, {"dataset": "edits", "selection": "all"}],
                },
            },
        },
        "test",
    )  # fmt: skip


@pytest.fixture(scope="session")
def media_root(tmp_path_factory) -> str:
    return write_media_root(tmp_path_factory.mktemp("media"), COUNTS)


@pytest.fixture(scope="session")
def plan(media_root) -> BatchPlan:
    return BatchPlan.from_mixture(small_mixture(), media_root)


@pytest.fixture(scope="session")
def broken() -> list[str]:
    """Keys of clips that never were decodable: so many that a first substitute may be one of them."""
    return [f"clips-{n}" for n in range(0, 14, 2)]


@pytest.fixture(scope="session")
def broken_plan(broken, tmp_path_factory) -> BatchPlan:
    return BatchPlan.from_mixture(
        small_mixture(), write_media_root(tmp_path_factory.mktemp("b"), COUNTS, broken=broken)
    )


@pytest.fixture(scope="session")
def plan_folder(plan, tmp_path_factory) -> str:
    return plan.save(str(tmp_path_factory.mktemp("plan")))
