"""The encoders of preset `tiny`: shapes, normalisation, independence of everything but their input."""

from __future__ import annotations

import dataclasses
import html
import json
import re
from pathlib import Path

import ftfy
import numpy as np
import pytest
import torch
from PIL import Image

import sama.latents
from pipelines.demo.train_tiny_tokenizer import TASK_TEXTS, train
from pipelines.demo.world import EDITS, describe, edit_scene, random_scene, render
from sama.encoders import Encoders, clean_text
from sama.errors import InputError
from sama.presets import get_preset
from sama.semantic import pool_tokens

SCENES = range(3_000_000, 3_000_004)  # beyond the seeds that the VAE was trained on


@pytest.fixture(scope="module")
def encoders() -> Encoders:
    return Encoders.from_preset("tiny")


@pytest.fixture(scope="module")
def clips() -> np.ndarray:
    return np.stack([render(random_scene(s), 9, 64, 64) for s in SCENES])


@pytest.fixture(scope="module")
def latents(encoders: Encoders, clips: np.ndarray) -> torch.Tensor:
    return encoders.encode_video(clips)


def test_video_latents_are_normalised(encoders: Encoders, clips: np.ndarray, latents: torch.Tensor) -> None:
    assert latents.shape == (len(clips), *encoders.preset.latent_shape(9, 64, 64))
    assert latents.dtype == torch.float32
    assert not latents.requires_grad
    assert abs(latents.mean()) < 0.3
    assert 0.4 < latents.std() < 1.6
    x = torch.from_numpy(clips[:1]).permute(0, 4, 1, 2, 3).float() / 127.5 - 1
    raw = encoders.vae.encode(x).latent_dist.mode()
    for channel in range(16):
        mean, std = (encoders.vae.config[k][channel] for k in ("latents_mean", "latents_std"))
        torch.testing.assert_close(latents[0, channel], (raw[0, channel] - mean) / std, rtol=1e-4, atol=1e-5)


def test_decoding_inverts_encoding(encoders: Encoders, clips: np.ndarray, latents: torch.Tensor) -> None:
    back = encoders.decode_video(latents[:2])
    assert back.shape == (2, 9, 64, 64, 3)
    assert back.dtype == torch.uint8
    for i, one in enumerate(back):
        errors = (one.float() - torch.from_numpy(clips).float()).square().flatten(1).mean(1)
        assert int(errors.argmin()) == i
        assert 10 * torch.log10(255**2 / errors[i]) > 12


def test_images_and_other_sizes(encoders: Encoders, clips: np.ndarray, latents: torch.Tensor) -> None:
    image = encoders.encode_video(clips[:2, :1])
    assert image.shape == (2, 16, 1, 8, 8)
    torch.testing.assert_close(image[:, :, 0], latents[:2, :, 0], rtol=1e-3, atol=1e-3)  # causal in time
    assert encoders.decode_video(image).shape == (2, 1, 64, 64, 3)
    assert encoders.encode_video(clips[:1, :5, :48, :32]).shape == (1, 16, 2, 6, 4)


def test_a_clip_does_not_depend_on_its_batch(encoders: Encoders, clips: np.ndarray, latents: torch.Tensor) -> None:
    # alone, torch takes another way through the convolutions: equal but for rounding
    torch.testing.assert_close(encoders.encode_video(clips[1:2])[0], latents[1], rtol=1e-4, atol=1e-4)


def test_wrong_frames_are_refused(encoders: Encoders, clips: np.ndarray) -> None:
    with pytest.raises(InputError, match=r"a clip of 8 frames cannot be encoded: its length must be 4k\+1"):
        encoders.encode_video(clips[:, :8])
    with pytest.raises(InputError, match="60x64"):
        encoders.encode_video(clips[:, :, :60])
    with pytest.raises(ValueError, match="uint8"):
        encoders.encode_video(clips.astype(np.float32))
    with pytest.raises(ValueError, match="uint8"):
        encoders.encode_semantic(clips[0])


def test_text_is_zero_beyond_its_length(encoders: Encoders) -> None:
    prompts = ["Make the red circle blue.", "", "Remove it. " * 200]
    embeds = encoders.encode_text(prompts)
    assert embeds.shape == (3, encoders.preset.text_max_length, encoders.preset.text_dim)
    lengths = [int(e.abs().sum(-1).gt(0).sum()) for e in embeds]
    assert lengths == [len(encoders.tokenizer(prompts[0]).input_ids), 1, encoders.preset.text_max_length]
    for e, n in zip(embeds, lengths, strict=True):
        assert e[:n].abs().sum(-1).gt(0).all()
        assert not e[n:].any()
    for prompt, embed in zip(prompts, embeds, strict=True):
        torch.testing.assert_close(encoders.encode_text([prompt])[0], embed, rtol=1e-4, atol=1e-5)


def test_text_tells_instructions_apart(encoders: Encoders) -> None:
    blue, green, same = encoders.encode_text(["Make it blue.", "Make it green.", " Make  it\nblue. "])
    assert torch.equal(blue, same)
    assert (blue - green).abs().max() > 0.5


def test_text_is_cleaned() -> None:
    assert clean_text("  caf\u00c3\u00a9 &amp;amp; bar\n\n baz ") == "café & bar baz"


def test_semantic_features(encoders: Encoders, clips: np.ndarray) -> None:
    features = encoders.encode_semantic(clips[:, [0, 8]])
    assert features.shape == (len(clips), 130, 48)
    assert features.dtype == torch.float32
    assert 0.5 < features.std(-1).mean() < 2.0
    first, second = features[:, :65], features[:, 65:]
    torch.testing.assert_close(encoders.encode_semantic(clips[:, [8]]), second, rtol=1e-4, atol=1e-5)
    assert (first - second).abs().mean() > 0.02  # things have moved
    assert features[:, :65].std(0).mean() > 0.3  # images differ
    brighter = np.clip(clips[:1, :1].astype(int) + 60, 0, 255).astype(np.uint8)
    assert (encoders.encode_semantic(brighter) - first[:1]).abs().mean() > 0.1


def test_semantic_preprocessing_is_siglips_own(encoders: Encoders, clips: np.ndarray) -> None:
    side = encoders.vision.config.image_size
    seen: list[torch.Tensor] = []
    hook = encoders.vision.register_forward_pre_hook(
        lambda _, __, kw: seen.append(kw["pixel_values"]), with_kwargs=True
    )
    try:
        frame = np.ascontiguousarray(clips[0, 0, :, :48])
        encoders.encode_semantic(frame[None, None])
    finally:
        hook.remove()
    wanted = np.asarray(Image.fromarray(frame).resize((side, side), Image.Resampling.BICUBIC), dtype=np.float32)
    got = (seen[0][0].permute(1, 2, 0).numpy() + 1) * 127.5
    assert np.abs(got - wanted).max() <= 2.01  # Pillow rounds to 8 bits after each of its two passes
    assert np.abs(got - wanted).mean() < 0.25


def test_random_parts_are_the_same_everywhere_and_touch_no_random_state(encoders: Encoders, clips: np.ndarray) -> None:
    torch.manual_seed(99)
    state = torch.get_rng_state()
    other = Encoders.from_preset("tiny")
    assert torch.equal(other.encode_semantic(clips[:1, :1]), encoders.encode_semantic(clips[:1, :1]))
    assert torch.equal(other.encode_text(["Remove the ring."]), encoders.encode_text(["Remove the ring."]))
    assert torch.equal(torch.get_rng_state(), state)
    assert other.digest == encoders.digest


def test_local_folders_in_hub_layout(encoders: Encoders, clips: np.ndarray, tmp_path: Path) -> None:
    for name in ("vae", "text_encoder", "tokenizer"):
        getattr(encoders, name).save_pretrained(tmp_path / "wan" / name)
    encoders.vision.save_pretrained(tmp_path / "siglip")
    sources = {"wan": str(tmp_path / "wan"), "vision": str(tmp_path / "siglip")}
    local = Encoders.from_preset("tiny", sources=sources)
    assert torch.equal(local.encode_video(clips[:1, :1]), encoders.encode_video(clips[:1, :1]))
    assert torch.equal(local.encode_text(["Add a ring."]), encoders.encode_text(["Add a ring."]))
    assert torch.equal(local.encode_semantic(clips[:1, :1]), encoders.encode_semantic(clips[:1, :1]))
    before = local.digest
    assert before != encoders.digest
    config = tmp_path / "wan" / "vae" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "latents_mean": [0.0] * 16}))
    assert Encoders.from_preset("tiny", sources=sources).digest != before


def test_places_that_hold_nothing(tmp_path: Path) -> None:
    lost = Encoders.from_preset("tiny", sources={"wan": str(tmp_path)})
    with pytest.raises(InputError, match="cannot be loaded"):
        lost.encode_text(["x"])
    with pytest.raises(InputError, match="audio is not a component"):
        Encoders.from_preset("tiny", sources={"audio": "x"})
    with pytest.raises(InputError, match="is not a preset"):
        Encoders.from_preset("huge")


def test_parts_can_be_released(clips: np.ndarray) -> None:
    own = Encoders.from_preset("tiny")
    before = own.encode_semantic(clips[:1, :1])
    own.release("vision", "vae")
    assert "vision" not in own.__dict__
    assert torch.equal(own.encode_semantic(clips[:1, :1]), before)


def test_bfloat16(encoders: Encoders, clips: np.ndarray) -> None:
    half = Encoders.from_preset("tiny", dtype=torch.bfloat16)
    assert half.vae.dtype == half.text_encoder.dtype == half.vision.dtype == torch.bfloat16
    assert half.digest != encoders.digest
    got = half.encode_video(clips[:1, :1, :16, :16])
    assert got.dtype == torch.float32
    assert (got - encoders.encode_video(clips[:1, :1, :16, :16])).square().mean().sqrt() < 0.1
    assert half.encode_text(["x"]).dtype == torch.bfloat16
    assert half.encode_semantic(clips[:1, :1]).dtype == torch.float32


def test_the_shipped_tokenizer_is_what_its_script_trains(encoders: Encoders) -> None:
    shipped = json.loads(encoders.tokenizer.backend_tokenizer.to_str())
    assert json.loads(train().to_str())["model"] == shipped["model"]


def test_tokenizer_reads_anything_and_knows_the_world(encoders: Encoders) -> None:
    for text in ("Ünïcödé – 漢字 🦢", "a\tb", "x" * 50):
        ids = encoders.tokenizer(text).input_ids
        assert encoders.tokenizer.decode(ids, skip_special_tokens=True) == text
        assert encoders.tokenizer.unk_token_id not in ids
    scene = random_scene(SCENES[0])
    texts = [describe(scene), *TASK_TEXTS, *(edit_scene(scene, e, 1)[1] for e in EDITS)]
    for text in texts:
        words = len(text.split())
        assert words < len(encoders.tokenizer(text).input_ids) < 2.5 * words + 4


def test_the_real_tokenizer_and_vision_sizes(shared: Path) -> None:
    own = Encoders.from_preset("wan2.1-t2v-14b", sources={"tokenizer": str(shared / "tokenizers" / "umt5_xxl")})
    ids = own.tokenizer("Make the red circle blue.").input_ids
    assert ids[-1] == own.tokenizer.eos_token_id == 1
    assert own.tokenizer.pad_token_id == 0
    assert len(own.tokenizer("word " * 2000, truncation=True, max_length=own.preset.text_max_length).input_ids) == 512
    vision = json.loads((shared / "tokenizers" / "siglip_so400m_configs" / "config.json").read_text())
    assert vision["hidden_size"] == own.preset.semantic_dim


def test_each_kind_has_its_own_digest(encoders: Encoders, tmp_path: Path) -> None:
    encoders.vae.save_pretrained(tmp_path / "vae")
    other = Encoders.from_preset("tiny", sources={"vae": str(tmp_path / "vae")})
    assert other.digest != encoders.digest
    assert other.digest_of("vae") != encoders.digest_of("vae")
    for part in ("text", "semantic"):
        assert other.digest_of(part) == encoders.digest_of(part)
    encoders.tokenizer.save_pretrained(tmp_path / "tokenizer")
    third = Encoders.from_preset("tiny", sources={"tokenizer": str(tmp_path / "tokenizer")})
    assert third.digest_of("text") != encoders.digest_of("text")
    assert third.digest_of("vae") == encoders.digest_of("vae")


def test_plain_text_is_cleaned_as_any_other() -> None:
    for text in ("Make it blue.", "  a   b ", 'x\'s "y" <z> #1 ~', "a\tb\nc", "\x1b[1mbold", "a\u200bb", "&lt;"):
        slow = html.unescape(html.unescape(ftfy.fix_text(text)))
        assert clean_text(text) == re.sub(r"\s+", " ", slow).strip()


def test_tiles_are_near_the_whole(encoders: Encoders, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = np.stack([render(random_scene(SCENES[0]), 5, 96, 128)])
    whole = encoders.encode_video(clip)
    pixels = encoders.decode_video(whole).float()
    for name, value in {"TILED_ABOVE": 64 * 64, "TILE": 64, "TILE_STRIDE": 48}.items():
        monkeypatch.setattr(sama.latents, name, value)
    tiled = encoders.encode_video(clip)
    assert not encoders.vae.use_tiling
    assert tiled.shape == whole.shape
    assert not torch.equal(tiled, whole)
    assert (tiled - whole).square().mean().sqrt() < 0.2 * whole.std()
    assert (encoders.decode_video(whole).float() - pixels).abs().mean() < 4.0  # of 255


def test_the_real_tokenizer_zeros_beyond_the_text(shared: Path) -> None:
    """The tokenizer as it ships, with a small encoder of its vocabulary."""
    preset = dataclasses.replace(get_preset("tiny"), text_max_length=512)
    own = Encoders(preset, sources={"tokenizer": str(shared / "tokenizers" / "umt5_xxl")})
    prompts = ["[Video edit] Make the café  blue &amp; bright. 漢字", "", "word " * 2000]
    lengths = own.text_lengths(prompts)
    assert lengths[1:] == [1, 512]
    assert lengths[0] == len(own.tokenizer("[Video edit] Make the café blue & bright. 漢字").input_ids)
    embeds = own.encode_text(prompts)
    assert embeds.shape == (3, 512, 64)
    for embed, length in zip(embeds, lengths, strict=True):
        assert embed[:length].abs().sum(-1).gt(0).all()
        assert not embed[length:].any()


def test_so400m_gives_27_by_27_patches(shared: Path) -> None:
    from transformers import SiglipVisionConfig, SiglipVisionModel

    told = json.loads((shared / "tokenizers" / "siglip_so400m_configs" / "config.json").read_text())
    with torch.device("meta"):
        model = SiglipVisionModel(SiglipVisionConfig(**told))
        seen = model(pixel_values=torch.zeros(1, 3, 384, 384))
    assert seen.last_hidden_state.shape == (1, 27 * 27, 1152)
    tokens = pool_tokens(torch.zeros(seen.last_hidden_state.shape), torch.zeros(1, 1152))
    assert tokens.shape == (1, get_preset("wan2.1-t2v-14b").semantic_tokens, 1152)
