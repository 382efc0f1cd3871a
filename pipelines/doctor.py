"""`sama doctor`: what this machine has, and what is missing for which step."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import sys
import tempfile
from pathlib import Path

from sama.errors import InputError

PACKAGES = (
    "torch", "ray", "mlflow", "diffusers", "transformers", "pyarrow", "webdataset", "av", "safetensors",
)  # fmt: skip


def doctor() -> None:
    """Check this machine: packages, decoder, devices, memory, disk. Exit code 2 when a step cannot work.

    Example: sama doctor
    """
    from pipelines.progress import say

    broken: list[str] = []
    say(f"python       {sys.version.split()[0]}")
    for package in PACKAGES:
        try:
            say(f"{package:12s} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            say(f"{package:12s} missing")
            broken.append(package)
    if not broken:
        say(f"video        {_check_video()}")
        say(f"devices      {_devices()}")
    say(f"cpus         {os.cpu_count()}")
    say(f"memory       {_memory_gb():.1f} GB")
    say(f"disk here    {shutil.disk_usage(Path.cwd()).free / 1e9:.1f} GB free")
    say(f"shm          {_shm()}")
    say(f"temporary    {tempfile.gettempdir()}, {shutil.disk_usage(tempfile.gettempdir()).free / 1e9:.1f} GB free")
    if broken:
        raise InputError(f"not installed: {', '.join(broken)}; install from requirements.lock")


def _check_video() -> str:
    import numpy as np

    from sama import video

    frames = np.zeros((5, 32, 48, 3), dtype=np.uint8)
    frames[:, :, 24:] = 200
    back = video.decode(video.encode(frames, fps=8.0))
    error = float(np.abs(back.astype(int) - frames).mean())
    if back.shape != frames.shape or error > 8:
        raise InputError(f"video does not survive encoding and decoding here (mean error {error:.1f} of 255)")
    return "H.264 encodes and decodes"


def _devices() -> str:
    import torch

    if not torch.cuda.is_available():
        return "CPU only"
    return ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))


def _memory_gb() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9


def _shm() -> str:
    shm = Path("/dev/shm")
    return (
        f"{shutil.disk_usage(shm).free / 1e9:.1f} GB free"
        if shm.exists()
        else "none: Ray's object store would use the disk"
    )
