"""A small world in the five layouts, and ingest without Ray."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipelines.demo.datasets import Sizes, write_world
from pipelines.ingest import ingest as module
from pipelines.ingest.chunk import ingest_chunk

SMALL = Sizes(ditto=12, openve=12, reco=12, nhr=12, koala=24)


@pytest.fixture(scope="session")
def small_world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    return write_world(str(tmp_path_factory.mktemp("world")), seed=3, sizes=SMALL)


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks are done one after the other in this process, by the same function."""

    def run(chunks: list[dict[str, Any]], root: str, dataset: str, share: float, _: Any) -> Any:
        for chunk in chunks:
            yield ingest_chunk({"root": root, "dataset": dataset, "heldout_share": share, **chunk})

    monkeypatch.setattr(module, "_run", run)


def contents(root: Path) -> dict[str, Any]:
    """Everything a root says, without times: index rows, rejects, and the bytes of its shards."""
    from pipelines.samples.index import read_index, read_rejects

    rows = read_index(str(root)).drop_columns(["ingested_at"]).to_pylist()
    for row in rows:
        for column in ("source_uri", "target_uri", "json_uri"):
            row[column] = row[column] and row[column].removeprefix(str(root))
    shards = {p.name: p.read_bytes() for p in (root / "shards").rglob("*.tar")}
    return {
        "index": sorted(rows, key=lambda r: r["key"]),
        "rejects": sorted(read_rejects(str(root)).to_pylist(), key=lambda r: (r["dataset"], r["manifest"], r["row"])),
        "shards": shards,
    }
