"""Training as users start it, in processes of its own: drivers, Ray nodes, torchrun, and what they leave."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch

from pipelines.train import checkpoint
from pipelines.train.records import METRICS, read_events, read_rows

T = TypeVar("T")
SAMA = "import sys; from pipelines.cli import main; sys.exit(main())"


def environment(**more: str) -> dict[str, str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1", **more}
    env.pop("RAY_ADDRESS", None)
    return env


class Process:
    """A command whose output goes to a file: a pipe that nobody reads would stop it."""

    def __init__(self, command: list[str], log: Path, **env: str) -> None:
        self.log = log
        with open(log, "ab") as file:
            self.popen = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment(**env))

    @property
    def pid(self) -> int:
        return self.popen.pid

    def output(self) -> str:
        """What it printed, without the lines of the actor of Ray that wants a dashboard."""
        lines = self.log.read_text(errors="replace").splitlines()
        return "\n".join(line for line in lines if "PlacementGroupCleaner" not in line)

    def end(self, seconds: float = 480.0) -> int:
        return self.popen.wait(seconds)


def driver(config_file: Path, log: Path) -> Process:
    """`sama train CONFIG`"""
    return Process([sys.executable, "-c", SAMA, "train", str(config_file)], log)


def torchrun(config_file: Path, log: Path, ranks: int) -> Process:
    module = ["--standalone", "--nproc-per-node", str(ranks), "-m", "pipelines.train.local", str(config_file)]
    return Process([sys.executable, "-m", "torch.distributed.run", *module], log)


def wait_for(what: Callable[[], T], process: Process | None = None, seconds: float = 300.0) -> T:
    """The first true value of what(); fails when the process ends before or time is up."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = what()
        if found:
            return found
        if process is not None and process.popen.poll() is not None:
            pytest.fail(f"ended with {process.popen.returncode}: {process.output()[-4000:]}")
        time.sleep(0.1)
    pytest.fail(f"waited too long: {process.output()[-4000:] if process else ''}")


def rows(run: Path) -> list[dict[str, Any]]:
    return list(read_rows(str(run / METRICS)))


def starts(run: Path) -> list[dict[str, Any]]:
    return [e for e in read_events(str(run)) if e["kind"] == "start"]


def pids(start: dict[str, Any]) -> list[int]:
    """The processes of all ranks, from a start event."""
    return [int(pid) for pid in re.findall(r"pid (\d+)", start["message"])]


def alive(pid: int) -> bool:
    """Whether a process runs; one that ended and waits to be noticed does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def parent(pid: int) -> int | None:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    except FileNotFoundError:
        return None


def machine_of(cluster: Any, pid: int) -> Any:
    """The machine of a `ray.cluster_utils.Cluster` whose raylet started a process."""
    raylets = {n.all_processes["raylet"][0].process.pid: n for n in cluster.list_all_nodes()}
    return raylets.get(parent(pid))


def curve(run: Path) -> list[dict[str, Any]]:
    """What must not depend on who was killed when: losses and counters of every step."""
    return [{k: v for k, v in row.items() if k.startswith(("train/", "seen/", "heldout/"))} for row in rows(run)]


def assert_same_weights(one: Path, other: Path) -> None:
    """Bit for bit, raw and averaged, in the newest checkpoints."""
    for which in ("raw", "ema"):
        ours, theirs = (checkpoint.load_weights(str(run), None, which)[0] for run in (one, other))
        assert set(ours) == set(theirs)
        assert [n for n in ours if not torch.equal(ours[n], theirs[n])] == []
