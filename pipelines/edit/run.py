"""Edit files anywhere with the weights of a run or of a file, and write what a report shows beside each edit."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from pipelines.edit.load import Loaded
from pipelines.progress import say, track
from pipelines.samples import storage
from sama import video
from sama.edit_files import Edited, as_changes, edit_media, output_format
from sama.editing import EditSettings
from sama.errors import InputError


def read_instructions(uri: str) -> list[str]:
    """The instructions of a text file, one per line; empty lines and lines that start with # are skipped."""
    try:
        lines = storage.read_bytes(uri).decode().splitlines()
    except (OSError, UnicodeDecodeError):
        raise InputError(f"{uri} is not a readable text file") from None
    found = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not found:
        raise InputError(f"{uri} holds no instruction")
    return found


def numbered(out: str, count: int) -> list[str]:
    """The names of several outputs: name-01.mp4, name-02.mp4, ...; the name itself for one."""
    if count == 1:
        return [out]
    stem, suffix = _split(out)
    digits = max(2, len(str(count)))
    return [f"{stem}-{i:0{digits}d}{suffix}" for i in range(1, count + 1)]


def edit_clip(
    loaded: Loaded,
    clip: str,
    instructions: Sequence[str],
    out: str,
    settings: EditSettings | None = None,
    *,
    max_frames: int | None = None,
    facts: dict[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Edit one clip once per instruction and write `out` (numbered when there are several), each with its
    `<name>.strip.png` and, last, `<name>.json`; returns the jsons' contents.

    InputError for a clip that is missing or cannot be decoded, and for an `out` that does not fit it; nothing is
    written then.
    """
    how = settings or settings_for(loaded, {})
    data = read_clip(clip)
    outs = numbered(out, len(instructions))
    formats = [check_output(clip, data, name) for name in outs]
    labels = iter(outs)
    edits = edit_media(
        loaded.pipeline,
        data,
        instructions,
        settings=how,
        image_format=formats[0],
        max_frames=max_frames,
        progress=lambda steps: track(steps, how.steps, PurePosixPath(next(labels)).name, unit="steps"),
    )
    written = []
    with _few_threads(loaded):
        try:
            for name, edited in zip(outs, edits, strict=True):
                written.append(_write(loaded, clip, name, edited, how, facts or {}))
                say(f"{name}: {edited.instruction} ({edited.seconds:.1f} s)")
        except video.MediaError as error:
            raise InputError(f"{clip}: {error}") from None
    return written


def read_clip(clip: str) -> bytes:
    """The bytes of a clip. InputError when there is no such file or it is neither a video nor an image."""
    try:
        data = storage.read_bytes(clip)
    except (FileNotFoundError, IsADirectoryError, OSError):
        raise InputError(f"there is no readable file {clip}") from None
    try:
        video.probe(data)
    except video.MediaError as error:
        raise InputError(f"{clip}: {error}") from None
    return data


def check_output(clip: str, data: bytes, out: str) -> str:
    """The format to write `out` in. InputError when it does not fit the clip's bytes, is the clip itself, or lies where
    nothing can be written."""
    if storage.absolute(clip) == storage.absolute(out):
        raise InputError(f"{out} is the clip itself; choose another name for the edit")
    if storage.is_folder(out):
        raise InputError(f"{out} is a folder; name the file to write")
    place = storage.absolute(out)
    if "://" not in place:
        there = next(p for p in Path(place).parents if p.exists())
        if not there.is_dir() or not os.access(there, os.W_OK):
            raise InputError(f"{out} cannot be written: {there} is not a folder that takes new files")
    return output_format(data, out)


def settings_for(loaded: Loaded, given: dict[str, Any]) -> EditSettings:
    """Settings of an edit: what was given (None: not given), else as these weights were trained, else the defaults."""
    trained = {"frames_per_window": loaded.window, "prefix": loaded.prefix, "anchors": loaded.anchors}
    return EditSettings(**{**trained, **{k: v for k, v in given.items() if v is not None}})


@contextmanager
def _few_threads(loaded: Loaded) -> Iterator[None]:
    """One thread for a toy on the CPU: its matrices are so small that on a busy machine two threads spend their time
    waiting for each other."""
    import torch

    before = torch.get_num_threads()
    if loaded.preset.random:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _write(
    loaded: Loaded, clip: str, out: str, edited: Edited, how: EditSettings, facts: dict[str, Any]
) -> dict[str, Any]:
    stem, _ = _split(out)
    about = {
        "schema": "sama.edit/1",
        "instruction": edited.instruction,
        "source": storage.absolute(clip),
        "output": PurePosixPath(out).name,
        "seconds": round(edited.seconds, 2),
        "run": loaded.origin,
        "step": loaded.step,
        "preset": loaded.preset.name,
        **as_changes(how),
        "frames": len(edited.frames),
        "fps": edited.facts.fps,
        "width": edited.facts.width,
        "height": edited.facts.height,
        "edited_at": [edited.frames.shape[2], edited.frames.shape[1]],
        **facts,
    }
    try:
        storage.write_bytes(out, edited.data)
        storage.write_bytes(f"{stem}.strip.png", edited.strip())
        storage.write_bytes(f"{stem}.json", json.dumps(about, indent=1, ensure_ascii=False) + "\n")
    except OSError as error:
        raise InputError(f"{out} cannot be written: {str(error).splitlines()[0]}") from None
    return about


def _split(out: str) -> tuple[str, str]:
    suffix = PurePosixPath(out).suffix
    return out[: len(out) - len(suffix)], suffix
