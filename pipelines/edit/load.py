"""From what the user named - a run, a weights file, a folder - to a pipeline that edits."""

from __future__ import annotations

import json
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.samples import storage
from sama.errors import InputError
from sama.presets import Preset, get_preset

if TYPE_CHECKING:
    import torch

    from sama.editing import EditPipeline

RELEASED_WINDOW = 81  # frames; what the released weights were trained on
DEFAULT_PRESET = "wan2.1-t2v-14b"


@dataclass(frozen=True)
class Loaded:
    """A pipeline and where its weights came from. window: the longest clip its weights were trained on, in frames."""

    pipeline: EditPipeline
    preset: Preset
    origin: str
    step: int | None = None
    window: int = RELEASED_WINDOW
    prefix: str = "[Video edit] "


@dataclass(frozen=True)
class Weights:
    """Whole tensors of a run's checkpoint in our names, with the checkpoint's state."""

    tensors: dict[str, torch.Tensor]
    preset: Preset
    step: int
    state: dict[str, Any]


def load_run(run: str, step: int | None = None, which: str = "ema") -> Weights:
    """Read the weights of a run folder; None is its newest checkpoint.

    InputError when there is no such folder or checkpoint, or when the checkpoint cannot be read.
    """
    from pipelines.train.checkpoint import load_weights

    try:
        tensors, preset, state = load_weights(run, step, which)
    except (OSError, EOFError, KeyError, ValueError, pickle.UnpicklingError) as error:
        raise InputError(f"the checkpoint in {run} cannot be read: {type(error).__name__}: {_first_line(error)}") from None
    if not tensors:
        raise InputError(f"the checkpoint in {run} holds no {which} weights")
    return Weights(tensors, get_preset(preset), int(state["next_step"]), state)


def load_pipeline(
    run: str | None = None,
    weights: str | None = None,
    preset: str | None = None,
    *,
    step: int | None = None,
    device: str | None = None,
) -> Loaded:
    """An edit pipeline from a run folder (its EMA weights), or from a weights file or diffusers folder of a preset.

    device: cuda where there is one, else the CPU; bfloat16 on cuda, float32 on the CPU. InputError for a run without
    a checkpoint, an unknown preset, and weights that do not fit.
    """
    import torch

    from sama.editing import EditPipeline
    from sama.encoders import Encoders

    if (run is None) == (weights is None):
        raise InputError("name the weights to edit with: --run RUN or --weights PATH, one of the two")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if torch.device(device).type == "cuda" else torch.float32
    if run is not None:
        found = load_run(run, step)
        if preset is not None and get_preset(preset).name != found.preset.name:
            raise InputError(f"{run} was trained with preset {found.preset.name}, not {preset}")
        model, chosen, at = _build(found, run, dtype), found.preset, found.step
        window, prefix = trained_window(run), trained_prefix(run)
    else:
        assert weights is not None
        chosen, at, window, prefix = get_preset(preset or DEFAULT_PRESET), None, RELEASED_WINDOW, "[Video edit] "
        model = load_weights_file(weights, chosen, dtype)
    encoders = Encoders.from_preset(chosen, device=device, dtype=dtype)
    origin = storage.absolute(run if run is not None else str(weights))
    return Loaded(EditPipeline(model.to(device), encoders), chosen, origin, at, window, prefix)


def load_weights_file(path: str, preset: Preset, dtype: torch.dtype | None = None) -> Any:
    """A SamaTransformer from a diffusers folder, or from official safetensors (a file, or a folder of shards)."""
    from sama.checkpoints import load_diffusers, load_official

    place = Path(path)
    if not place.exists():
        raise InputError(f"there are no weights at {path}")
    if (place / "config.json").is_file() or (place / "transformer" / "config.json").is_file():
        return load_diffusers(place, dtype=dtype)
    return load_official(place, preset, dtype=dtype)


def read_plan(run: str) -> dict[str, Any]:
    """The run's plan.json; empty when there is none (a run folder written by hand, say)."""
    try:
        return json.loads(storage.read_bytes(storage.join(run, "plan.json")))
    except (OSError, ValueError):
        return {}


def trained_window(run: str) -> int:
    raise NotImplementedError


def trained_prefix(run: str) -> str:
    raise NotImplementedError


def _build(found: Weights, origin: str, dtype: torch.dtype | None) -> Any:
    from sama.checkpoints import build, cast

    return build(found.preset, cast(found.tensors, dtype), origin=origin)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]
