"""The verbs plan and pretext, as a user types them."""

import io
import json

import numpy as np
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from pipelines.cli import build
from pipelines.config import dump
from pipelines.mixture import BatchPlan, load_mixture
from sama.errors import InputError
from sama.pretext import PERTURBATIONS
from sama.video import encode
from tests.mixture.roots import clip, write_root
from tests.mixture.test_plan import mixture, rows


def sama(*words: str) -> str:
    """What the command prints; InputError as the command's main function sees it."""
    result = CliRunner().invoke(build(), [str(w) for w in words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plan")
    write_root(folder / "root", rows())
    (folder / "m.yaml").write_text(dump(mixture()))
    return folder


def test_plan_says_what_will_be_trained(place):
    out = sama("plan", place / "m.yaml", "--data", place / "root")
    assert "test: stage 0, 400 steps" in out
    assert "clips             75.0% of its stream, 48 rows" in out
    assert "2 held out" in out
    assert "tube_shuffle 30." in out or "tube_shuffle 2" in out
    assert "first batches" in out
    assert "step 0: video" in out
    facts = json.loads(sama("plan", place / "m.yaml", "--data", place / "root", "--json", "--set", "steps=8"))
    assert facts["steps"] == {"image": 2, "video": 6}


def test_plan_can_be_written_opened_searched_and_compared(place):
    out = sama("plan", place / "m.yaml", "--data", place / "root", "--out", place / "compiled")
    assert out.splitlines()[-1] == f"plan written to {place / 'compiled'}"
    found = sama("plan", place / "compiled", "--find", "clips-c20").splitlines()
    assert found[0].startswith("clips-c20 (clips, source_group ")
    steps = BatchPlan.open(str(place / "compiled")).find("clips-c20")
    assert found[1] == "  step {}, slot {}, epoch {}".format(*steps[0])
    assert found[-2] == f"  and {len(steps) - 12} more, the last in step {steps[-1][0]}; --json lists them"
    assert found[-1] == f"clips-c20: trained on {len(steps)} times in 400 steps"
    told = json.loads(sama("plan", place / "compiled", "--find", "clips-c20", "--json"))
    assert [tuple(s) for s in told["samples"][0]["steps"]] == steps
    held = sama("plan", place / "compiled", "--find", "clips-c5")
    assert "held out: losses are measured on it" in held
    assert "in no step of this plan" in held
    assert sama("plan", place / "compiled", "--find", "nobody") == "nobody: in no step of this plan\n"
    same = sama("plan", place / "m.yaml", "--data", place / "root", "--diff", place / "compiled")
    assert same == "the same plan\n"
    other = sama("plan", place / "m.yaml", "--data", place / "root", "--diff", place / "compiled", "--set", "seed=9")
    assert other.splitlines()[1:] == ["  mixture.seed was 7 and is 9", "  the first step that differs is 0"]
    longer = sama(
        "plan", place / "m.yaml", "--data", place / "root", "--diff", place / "compiled", "--set", "steps=500"
    )
    assert longer.splitlines()[1:] == [
        "  mixture.steps was 400 and is 500", "  the first 200 steps train on the same samples",
    ]  # fmt: skip
    with pytest.raises(InputError, match="holds another plan"):
        sama("plan", place / "m.yaml", "--data", place / "root", "--set", "seed=9", "--out", place / "compiled")


def test_resolved_mixture_can_be_used_again(place, tmp_path):
    text = sama("plan", "demo-stage0.yaml", "--print-config", "--set", "steps=5")
    (tmp_path / "again.yaml").write_text(text)
    assert yaml.safe_load(text)["schema"] == "sama.mixture/1"
    assert load_mixture(str(tmp_path / "again.yaml")) == load_mixture("demo-stage0.yaml", ["steps=5"])


def test_plan_mistakes(place):
    with pytest.raises(InputError, match="needs --data"):
        sama("plan", place / "m.yaml")
    with pytest.raises(InputError, match="neither a file nor one of the recipes"):
        sama("plan", "stage7.yaml", "--data", place / "root")
    with pytest.raises(InputError, match="needs a mixture"):
        sama("plan", "--data", place / "root")
    with pytest.raises(InputError, match="name the sample with --find"):
        sama("plan", place / "m.yaml", "--runs", place)
    with pytest.raises(InputError, match=r"sources is a list; give the whole of it, as --set 'sources="):
        sama("plan", place / "m.yaml", "--data", place / "root", "--set", "streams.video.sources.0.weight=2")
    with pytest.raises(InputError, match="did you mean steps"):
        sama("plan", place / "m.yaml", "--data", place / "root", "--set", "step=5")


def test_pretext_list_and_preview(tmp_path):
    out = sama("pretext", "list")
    assert all(f"{name}: " in out for name in PERTURBATIONS)
    (tmp_path / "clip.mp4").write_bytes(encode(clip(0, 21, 48, 64), 16.0))
    sama("pretext", "preview", tmp_path / "clip.mp4", "--out", tmp_path / "strip.png", "--height", "48", "--shown", "5")
    picture = np.asarray(Image.open(io.BytesIO((tmp_path / "strip.png").read_bytes())))
    assert picture.shape == (len(PERTURBATIONS) * (14 + 48 + 2), 5 * (64 + 2), 3)
    by_task = picture.reshape(len(PERTURBATIONS), 64, -1, 3)
    blank = by_task[list(PERTURBATIONS).index("cube_inpainting"), 14:62].reshape(48, 5, 66, 3)[:, :, :64]
    assert 0 in blank.max(axis=(0, 2, 3))  # a black frame is shown
    with pytest.raises(InputError, match="there is no file"):
        sama("pretext", "preview", tmp_path / "no.mp4", "--out", tmp_path / "x.png")
    (tmp_path / "bad.mp4").write_bytes(b"not a video")
    with pytest.raises(InputError, match="cannot be shown"):
        sama("pretext", "preview", tmp_path / "bad.mp4", "--out", tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()
