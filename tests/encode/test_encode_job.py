"""`sama encode` on Ray: complete, resumable after a kill, honest about what it will write."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from pipelines.encode import latents, prompts, store, text_job
from pipelines.encode.encode import Encoding, Pool, encode
from pipelines.encode.text import CachedText
from pipelines.mixture import BatchPlan
from pipelines.samples import provenance
from sama.encoders import Encoders
from sama.errors import InputError
from tests.conftest import REPOSITORY
from tests.encode.conftest import POOL, into


def test_everything_is_there_and_a_second_run_writes_nothing(
    encoded: str, small_plan: BatchPlan, tiny: Encoders, capsys: pytest.CaptureFixture
) -> None:
    wanted = prompts.collect(small_plan, tiny.digest_of("text"))
    held = store.Store(f"{encoded}/text")
    assert held.has(wanted.keys).all()
    assert len(held) == len(wanted)
    rows = latents.row_keys(small_plan, latents.identity(tiny, 1))
    assert store.Store(f"{encoded}/latents").has(rows).all()
    assert provenance.read(encoded)["counts"]["text"]["bytes"] == held.nbytes
    before = sorted(p.name for p in Path(encoded).rglob("part-*"))
    capsys.readouterr()
    encode(small_plan, into(encoded), POOL, ["text", "latents"], limit_gb=1, yes=False)
    assert sorted(p.name for p in Path(encoded).rglob("part-*")) == before
    told = capsys.readouterr().out
    assert "0 to do" in told
    assert "measuring" not in told


def test_more_than_the_limit_needs_a_yes(small_plan: BatchPlan, tmp_path: Path, ray_session: None, capsys) -> None:
    with pytest.raises(InputError, match=r"would be written, more than 1e-06 GB: say --yes"):
        encode(small_plan, into(tmp_path / "cache"), POOL, ["text"], limit_gb=1e-6, yes=False)
    assert not (tmp_path / "cache").exists()  # the bytes were told before anything was written
    told = capsys.readouterr().out
    assert "counted over all of them" in told
    assert "measured on" in told
    with pytest.raises(InputError, match="9 actors need 9 CPUs"):
        Pool(9, 1.0, 0.0).check()


def test_a_cache_of_other_encoders_is_left_alone(cache: str, small_plan: BatchPlan) -> None:
    with pytest.raises(InputError, match="was made with computed_in float32, this is bfloat16"):
        encode(small_plan, Encoding(cache, "tiny", None, "bfloat16"), POOL, ["text"], limit_gb=1, yes=False)


def test_stages_in_this_process_fill_a_cache_just_the_same(cache: str, small_plan: BatchPlan, tiny: Encoders) -> None:
    held = store.Store(f"{cache}/text")
    assert held.has(prompts.collect(small_plan, tiny.digest_of("text")).keys).all()
    rows = latents.row_keys(small_plan, latents.identity(tiny, 1))
    assert store.Store(f"{cache}/latents").has(rows).all()
    assert held.nbytes % (2 * tiny.preset.text_dim) == 0


@pytest.mark.slow
def test_killed_and_run_again(
    encode_data: str,
    encode_mixture: str,
    small_plan: BatchPlan,
    tiny: Encoders,
    tmp_path: Path,
    ray_session: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    """The whole process group dies by SIGKILL after the first parts; the same command does the rest.

    Not more: parts that were there stay as they are.
    """
    code = (
        "import sys; from pipelines.encode import text_job; text_job.PART_PROMPTS = 8\n"
        "from pipelines.cli import main; sys.argv = ['sama', *sys.argv[1:]]; main()\n"
    )
    out = tmp_path / "cache"
    command = [sys.executable, "-c", code, "encode", encode_mixture, "--data", encode_data, "--out", str(out)]
    command += ["--preset", "tiny", "--num-cpus", "2"]
    child = subprocess.Popen(command, cwd=REPOSITORY, start_new_session=True, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list((out / "text").glob("part-*.parquet")) and time.monotonic() < deadline and child.poll() is None:
        time.sleep(0.01)
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    time.sleep(2)  # Ray's processes notice that their driver is gone
    kept = {p.name: p.stat().st_mtime_ns for p in (out / "text").glob("part-*.parquet")}
    done = len(store.Store(str(out / "text")))
    wanted = prompts.collect(small_plan, tiny.digest_of("text"))
    assert done > 0
    monkeypatch.setattr(text_job, "PART_PROMPTS", 8)
    capsys.readouterr()
    encode(small_plan, into(out), POOL, ["text"], limit_gb=1, yes=False)
    assert f"{done} in the cache, {len(wanted) - done} to do" in capsys.readouterr().out
    held = store.Store(str(out / "text"))
    assert held.has(wanted.keys).all()
    assert len(held) == len(wanted)
    assert kept.items() <= {p.name: p.stat().st_mtime_ns for p in (out / "text").glob("part-*.parquet")}.items()
    texts = prompts.at(small_plan, wanted.rows, wanted.tasks)
    assert np.isfinite(CachedText(str(out), tiny)(texts).numpy()).all()
    assert text_job.FOLDER == "text"
