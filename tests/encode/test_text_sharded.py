"""The text encoder's weights spread over two processes."""

from __future__ import annotations

import json
import socket
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY


def test_two_ranks_hold_a_part_each_and_encode_the_same() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "tests.encode.sharded_ranks"]
    ranks = [
        subprocess.Popen([*command, str(r), "2", str(port)], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
        for r in range(2)
    ]
    held = []
    for process in ranks:
        out, _ = process.communicate(timeout=240)
        assert process.returncode == 0
        told = json.loads(out.splitlines()[-1])
        assert told["equal"]
        held.append(told["held"])
    assert sum(held) == pytest.approx(1.0)
    assert max(held) < 0.7  # odd sizes of the tiny encoder do not halve
