"""The VAE that ships with preset `tiny` really reconstructs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import sama
from pipelines.demo.train_tiny_vae import held_out_clips, psnr, single_frames_as_2d

FOLDER = Path(sama.__file__).parent / "assets" / "tiny" / "vae"


@pytest.fixture(scope="module")
def vae():
    from diffusers import AutoencoderKLWan

    return AutoencoderKLWan.from_pretrained(FOLDER, torch_dtype=torch.float32).eval()


def test_it_is_small_and_says_its_latent_statistics() -> None:
    assert (FOLDER / "diffusion_pytorch_model.safetensors").stat().st_size < 8e6
    config = json.loads((FOLDER / "config.json").read_text())
    assert len(config["latents_mean"]) == len(config["latents_std"]) == 16
    assert len(set(config["latents_std"])) > 1, "measured, not the class's defaults"


def test_held_out_clips_come_back_at_22_db_or_more(vae) -> None:
    assert psnr(vae, held_out_clips()) >= 22.0


def test_normalised_latents_are_about_standard(vae) -> None:
    with torch.no_grad():
        latents = vae.encode(held_out_clips(8)).latent_dist.mode()
    mean = torch.tensor(vae.config.latents_mean).view(1, -1, 1, 1, 1)
    std = torch.tensor(vae.config.latents_std).view(1, -1, 1, 1, 1)
    normal = (latents - mean) / std
    assert abs(float(normal.mean())) < 0.25
    assert 0.7 < float(normal.std()) < 1.4


def test_the_shortcut_for_single_frames_changes_nothing(vae) -> None:
    frames = held_out_clips(2, 1)
    with torch.no_grad():
        plain = vae.encode(frames).latent_dist.mode()
        with single_frames_as_2d():
            quick = vae.encode(frames).latent_dist.mode()
    assert float((plain - quick).abs().max()) < 1e-4 * float(np.abs(plain.numpy()).max() + 1)
