"""A whole run whose two processes share every sequence, from the files to the checkpoint, against one process."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipelines import config
from pipelines.samples import storage
from pipelines.train import checkpoint
from pipelines.train.local import train_here
from pipelines.train.records import METRICS, read_rows
from tests.train import runs


@pytest.mark.slow
def test_two_processes_that_share_sequences_train_like_one(tmp_path: Path) -> None:
    data = runs.data_root(tmp_path / "data")
    mixture = runs.mixture(tmp_path, "stage0", 4)
    common = {"checkpoint_every": 4, "heldout_every": 4, "strip_every": 4}
    alone = train_here(runs.settings(tmp_path, "alone", mixture, data, **common))
    how = runs.settings(
        tmp_path, "together", mixture, data, workers=2, sequence_parallel=2, activation_checkpointing="block", **common
    )
    (tmp_path / "together.yaml").write_text(config.dump(how))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    env = {**os.environ, "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    command = [sys.executable, "-m", "pipelines.train.local", str(tmp_path / "together.yaml")]
    pipe = subprocess.PIPE
    started = [
        subprocess.Popen(command, env={**env, "RANK": str(r)}, stdout=pipe, stderr=pipe, text=True) for r in range(2)
    ]
    outs = [p.communicate(timeout=400) for p in started]
    assert [p.returncode for p in started] == [0, 0], "\n".join(err[-3000:] for _, err in outs)

    ours, theirs = (list(read_rows(storage.join(str(tmp_path / run), METRICS))) for run in ("alone", "together"))
    assert [r["step"] for r in theirs] == [0, 1, 2, 3]
    for one, two in zip(ours, theirs, strict=True):
        assert set(one) == set(two)
        for name in (n for n in one if n.startswith(("train/", "seen/", "heldout/"))):
            assert two[name] == pytest.approx(one[name], rel=2e-4, abs=1e-6), name
        assert two["tokens_per_device"] == pytest.approx(one["tokens_per_device"] / 2, rel=0.01)
    want, found = (checkpoint.load_weights(str(tmp_path / run), None, "ema")[0] for run in ("alone", "together"))
    assert set(want) == set(found)
    assert all(torch.allclose(found[n], want[n], rtol=1e-3, atol=1e-4) for n in want)
    assert alone.final_step == 4
