"""From what the user named - a run, a weights file, a folder - to a pipeline that edits."""

from __future__ import annotations

import json
import pickle
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipelines.samples import storage
from sama.errors import InputError
from sama.presets import Preset, get_preset

if TYPE_CHECKING:
    import torch

    from sama.editing import EditPipeline
    from sama.lora import Lora

RELEASED_WINDOW = 81  # frames; what the released weights were trained on
Offload = Literal["parts", "blocks"]
DEFAULT_PRESET = "wan2.1-t2v-14b"


@dataclass(frozen=True)
class Loaded:
    """A pipeline, where its weights came from and how they were trained.

    step: of the run's checkpoint; window: frames of the longest clips in training; anchors: semantic anchor frames.
    """

    pipeline: EditPipeline
    preset: Preset
    origin: str
    step: int | None = None
    window: int = RELEASED_WINDOW
    prefix: str = "[Video edit] "
    anchors: int = 1


@dataclass(frozen=True)
class Weights:
    """Whole tensors of a run's checkpoint in our names, with the checkpoint's state. lora: of a LoRA run, which is
    merged into the tensors."""

    tensors: dict[str, torch.Tensor]
    preset: Preset
    step: int
    state: dict[str, Any]
    lora: Lora | None = None


def load_run(run: str, step: int | None = None, which: str = "ema") -> Weights:
    """Read the weights of a run folder; None is its newest checkpoint.

    InputError when there is no such folder or checkpoint, or when the checkpoint cannot be read.
    """
    from torch.distributed.checkpoint import CheckpointException

    from pipelines.train import frozen
    from pipelines.train.checkpoint import load_weights, newest_step

    lora = None
    try:
        at = newest_step(run) if step is None else step
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # one process is what is meant
            tensors, preset, state = load_weights(run, at, which)
            if tensors and state.get("lora"):
                tensors, lora = frozen.whole(run, tensors, state["lora"])
    except (OSError, EOFError, KeyError, ValueError, pickle.UnpicklingError, CheckpointException) as error:
        raise InputError(
            f"the checkpoint in {run} cannot be read: {type(error).__name__}: {_last_line(error)}"
        ) from None
    if not tensors:
        raise InputError(f"the checkpoint in {run} holds no {which} weights")
    return Weights(tensors, get_preset(preset), int(at or 0), state, lora)


def load_pipeline(
    run: str | None = None,
    weights: str | None = None,
    preset: str | None = None,
    *,
    step: int | None = None,
    device: str | None = None,
    offload: Offload | None = None,
    loras: Sequence[str] = (),
) -> Loaded:
    """An edit pipeline from a run folder (its EMA weights), or from a weights file or diffusers folder of a preset.

    A diffusers folder tells its preset itself, and brings the encoders that are in it. loras: files to merge in, each
    FILE or FILE:SCALE. device: cuda where there is one, else the CPU; bfloat16 on cuda, float32 on the CPU. offload:
    only one part at a time on the device; `blocks`: also the transformer's blocks one at a time. InputError for a run
    without a checkpoint, an unknown preset or device, and weights that do not fit.
    """
    import torch

    from sama.editing import EditPipeline
    from sama.encoders import Encoders
    from sama.lora import load_lora, merge_lora

    wanted = [read_scale(lora) for lora in loras]
    if (run is None) == (weights is None):
        raise InputError("name the weights to edit with: --run RUN or --weights PATH, one of the two")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise InputError(f"--device {device}: there is no such device here") from None
    dtype = torch.bfloat16 if torch.device(device).type == "cuda" else torch.float32
    if run is not None:
        found = load_run(run, step)
        if preset is not None and get_preset(preset).name != found.preset.name:
            raise InputError(f"{run} was trained with preset {found.preset.name}, not {preset}")
        model, chosen, at, trained = _build(found, run, dtype), found.preset, found.step, trained_with(run)
    else:
        if step is not None:
            raise InputError("--step chooses among a run's checkpoints; --weights has none")
        chosen, at, trained = get_preset(preset or preset_of(str(weights)) or DEFAULT_PRESET), None, {}
        model = load_weights_file(str(weights), chosen, dtype)
    for lora, scale in wanted:
        merge_lora(model, load_lora(lora), scale, origin=lora)
    home = "cpu" if offload else device
    encoders = Encoders.from_preset(chosen, device=home, dtype=dtype, sources=encoders_of(weights))
    pipeline = EditPipeline(model.to(home), encoders, device if offload else None, by_block=offload == "blocks")
    return Loaded(pipeline, chosen, storage.absolute(run if run is not None else str(weights)), at, **trained)


def load_weights_file(path: str, preset: Preset, dtype: torch.dtype | None = None) -> Any:
    """A SamaTransformer from a diffusers folder, or from official safetensors (a file, or a folder of shards)."""
    from sama.checkpoints import load_diffusers, load_official

    place = Path(path)
    if not place.exists():
        raise InputError(f"there are no weights at {path}")
    if (place / "config.json").is_file() or (place / "transformer" / "config.json").is_file():
        return load_diffusers(place, dtype=dtype)
    return load_official(place, preset, dtype=dtype)


def preset_of(path: str) -> str | None:
    """The preset that a pipeline folder names; None for other weights."""
    try:
        return str(json.loads((Path(path) / "model_index.json").read_text())["preset"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def encoders_of(path: str | None) -> dict[str, str]:
    """Folders of the encoders that a pipeline folder brings, by component."""
    if path is None or preset_of(path) is None:
        return {}
    names = ("vae", "text_encoder", "tokenizer", "vision")
    return {name: str(Path(path) / name) for name in names if (Path(path) / name).is_dir()}


def read_scale(lora: str) -> tuple[str, float]:
    """FILE or FILE:SCALE; InputError for a scale that is no number and a file that is not there."""
    file, mark, text = lora.rpartition(":")
    if not mark or Path(lora).exists():
        file, text = lora, "1"
    try:
        scale = float(text)
    except ValueError:
        raise InputError(f"--lora {lora}: {text} is not a scale; write FILE or FILE:0.8") from None
    if not Path(file).is_file():
        raise InputError(f"--lora: there is no file {file}")
    return file, scale


def trained_with(run: str) -> dict[str, Any]:
    """window, prefix and anchors of the run's mixture, from its plan.json; what that does not say is left out."""
    try:
        mixture = json.loads(storage.read_bytes(storage.join(run, "plan.json")))["mixture"]
        return {
            "window": max(int(n) for n in mixture["buckets"]["frames"]),
            "prefix": str(mixture["prompt_prefix"]),
            "anchors": int(mixture["anchors"]["n"]),
        }
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _build(found: Weights, origin: str, dtype: torch.dtype | None) -> Any:
    from sama.checkpoints import build, cast

    return build(found.preset, cast(found.tensors, dtype), origin=origin)


def _last_line(error: BaseException) -> str:
    """What an error says; torch's checkpoint errors carry a traceback whose last line is the cause."""
    return ([line.strip() for line in str(error).splitlines() if line.strip()] or [""])[-1]
