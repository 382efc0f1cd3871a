"""Take a trained model out of its run folder: weights in a public format, a model card, where the data came from."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pyarrow.fs as pafs
import pyarrow.parquet as pq

from pipelines.edit import card, load
from pipelines.edit.sources import data_sources
from pipelines.samples import provenance, storage
from sama.errors import InputError
from sama.presets import Preset

Format = Literal["official", "diffusers", "lora"]
FORMATS = ("official", "diffusers", "lora")
SUMS = "SHA256SUMS"


def export(
    run: str,
    to: str,
    out: str,
    *,
    weights: str = "ema",
    step: int | None = None,
    dtype: str = "float32",
    components: bool = False,
) -> dict[str, Any]:
    """Write the folder `out`; returns what was written: files with sizes, step, preset.

    to: `official`, one safetensors file with the released checkpoint's names; `diffusers`, a folder that
    `SamaEditPipeline.from_pretrained` opens; `lora`, the adapters of a LoRA run, which the other two hold merged.
    components: copy the frozen encoders into the diffusers folder (preset tiny always does); without them it names
    where they come from. weights: `ema` or `raw`. dtype: float32 (exact) or bfloat16 (modulation, norms and time
    embedding stay float32, as diffusers keeps them). The folder appears whole or not at all, and must not exist before.
    InputError for a run without a checkpoint, an unknown format and an `out` that is taken.
    """
    import torch

    from sama.checkpoints import build, cast
    from sama.lora import count, save_lora

    started = provenance.now()
    _one_of("to", to, FORMATS)
    if components and to != "diffusers":
        raise InputError("--components go into a diffusers folder: --to diffusers")
    _one_of("weights", weights, ("ema", "raw"))
    _one_of("dtype", dtype, ("float32", "bfloat16"))
    if storage.exists(out):
        raise InputError(f"{out} exists already; choose another place for the export")
    found = load.load_run(run, step, weights)
    if to == "lora" and found.lora is None:
        raise InputError(f"{run} was not trained as LoRA: export it as official or diffusers")
    model = build(found.preset, cast(found.tensors, getattr(torch, dtype)), origin=run)
    complete = components or found.preset.random
    sources = data_sources(run, found.step)
    settings = {"run": storage.absolute(run), "to": to, "weights": weights, "step": found.step, "dtype": dtype}
    with whole_folder(out) as folder:
        if to == "lora" and found.lora is not None:
            save_lora(found.lora, folder / "lora.safetensors")
            parameters = count(found.lora)
        else:
            write_weights(model, to, folder, found.preset, complete)
            parameters = sum(p.numel() for p in model.parameters())
        facts = card.Facts(
            preset=found.preset, step=found.step, weights=weights, format=to, dtype=dtype,
            parameters=parameters, sources=sources, complete=complete,
        )  # fmt: skip
        (folder / "README.md").write_text(card.render(facts), encoding="utf-8")
        pq.write_table(sources.table, folder / "data_sources.parquet")
        provenance.record(
            str(folder), "export", settings, {"parameters": facts.parameters, "steps": found.step},
            {"checkpoint": found.state}, started, provenance.now(),
        )  # fmt: skip
        (folder / SUMS).write_text(checksums(folder))
        files = {str(p.relative_to(folder)): p.stat().st_size for p in sorted(folder.rglob("*")) if p.is_file()}
    return {"out": storage.absolute(out), "files": files, "step": found.step, "preset": found.preset.name}


def write_weights(model: Any, to: str, folder: Path, preset: Preset, complete: bool) -> None:
    """The weights of a SamaTransformer as one official file, or as a diffusers pipeline."""
    from sama.checkpoints import save_official
    from sama.diffusers_pipeline import SamaEditPipeline

    if to == "official":
        save_official(model, folder / "sama.safetensors")
        return
    SamaEditPipeline.of(model, preset, components=complete).save_pretrained(folder)


def checksums(folder: Path) -> str:
    """Lines for `sha256sum --check`, over every file in the folder."""
    lines = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name != SUMS):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        lines.append(f"{digest}  {path.relative_to(folder).as_posix()}\n")
    return "".join(lines)


@contextmanager
def whole_folder(out: str) -> Iterator[Path]:
    """A local folder to fill; it becomes `out` when the block ends well and vanishes otherwise.

    Local: renamed in one step. Object store: copied file by file, the checksums last.
    """
    uri = storage.absolute(out)
    local = "://" not in uri
    parent = Path(uri).parent if local else None
    if parent:
        parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".export-", dir=parent))
    try:
        folder = staging / "export"
        folder.mkdir()
        yield folder
        if local:
            os.rename(folder, uri)
            return
        files = sorted((p for p in folder.rglob("*") if p.is_file()), key=lambda p: (p.name == SUMS, p))
        for path in files:
            fs, place = storage.locate(storage.join(uri, path.relative_to(folder).as_posix()))
            pafs.copy_files(str(path), place, source_filesystem=pafs.LocalFileSystem(), destination_filesystem=fs)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise InputError(f"--{name} {value} is not known; there are {', '.join(known)}")
