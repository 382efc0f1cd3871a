"""Settings: unknown keys help, overrides win, and mistakes name their line."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines import config
from pipelines.config import Settings, flatten, load
from sama.errors import InputError

GOOD = """run: out/run
data: out/data
mixture: m.yaml
preset: tiny
train:
  workers: 2
  lr: 1.0e-3
"""


def test_defaults_are_the_papers(tmp_path: Path) -> None:
    settings = load(Settings, None, run="r", data="d", mixture="m")
    assert settings.train.lr == 2e-5
    assert settings.train.ema_decay == 0.9998
    assert settings.train.semantic_weight == 0.1
    assert settings.train.shift == 5.0


def test_overrides_win_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    file.write_text(GOOD)
    settings = load(Settings, file, ["train.lr=1e-4", "train.micro_batch.video=3", "tracking.enabled=false"])
    assert (settings.train.lr, settings.train.workers) == (1e-4, 2)
    assert settings.train.micro_batch.video == 3
    assert settings.tracking.enabled is False


@pytest.mark.parametrize(
    ("text", "override", "expected"),
    [
        ("  ema_decy: 0.9\n", None, "line 8: train.ema_decy is not a setting; did you mean train.ema_decay?"),
        ("  workers: 0\n", None, "train.workers"),
        ("", "train.lr", "write it as name=value"),
        ("", "trian.lr=1", "trian is not a setting; did you mean train?"),
        ("", "train.timesteps=sometimes", "train.timesteps"),
    ],
)
def test_a_mistake_is_one_sentence_with_its_place(
    tmp_path: Path, text: str, override: str | None, expected: str
) -> None:
    file = tmp_path / "s.yaml"
    file.write_text(GOOD + text)
    with pytest.raises(InputError) as error:
        load(Settings, file, [override] if override else [])
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_setting_and_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="mixture is missing"):
        load(Settings, None, run="r", data="d")
    with pytest.raises(InputError, match="not a readable text file"):
        load(Settings, tmp_path / "absent.yaml")
    broken = tmp_path / "b.yaml"
    broken.write_text("a: [1,\n")
    with pytest.raises(InputError, match="not valid YAML"):
        load(Settings, broken)


def test_shipped_recipes_are_found_by_name() -> None:
    assert "stage0-paper.yaml" in config.shipped_recipes()
    with pytest.raises(InputError, match="neither a file nor one of the recipes"):
        config.recipe("no-such.yaml")


def test_flatten() -> None:
    assert flatten({"a": {"b": 1, "c": {"d": 2}}, "e": []}) == {"a.b": 1, "a.c.d": 2, "e": []}
