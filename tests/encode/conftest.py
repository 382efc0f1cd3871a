"""A small data root, a plan over it, the tiny encoders, and a cache that `sama encode` filled."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipelines.encode import latent_job, latents, prompts, store, text_job
from pipelines.encode.encode import Encoding, Pool, encode
from pipelines.mixture import BatchPlan
from sama.encoders import Encoders
from tests.train import runs

POOL = Pool(actors=1, cpus=1.0, gpus=0.0)
STEPS = 6


@pytest.fixture(scope="session")
def encode_data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return runs.data_root(tmp_path_factory.mktemp("encode-data"))


@pytest.fixture(scope="session")
def encode_mixture(tmp_path_factory: pytest.TempPathFactory) -> str:
    return runs.mixture(tmp_path_factory.mktemp("encode-mixture"), "encode", STEPS, instruction_dropout=0.3)


@pytest.fixture(scope="session")
def small_plan(encode_data: str, encode_mixture: str) -> BatchPlan:
    return BatchPlan.from_file(encode_mixture, data=encode_data)


@pytest.fixture(scope="session")
def tiny() -> Encoders:
    return Encoders.from_preset("tiny")


@pytest.fixture(scope="session")
def cache(small_plan: BatchPlan, tiny: Encoders, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Text and latents of the small plan, by the job's stages in this process."""
    folder = tmp_path_factory.mktemp("cache")
    plan, told = small_plan.save(str(folder / "plan")), ("tiny", None, "float32")
    wanted = prompts.collect(small_plan, tiny.digest_of("text"))
    store.fix(str(folder / "text"), text_job.facts(tiny))
    stage = text_job.TextChunk(plan, str(folder / "text"), *told)
    for chunk in text_job.chunks(wanted, np.ones(len(wanted), bool), tiny.preset.text_dim, 20.0):
        assert stage(chunk)["entries"].to_pylist() == [len(chunk["row"][0])]
    store.fix(str(folder / "latents"), latents.facts(tiny, 1))
    rows = np.arange(prompts.total_rows(small_plan))
    encode_rows = latent_job.LatentChunk(plan, str(folder / "latents"), *told, anchors=1, threads=2)
    for chunk in latent_job.chunks(rows, latents.row_bytes(small_plan, tiny.preset, 1)):
        assert encode_rows(chunk)["failed"].to_pylist() == [0]
    return str(folder)


@pytest.fixture(scope="session")
def encoded(small_plan: BatchPlan, tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> str:
    """The same, by the whole job on Ray."""
    folder = tmp_path_factory.mktemp("encoded")
    encode(small_plan, into(folder), POOL, ["text", "latents"], limit_gb=1, yes=False)
    return str(folder)


def into(folder: Path | str) -> Encoding:
    return Encoding(str(folder), "tiny", None, "float32")
