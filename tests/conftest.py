"""Fixtures shared by all tests. Ray starts once; data outside the repository is optional."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
from pipelines.cli import quiet_dependencies

quiet_dependencies()
REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real clips, golden cases and tokenizers that lie beside a developer's checkout."""
    folder = Path(os.environ.get("SAMA_SHARED", REPOSITORY.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"needs the shared test data, which is not at {folder.name}/ beside the checkout")
    return folder


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One local Ray for the whole run."""
    from pipelines.cluster_session import connect
    from pipelines.config import RaySettings

    connect(RaySettings(num_cpus=4, object_store_mb=300))
    yield
    import ray

    ray.shutdown()
