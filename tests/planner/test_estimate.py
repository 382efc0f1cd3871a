"""`sama estimate`: sizes that are known, layouts that cannot be, and the estimate against a real step's memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from pipelines.config import Settings
from pipelines.planner import devices, memory, model
from pipelines.planner.cost import Rates
from pipelines.planner.layout import Layout, rounds
from pipelines.planner.model import Shape
from pipelines.train import estimate
from sama.errors import InputError
from sama.presets import get_preset
from tests.conftest import REPOSITORY
from tests.train import runs

RATES = Rates(devices.find("h200"), mfu=0.4, encode_mfu=0.2, price=2.0)
LONG = Shape("video", 81, 480, 832)


def settings(tmp_path: Path, mixture: str = "stage0-paper.yaml", **train: object) -> Settings:
    return Settings.model_validate(
        {"run": str(tmp_path / "run"), "data": str(tmp_path / "none"), "mixture": mixture, "train": train}
    )


def test_known_sizes() -> None:
    fourteen = model.counts("wan2.1-t2v-14b")
    assert fourteen.all == pytest.approx(14.3e9, rel=0.01)
    assert memory.checkpoint_bytes(fourteen) == pytest.approx(228e9, rel=0.01)
    assert LONG.tokens(get_preset("wan2.1-t2v-14b")) == 65585
    sizes = model.encoder_sizes(get_preset("wan2.1-t2v-14b"))
    assert sizes["text_encoder"] * 2 == pytest.approx(11.4e9, rel=0.01)
    assert sizes["vae"] == pytest.approx(127e6, rel=0.01)


@pytest.mark.parametrize(("ranks", "wasted"), [(64, 1 / 8), (56, 0.0), (16, 0.0), (8, 0.0)])
def test_filler_of_a_video_batch(ranks: int, wasted: float) -> None:
    assert rounds(112, ranks, 1).wasted == pytest.approx(wasted)


def test_splitting_a_sequence_divides_what_the_blocks_keep() -> None:
    preset = get_preset("wan2.1-t2v-1.3b")
    whole = model.activations(preset, LONG, torch.bfloat16, "none")
    quarter = model.activations(preset, LONG, torch.bfloat16, "none", sequence=4)
    assert whole.kept / quarter.kept == pytest.approx(4, rel=0.01)
    kept = [model.activations(preset, LONG, torch.bfloat16, how).kept for how in ("block", "selective", "none")]
    assert kept == sorted(kept)
    assert kept[0] == 65585 * 1536 * 2


def test_sharding_divides_states_and_replicas_do_not() -> None:
    preset = get_preset("wan2.1-t2v-1.3b")

    def states(layout: Layout) -> float:
        found = memory.parts(preset, layout, [Shape("image", 1, 480, 832)])
        return sum(p.bytes for p in found if p.name in ("weights", "gradients", "optimizer", "average"))

    assert states(Layout(1)) == pytest.approx(20 * model.counts(preset.name).all)
    assert states(Layout(1)) / states(Layout(8)) == pytest.approx(8)
    assert states(Layout(8, replicas=2)) == pytest.approx(2 * states(Layout(8)))
    assert states(Layout(8, eight_bit=True)) < 0.75 * states(Layout(8))
    lora = model.Lora(16, ("to_q", "to_v"), ())
    assert model.counts(preset.name, lora).trained == 30 * 2 * 2 * 16 * 2 * 1536
    assert states(Layout(8, lora=lora)) < 0.3 * states(Layout(8))


def test_a_layout_that_cannot_fit_is_refused_with_one_that_does(tmp_path: Path) -> None:
    tight = Rates(devices.find("h100"), 0.4, 0.2)
    wanted = settings(tmp_path, workers=8)
    found = estimate.estimate(wanted, tight)
    assert not found.fits
    better = estimate.fitting(wanted, tight)
    assert better is not None
    assert better.describe() in str(estimate.refuse(found, better))
    refitted = memory.parts(get_preset(wanted.preset), better, [c.steps.shape for c in found.work])
    assert sum(p.bytes for p in refitted) <= tight.device.memory


def test_degrees_that_do_not_divide_the_heads(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not divide the model's 40 attention heads; possible are 1, 2, 4, 5"):
        estimate.estimate(settings(tmp_path, workers=6, sequence_parallel=3), RATES)


def test_time_and_money_follow_from_flops(tmp_path: Path) -> None:
    found = estimate.estimate(settings(tmp_path, workers=56), RATES)
    assert not found.exact
    assert {c.steps.shape.stream: c.steps.steps for c in found.work} == {"image": 10000, "video": 10000}
    seconds = sum(c.seconds * c.steps.steps for c in found.work)
    assert found.total.money == pytest.approx(seconds * 56 / 3600 * 2.0)
    video = next(c for c in found.work if c.steps.shape.stream == "video")
    model_flops = video.flops * 0.4 / (video.seconds - video.encode) / (RATES.device.peak * 56)
    assert 0.4 * 0.4 < model_flops < 0.4 * 0.45  # nearly all of the FLOPs are the transformer's, at 40 % of the peak


def test_the_plan_says_which_shapes_there_are(tmp_path: Path) -> None:
    mixture = runs.mixture(tmp_path, "small", 6)
    wanted = runs.settings(tmp_path, "run", mixture, runs.data_root(tmp_path / "data"))
    found = estimate.estimate(wanted, RATES, kind="cpu")
    assert found.exact
    assert sum(c.steps.steps for c in found.work) == 6
    assert {c.steps.shape.frames for c in found.work} == {1, runs.FRAMES}
    told = "\n".join(estimate.lines(found, RATES, 120, 2.0))
    assert "whole run: 6 steps" in told


def test_the_command(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(settings(tmp_path, workers=8).model_dump(mode="json")))
    base = [sys.executable, "-m", "pipelines.cli", "estimate", str(file)]
    wrong = subprocess.run([*base, "--device", "h30"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 2
    assert "h30 is not a device" in wrong.stderr
    right = subprocess.run([*base, "--device", "b200", "--json"], capture_output=True, text=True, check=False)
    assert right.returncode == 0, right.stderr
    assert json.loads(right.stdout)["fits"] is True
    tight = subprocess.run([*base, "--device", "a100"], capture_output=True, text=True, check=False)
    assert tight.returncode == 2
    assert tight.stderr.startswith("sama: needs ")
    assert "this fits: train.workers=" in tight.stderr


@pytest.mark.slow
@pytest.mark.parametrize("case", [0])
def test_the_estimate_is_near_what_training_takes(case: int) -> None:
    code = f"import sys; sys.path.insert(0, 'benchmarks'); import memory; print(memory.in_a_process({case}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1].replace("'", '"'))
    assert found["estimate"] == pytest.approx(found["measured"], rel=0.15)
