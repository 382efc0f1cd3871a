"""What `sama demo` may be told; the defaults live in recipes/demo.yaml."""

from __future__ import annotations

from pydantic import Field

from pipelines.config import LoaderSettings, RaySettings, Strict, TrainSettings


class WorldSettings(Strict):
    """How many samples of the procedural world each layout gets, before the bad ones."""

    seed: int = 0
    ditto: int = Field(default=24, gt=0)
    openve: int = Field(default=24, gt=0)
    reco: int = Field(default=24, gt=0)
    nhr: int = Field(default=32, gt=0)
    koala: int = Field(default=40, gt=0)


class EditSettings(Strict):
    clips: int = Field(default=3, gt=0)  # held-out clips to edit
    steps: int = Field(default=30, gt=0)
    guidance: float = Field(default=3.0, ge=0)
    seed: int = 0


class DemoSettings(Strict):
    preset: str = "tiny"
    world: WorldSettings = WorldSettings()
    heldout_share: float = Field(default=0.15, gt=0, lt=1)
    stage0_steps: int = Field(default=300, gt=0)
    stage1_steps: int = Field(default=300, gt=0)
    train: TrainSettings = TrainSettings()
    loader: LoaderSettings = LoaderSettings()
    ray: RaySettings = RaySettings()
    edit: EditSettings = EditSettings()


SHORT = (
    "world.ditto=6", "world.openve=6", "world.reco=6", "world.nhr=10", "world.koala=10",
    "heldout_share=0.3", "stage0_steps=12", "stage1_steps=12", "train.checkpoint_every=6", "train.heldout_every=12",
    "train.heldout_samples=2", "train.strip_every=12", "train.strip_steps=4", "edit.clips=1", "edit.steps=6",
)  # fmt: skip
