"""How busy each machine of a training is: `system/<node>/…` in the rows, one set per machine."""

from __future__ import annotations

import re
import socket
import time
from typing import Any

import psutil
import torch

from pipelines.train.loop import Parts, StepNotes

GIB, MIB = 2**30, 2**20


class Machines:
    """Adds to the row, about every `seconds`: cpu_percent, memory_percent, memory_gb, disk_{read,write}_mb_s and
    net_{sent,received}_mb_s of each machine, and gpu_memory_gb (the fullest device's) where there are GPUs.

    Every rank calls it. The first rank of each machine measures; the ranks meet only in the steps that are measured,
    and rank 0 says then which step is the next.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.node = re.sub(r"[^A-Za-z0-9_.-]", "-", socket.gethostname())
        self._next, self._before = 0, _counters()
        self._last: tuple[int, float] | None = None
        psutil.cpu_percent()  # what it says counts from the call before

    def __call__(self, parts: Parts, row: dict[str, Any], notes: StepNotes) -> None:
        step = row["step"]
        if step < self._next:
            return
        found = parts.world.gather((self.node, self._measure(parts.world.device), self._after(step)))
        self._next = found[0][2]
        named: dict[str, list[dict[str, float]]] = {}
        for node, values, _ in found:
            named.setdefault(node, []).append(values)
        for node, ranks in named.items():
            row.update({f"system/{node}/{k}": v for k, v in ranks[0].items()})
            fullest = [r["gpu_memory_gb"] for r in ranks if "gpu_memory_gb" in r]
            if fullest:
                row[f"system/{node}/gpu_memory_gb"] = max(fullest)

    def _after(self, step: int) -> int:
        """The step at which `seconds` will have passed, at the pace since the last time."""
        now, before = time.monotonic(), self._last
        self._last = (step, now)
        if before is None or step <= before[0]:
            return step + 1
        pace = (now - before[1]) / (step - before[0])
        return step + max(1, round(self.seconds / max(pace, 1e-9)))

    def _measure(self, device: torch.device) -> dict[str, float]:
        memory, now, before = psutil.virtual_memory(), _counters(), self._before
        self._before = now
        passed = max(now["time"] - before["time"], 1e-9)
        values = {
            "cpu_percent": psutil.cpu_percent(),
            "memory_percent": memory.percent,
            "memory_gb": (memory.total - memory.available) / GIB,
        }
        values.update({f"{k}_mb_s": (now[k] - before[k]) / MIB / passed for k in now if k != "time"})
        if device.type == "cuda":
            free, total = torch.cuda.mem_get_info(device)
            values["gpu_memory_gb"] = (total - free) / GIB
        return values


def _counters() -> dict[str, float]:
    """Bytes since the machine started, and the time in seconds."""
    disk, net = psutil.disk_io_counters(), psutil.net_io_counters()
    return {
        "time": time.monotonic(),
        "disk_read": disk.read_bytes if disk else 0,
        "disk_write": disk.write_bytes if disk else 0,
        "net_sent": net.bytes_sent if net else 0,
        "net_received": net.bytes_recv if net else 0,
    }
