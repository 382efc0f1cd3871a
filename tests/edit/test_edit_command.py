"""`sama edit` on real and made clips with tiny random weights: what it writes, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.edit.load import load_pipeline
from pipelines.edit.run import edit_clip, numbered, read_instructions, settings_for
from pipelines.samples import storage
from sama import video
from sama.errors import InputError


@pytest.fixture(scope="module")
def loaded(run_folder: Path):
    return load_pipeline(run=str(run_folder))


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    y, x = np.mgrid[0:72, 0:96]
    frames = np.stack([np.stack([x * 2, y * 3, 0 * x + 20 * t], axis=-1) % 256 for t in range(7)])
    path = tmp_path / "clip.mp4"
    path.write_bytes(video.encode(frames.astype(np.uint8), fps=10))
    return path


def sama(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", "from pipelines.cli import app, main; main()", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def test_a_run_says_how_it_was_trained(loaded, run_folder: Path):
    assert (loaded.preset.name, loaded.step, loaded.window, loaded.anchors) == ("tiny", 3, 9, 1)
    how = settings_for(loaded, {"steps": 3, "seed": None, "overlap": None})
    assert (how.steps, how.seed, how.frames_per_window, how.prefix) == (3, 0, 9, "[Video edit] ")
    assert settings_for(loaded, {"frames_per_window": 5}).frames_per_window == 5


def test_an_edit_with_what_the_report_reads(loaded, clip: Path, tmp_path: Path):
    out = tmp_path / "edits" / "one.mp4"
    how = settings_for(loaded, {"steps": 2, "seed": 4})
    [about] = edit_clip(loaded, str(clip), ["Make it red."], str(out), how, facts={"key": "k", "category": "style"})
    facts = video.probe(out.read_bytes())
    assert (facts.width, facts.height, facts.frames, facts.fps) == (96, 72, 7, 10.0)
    written = json.loads((tmp_path / "edits" / "one.json").read_text())
    assert written == about
    expected = {
        "instruction": "Make it red.", "source": str(clip), "seed": 4, "steps": 2, "key": "k", "category": "style",
        "step": 3, "preset": "tiny", "frames": 7,
    }  # fmt: skip
    assert {k: written[k] for k in expected} == expected
    assert written["seconds"] > 0
    rows = video.decode((tmp_path / "edits" / "one.strip.png").read_bytes())[0]
    height, width = 128, round(128 * written["edited_at"][0] / written["edited_at"][1])
    assert rows.shape == (2 * height, 6 * width, 3)
    first = video.decode(clip.read_bytes(), [0])[0]
    assert np.abs(rows[:height, :width].mean(axis=(0, 1)) - first.mean(axis=(0, 1))).max() < 8
    assert sorted(p.name for p in out.parent.iterdir()) == ["one.json", "one.mp4", "one.strip.png"]


def test_the_same_seed_gives_the_same_file(loaded, clip: Path, tmp_path: Path):
    def run(name: str, **changes) -> bytes:
        edit_clip(
            loaded, str(clip), ["Make it red."], str(tmp_path / name), settings_for(loaded, {"steps": 2, **changes})
        )
        return (tmp_path / name).read_bytes()

    first = run("a.mp4", seed=1)
    assert first == run("b.mp4", seed=1)
    assert first != run("c.mp4", seed=2)
    assert first != run("d.mp4", seed=1, guidance=1.0)
    assert first != run("e.mp4", seed=1, source_guidance=1.0)


@pytest.mark.parametrize("kept", ["parts", "blocks"])
def test_offloading_gives_the_same_file(loaded, run_folder: Path, clip: Path, tmp_path: Path, kept: str):
    small = load_pipeline(run=str(run_folder), device="cpu", offload=kept)
    assert small.pipeline.by_block == (kept == "blocks")
    files = []
    for found, name in ((loaded, "whole.mp4"), (small, "small.mp4")):
        edit_clip(found, str(clip), ["Make it red."], str(tmp_path / name), settings_for(found, {"steps": 2}))
        files.append((tmp_path / name).read_bytes())
    assert files[0] == files[1]


def test_several_instructions(loaded, clip: Path, tmp_path: Path):
    listed = tmp_path / "wishes.txt"
    listed.write_text("# wishes\nMake it red.\n\n  Remove the wall. \n")
    wishes = read_instructions(str(listed))
    assert wishes == ["Make it red.", "Remove the wall."]
    out = tmp_path / "out.mp4"
    about = edit_clip(loaded, str(clip), wishes, str(out), settings_for(loaded, {"steps": 1}))
    assert [a["instruction"] for a in about] == wishes
    assert not out.exists()
    files = [(tmp_path / name).read_bytes() for name in ("out-01.mp4", "out-02.mp4")]
    assert files[0] != files[1]
    alone = tmp_path / "alone.mp4"
    edit_clip(loaded, str(clip), wishes[1:], str(alone), settings_for(loaded, {"steps": 1}))
    assert alone.read_bytes() == files[1]
    assert numbered("a/b.c/x.png", 3) == ["a/b.c/x-01.png", "a/b.c/x-02.png", "a/b.c/x-03.png"]


def test_an_image(loaded, tmp_path: Path, shared: Path):
    source = next(p for p in sorted((shared / "clips/images").rglob("*")) if p.suffix in (".png", ".jpg", ".webp"))
    before = video.probe(source.read_bytes())
    out = tmp_path / "out.png"
    edit_clip(loaded, str(source), ["Add a party hat."], str(out), settings_for(loaded, {"steps": 2}))
    after = video.probe(out.read_bytes())
    assert video.is_image(out.read_bytes())
    assert (after.width, after.height, after.frames) == (before.width, before.height, 1)


def test_a_real_clip_with_sound(loaded, tmp_path: Path, shared: Path):
    source, out = shared / "clips/raw/nasa_13013.mp4", tmp_path / "out.mp4"
    edit_clip(loaded, str(source), ["At night."], str(out), settings_for(loaded, {"steps": 1}), max_frames=33)
    before, after = video.probe(source.read_bytes()), video.probe(out.read_bytes())
    assert (after.width, after.height) == (before.width, before.height)
    assert after.fps == pytest.approx(before.fps)
    assert after.frames == 33
    assert before.has_audio
    assert after.has_audio


def test_a_long_clip_shows_no_seam(loaded):
    """300 frames in windows of 33, real classes: at the joints frames change no more than elsewhere in the clip.

    Whether the statistic would see a seam is shown with a drifting model in tests/sama/test_editing.py.
    """
    from sama.editing import EditSettings, latent_frames
    from sama.sampler import windows

    y, x = np.mgrid[0:48, 0:64]
    moving = np.stack([np.stack([x * 3 + t, y * 4, x + y + 2 * t], axis=-1) % 256 for t in range(300)]).astype(np.uint8)
    how = EditSettings(steps=2, guidance=1.0, frames_per_window=33)
    edited = loaded.pipeline.edit(moving, "Make it red.", how, progress=False)
    assert edited.shape == moving.shape
    change = np.abs(edited[1:].astype(np.float32) - edited[:-1]).mean(axis=(1, 2, 3))
    steps = change[:296].reshape(74, 4).mean(axis=1)  # from each latent frame to the next: 4 frames
    starts = windows(latent_frames(301), how.window, how.shared)
    assert len(starts) > 8
    joints = sorted({b - 1 for s in starts[1:] for b in range(s, s + how.shared + 1)})
    elsewhere = np.delete(steps, joints)
    assert len(joints) < 40
    assert steps[joints].max() <= elsewhere.max() * 1.1
    assert abs(steps[joints].mean() / elsewhere.mean() - 1) < 0.1


def test_weights_from_a_file_and_a_folder(run_folder: Path, clip: Path, tmp_path: Path):
    from pipelines.edit.export import export

    edits = []
    for to, path in (("official", "sama.safetensors"), ("diffusers", "")):
        export(str(run_folder), to, str(tmp_path / to))
        found = load_pipeline(weights=str(tmp_path / to / path), preset="tiny")
        edits.append(found.pipeline.edit(np.zeros((1, 64, 64, 3), np.uint8), "x", steps=1, progress=False))
    alone = load_pipeline(weights=str(tmp_path / "diffusers"))  # the folder names its preset and brings its encoders
    assert alone.preset.name == "tiny"
    edits.append(alone.pipeline.edit(np.zeros((1, 64, 64, 3), np.uint8), "x", steps=1, progress=False))
    own = load_pipeline(run=str(run_folder)).pipeline.edit(
        np.zeros((1, 64, 64, 3), np.uint8), "x", steps=1, progress=False
    )
    np.testing.assert_array_equal(edits[0], own)
    np.testing.assert_array_equal(edits[1], own)
    np.testing.assert_array_equal(edits[2], own)


def test_the_command(run_folder: Path, clip: Path, tmp_path: Path):
    out = tmp_path / "out.mp4"
    done = sama("edit", str(clip), "Make it red.", "--run", str(run_folder), "--out", str(out), "--steps", "2")
    assert done.returncode == 0, done.stderr
    assert "2/2 steps" in done.stdout
    assert video.probe(out.read_bytes()).frames == 7
    done = sama("edit", str(tmp_path / "absent.mp4"), "x", "--run", str(run_folder), "--out", str(out))
    assert done.returncode == 2
    assert done.stderr.startswith("sama: there is no readable file")
    assert "Traceback" not in done.stderr


def test_bad_input_is_refused_and_overwrites_nothing(run_folder: Path, clip: Path, tmp_path: Path):
    from pipelines.edit.command import edit

    out, run = tmp_path / "out.mp4", str(run_folder)
    out.write_bytes(b"an earlier edit")
    corrupt, empty, picture = tmp_path / "corrupt.mp4", tmp_path / "empty.txt", tmp_path / "p.png"
    corrupt.write_bytes(clip.read_bytes()[:900])
    empty.write_text("\n# nothing\n")
    picture.write_bytes(video.encode_image(np.zeros((32, 32, 3), np.uint8)))
    bare = tmp_path / "bare-run"
    bare.mkdir()
    half = tmp_path / "half.safetensors"
    torch.save({}, tmp_path / "w.pt")
    half.write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    before = {p: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()}
    cases = [
        ({"clip": str(corrupt)}, "corrupt.mp4"),
        ({"clip": str(tmp_path / "no.mp4")}, "no readable file"),
        ({"clip": str(tmp_path)}, "no readable file"),
        ({"clip": str(picture)}, "image is written as"),
        ({"out": str(tmp_path / "x.png")}, "video is written as"),
        ({"out": str(clip)}, "the clip itself"),
        ({"instruction": "  "}, "instruction is empty"),
        ({"instruction": None}, "INSTRUCTION, or --instructions"),
        ({"instruction": None, "instructions": str(empty)}, "no instruction"),
        ({"instruction": None, "instructions": str(tmp_path / "no.txt")}, "not a readable text file"),
        ({"run": str(tmp_path / "no-run")}, "no run folder"),
        ({"run": str(bare)}, "no checkpoint yet"),
        ({"step": 7}, "no checkpoint of step 7; there are 3"),
        ({"preset": "tinny"}, "did you mean tiny"),
        ({"preset": "wan2.1-t2v-1.3b"}, "was trained with preset tiny"),
        ({"run": None}, "--run RUN or --weights PATH"),
        ({"run": None, "weights": str(tmp_path / "no"), "preset": "tiny"}, "no weights at"),
        ({"run": None, "weights": str(half), "preset": "tiny"}, "half.safetensors"),
        ({"run": None, "weights": str(tmp_path / "w.pt"), "preset": "tiny"}, "w.pt"),
        ({"run": None, "weights": str(half), "preset": "huge"}, "huge is not a preset"),
        ({"steps": 0}, "steps"),
        ({"shift": float("nan")}, "shift must be a number"),
        ({"device": "toaster"}, "there is no such device"),
        ({"out": str(picture / "x.mp4")}, "p.png is not a folder that takes new files"),
        ({"out": "/proc/none/x.mp4"}, "x.mp4 cannot be written: "),
        ({"frames_per_window": 10}, "4k\\+1"),
        ({"no_source": "noise"}, "there are zeros, omit"),
        ({"lora": [str(tmp_path / "no.safetensors")]}, "there is no file"),
        ({"max_frames": 0}, "max-frames"),
    ]
    good = {"clip": str(clip), "instruction": "Make it red.", "out": str(out), "run": run, "steps": 1}
    for change, words in cases:
        with pytest.raises(InputError, match=words):
            edit(**{**good, **change})
    assert {p: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()} == before
    assert not storage.list_files(str(bare))


def test_a_broken_checkpoint_is_one_sentence(run_folder: Path, tmp_path: Path):
    import shutil

    for name, damage in (
        (".metadata", b"cos\nsystem\n(S'true'\ntR."),
        ("__0_0.distcp", b"short"),
        ("state.json", b"{"),
    ):
        broken = tmp_path / name.strip("._")
        shutil.copytree(run_folder, broken)
        (broken / "checkpoints/step-3" / name).write_bytes(damage)
        with pytest.raises(InputError, match="checkpoint"):
            load_pipeline(run=str(broken))
