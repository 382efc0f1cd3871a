"""The diffusers pipeline gives the frames of `EditPipeline`, from a folder of its own and from an export."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sama import SamaEditPipeline
from sama.checkpoints import build
from sama.editing import EditPipeline, EditSettings
from sama.encoders import Encoders
from sama.errors import InputError
from sama.lora import WHOLE, Lora, Pair, save_lora
from sama.randomness import normal
from tests.edit.conftest import lively_weights

FRAMES = np.random.default_rng(0).integers(0, 256, (6, 48, 64, 3)).astype(np.uint8)
ASKED = "Make the car red."


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("pipeline")
    SamaEditPipeline.of(build("tiny", lively_weights(1)), "tiny").save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def pipe(folder: Path) -> SamaEditPipeline:
    found = SamaEditPipeline.from_pretrained(str(folder))
    found.set_progress_bar_config(disable=True)
    return found


def ours(**changes) -> np.ndarray:
    pipeline = EditPipeline(build("tiny", lively_weights(1)), Encoders.from_preset("tiny"))
    return pipeline.edit(FRAMES, ASKED, EditSettings(**{"steps": 2, **changes}), progress=False)


def test_the_folder_is_a_diffusers_folder(folder: Path) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    assert index["_class_name"] == "SamaEditPipeline"
    assert index["transformer"] == ["sama.transformer", "SamaTransformer"]
    assert index["vae"] == ["diffusers", "AutoencoderKLWan"]
    assert index["text_encoder"] == ["transformers", "UMT5EncoderModel"]
    assert index["vision"] == ["transformers", "SiglipVisionModel"]
    assert index["preset"] == "tiny"
    for name in ("transformer", "vae", "text_encoder", "tokenizer", "vision", "scheduler"):
        assert (folder / name).is_dir()
    assert not list(folder.rglob("*.bin"))


def test_frames_are_those_of_the_edit_pipeline(pipe: SamaEditPipeline) -> None:
    found = pipe(video=FRAMES, prompt=ASKED, num_inference_steps=2).frames
    np.testing.assert_array_equal(found[0], ours())
    tuned = {"seed": 3, "frames_per_window": 5, "source_guidance": 1.5, "negative_prompt": "blurred", "shift": 3.0}
    found = pipe(
        FRAMES, ASKED, "blurred", num_inference_steps=2, source_guidance_scale=1.5, shift=3.0, frames_per_window=5,
        generator=torch.Generator().manual_seed(3), return_dict=False,
    )[0]  # fmt: skip
    np.testing.assert_array_equal(found[0], ours(**tuned))
    assert (ours(**tuned) != ours()).any()


def test_lists_of_images_and_prompts(pipe: SamaEditPipeline) -> None:
    images = [Image.fromarray(f) for f in FRAMES]
    found = pipe(video=images, prompt=[ASKED, "At night."], num_inference_steps=2, output_type="pil").frames
    assert [len(clip) for clip in found] == [6, 6]
    np.testing.assert_array_equal(np.stack([np.asarray(f) for f in found[0]]), ours())
    assert found[0] != found[1]


def test_without_encoders_the_preset_brings_them(tmp_path: Path) -> None:
    bare = SamaEditPipeline.of(build("tiny", lively_weights(1)), "tiny", components=False)
    bare.save_pretrained(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"model_index.json", "transformer", "scheduler"}
    again = SamaEditPipeline.from_pretrained(str(tmp_path))
    assert again.vae is None
    again.set_progress_bar_config(disable=True)
    np.testing.assert_array_equal(again(FRAMES, ASKED, num_inference_steps=2).frames[0], ours())


def test_offloading_and_precision(folder: Path) -> None:
    half = SamaEditPipeline.from_pretrained(str(folder), torch_dtype=torch.bfloat16)
    assert half.transformer.blocks[0].attn1.to_q.weight.dtype == torch.bfloat16
    assert half.transformer.blocks[0].scale_shift_table.dtype == torch.float32
    found = SamaEditPipeline.from_pretrained(str(folder))
    found.set_progress_bar_config(disable=True)
    found.enable_model_cpu_offload(device="cpu")
    for _ in range(2):  # what was moved away for the first edit is there for the second
        np.testing.assert_array_equal(found(FRAMES, ASKED, num_inference_steps=2).frames[0], ours())


def test_a_lora_is_merged(folder: Path, tmp_path: Path) -> None:
    lora = Lora({"blocks.0.attn1.to_v": Pair(normal(0, "a", (2, 128)), normal(0, "b", (128, 2)), 2.0)})
    assert not set(lora.whole) & set(WHOLE)
    save_lora(lora, tmp_path / "a.safetensors")
    pipe = SamaEditPipeline.from_pretrained(str(folder))
    pipe.set_progress_bar_config(disable=True)
    before = pipe.transformer.blocks[0].attn1.to_v.weight.clone()
    pipe.load_lora(tmp_path / "a.safetensors", 0.5)
    change = pipe.transformer.blocks[0].attn1.to_v.weight - before
    torch.testing.assert_close(change, 0.5 * lora.pairs["blocks.0.attn1.to_v"].change())
    assert (pipe(FRAMES, ASKED, num_inference_steps=2).frames[0] != ours()).any()


def test_what_cannot_be(pipe: SamaEditPipeline) -> None:
    with pytest.raises(InputError, match="there are np, pil"):
        pipe(FRAMES, ASKED, output_type="latent")
    with pytest.raises(InputError, match="multiples of 16"):
        pipe(FRAMES[:, :40], ASKED)
    with pytest.raises(InputError, match="no_such is not a preset"):
        SamaEditPipeline(pipe.transformer, pipe.scheduler, preset="no_such")
