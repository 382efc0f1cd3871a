"""Keeps the memory of one row for the next one."""

from __future__ import annotations

import ctypes
import functools

KEPT = 1 << 30  # bytes
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


@functools.lru_cache(maxsize=1)
def keep() -> bool:
    """Let this process keep freed blocks of up to KEPT bytes; False where the C library cannot.

    Otherwise each row's pixels are new pages, which the kernel has to clear: measured at an eighth of the CPU time of a
    row of 49 frames of 480x832.
    """
    try:
        library = ctypes.CDLL(None)
        return bool(library.mallopt(_M_MMAP_THRESHOLD, KEPT) and library.mallopt(_M_TRIM_THRESHOLD, KEPT))
    except (AttributeError, OSError, TypeError):
        return False
