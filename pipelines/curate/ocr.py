"""Text in pictures, read by RapidOCR (optional: pip install "sama-pipelines[ocr]"; its models come with it)."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from sama.errors import InputError


@functools.cache
def _engine() -> Any:
    try:
        from rapidocr_onnxruntime import RapidOCR
    except ImportError:
        raise InputError('reading text needs an extra: pip install "sama-pipelines[ocr]"') from None
    return RapidOCR(intra_op_num_threads=1, inter_op_num_threads=1)


def read(frames: np.ndarray) -> str:
    """The lines of text in (S, H, W, 3) uint8 RGB frames, in reading order, each once, joined by " / "."""
    lines: dict[str, None] = {}
    for frame in frames:
        found, _ = _engine()(np.ascontiguousarray(frame[..., ::-1]))  # RapidOCR takes BGR
        for _box, text, _score in found or []:
            lines[text] = None
    return " / ".join(lines)
