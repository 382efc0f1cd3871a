"""Training with each text mode and with cached latents: the same curve."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipelines.config import Settings
from pipelines.encode.text import NEEDS_RAY
from pipelines.samples import storage
from pipelines.train import launch, local
from pipelines.train.records import METRICS, read_rows
from sama.encoders import Encoders
from sama.errors import InputError
from tests.train import runs

CLOSE = {"rel": 5e-3, "abs": 1e-4}  # what rounding the inputs to bfloat16 does in six steps


def settings(folder: Path, run: str, mixture: str, data: str, **parts: Any) -> Settings:
    base = runs.settings(folder, run, mixture, data, heldout_every=3, strip_every=100, checkpoint_every=100)
    tree = base.model_dump(mode="json")
    return Settings.model_validate({**tree, **parts, "tracking": {"enabled": False}})


def curve(run: str) -> list[tuple[float, ...]]:
    names = ("train/loss", "train/loss_fm", "train/grad_norm")
    return [tuple(row[n] for n in names) for row in read_rows(storage.join(run, METRICS))]


@pytest.fixture(scope="module")
def live(encode_data: str, encode_mixture: str, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[float, ...]]:
    folder = tmp_path_factory.mktemp("live")
    return curve(local.train_here(settings(folder, "live", encode_mixture, encode_data)).run)


def test_cached_text_and_latents_train_the_same(
    cache: str, live: list, encode_data: str, encode_mixture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(self: Encoders) -> None:
        raise AssertionError("the text encoder was loaded")

    monkeypatch.setattr(Encoders, "text_encoder", property(forbidden))
    text = {"mode": "cached", "cache": cache}
    found = curve(local.train_here(settings(tmp_path, "text", encode_mixture, encode_data, text=text)).run)
    assert len(found) == len(live) == 6
    for ours, theirs in zip(found, live, strict=True):
        assert ours == pytest.approx(theirs, **CLOSE)
    assert found != live  # it was the cache: its entries are rounded
    both = {"text": text, "latents": {"cache": cache}}
    found = curve(local.train_here(settings(tmp_path, "both", encode_mixture, encode_data, **both)).run)
    for ours, theirs in zip(found, live, strict=True):
        assert ours == pytest.approx(theirs, **CLOSE)


def test_mistakes_are_answered_before_anything_starts(encode_data: str, encode_mixture: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="works on Ray only") as error:
        local.train_here(settings(tmp_path, "a", encode_mixture, encode_data, text={"mode": "actors"}))
    assert str(error.value) == NEEDS_RAY
    nowhere = {"mode": "cached", "cache": str(tmp_path / "none")}
    with pytest.raises(InputError, match="holds no text embeddings: run `sama encode"):
        local.train_here(settings(tmp_path, "b", encode_mixture, encode_data, text=nowhere))
    assert not (tmp_path / "b").exists()


@pytest.mark.slow
def test_actors_train_exactly_as_the_worker_itself(
    live: list, encode_data: str, encode_mixture: str, tmp_path: Path, ray_session: None
) -> None:
    text = {"mode": "actors", "actors": 2, "cpus_per_actor": 0.5}
    greedy = {**text, "cpus_per_actor": 4}
    with pytest.raises(InputError, match="1 training worker, 2 text actors and 1 dataset need 10 CPUs"):
        launch.train(settings(tmp_path, "greedy", encode_mixture, encode_data, text=greedy))
    found = curve(launch.train(settings(tmp_path, "actors", encode_mixture, encode_data, text=text)).run)
    assert found == live
