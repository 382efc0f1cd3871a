"""The frozen encoders as the user's settings name them, on the device and in the precision that training would use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipelines.samples import storage

if TYPE_CHECKING:
    import torch

    from sama.encoders import Encoders


def sources(weights: str | None) -> dict[str, str] | None:
    """`weights` may be a whole local backbone folder; then the encoders come from there as well."""
    if weights and storage.is_folder(storage.join(weights, "vae")):
        return {"wan": storage.absolute(weights)}
    return None


def precision(name: str, device: str) -> torch.dtype:
    """What frozen encoders compute in: the training precision on a device that has it, and exactly on a CPU."""
    import torch

    return torch.bfloat16 if name == "bfloat16" and device.startswith("cuda") else torch.float32


def open_encoders(preset: str, weights: str | None, dtype: str, device: str | None = None) -> Encoders:
    """Encoders of a preset. dtype: float32 or bfloat16; device: cuda where there is one, else the CPU."""
    import torch

    from sama.encoders import Encoders

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return Encoders.from_preset(preset, device, getattr(torch, dtype), sources(weights))


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
