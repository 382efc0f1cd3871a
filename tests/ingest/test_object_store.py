"""A root on an object store: the same calls, with URIs, and files that appear only when whole."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import pytest

from pipelines.ingest import chunk, references
from pipelines.ingest.ingest import ingest
from pipelines.samples import storage
from pipelines.samples.index import media_of, read_index
from pipelines.samples.ledger import ledger
from sama import video


class Bucket(pafs.SubTreeFileSystem):
    """Behaves as a store: folders need not be made, and it is not the local file system."""

    def open_output_stream(self, path: str, *args: Any, **kwargs: Any) -> Any:
        self.create_dir(os.path.dirname(path), recursive=True)
        return super().open_output_stream(path, *args, **kwargs)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    bucket = Bucket(str(tmp_path), pafs.LocalFileSystem())
    monkeypatch.setattr(storage, "_remote", lambda root: bucket)
    return "s3://bucket"


@pytest.mark.usefixtures("no_ray")
def test_ingest_to_a_store_and_again(small_world: dict[str, dict], store: str, tmp_path: Path) -> None:
    root = f"{store}/root"
    for _ in range(2):
        ingest("openve-3m", small_world["openve-3m"]["folder"], root, chunk_rows=4)
        facts = ledger(root)["openve-3m"]
        assert (facts["index"], facts["rejects"]) == (10, 2)
    for row in read_index(root).to_pylist():
        assert row["target_uri"].startswith("s3://bucket/root/shards/openve-3m/")
        assert video.probe(media_of(row, "target")).frames == row["target_frames"]
    assert (tmp_path / "bucket" / "root" / "root.json").exists()
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.usefixtures("no_ray")
def test_a_store_that_does_not_answer_rejects_nothing(
    small_world: dict[str, dict], store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.symlink(small_world["openve-3m"]["folder"], tmp_path / "bucket")
    monkeypatch.setattr(references.time, "sleep", lambda s: None)
    real = storage.read_bytes

    def down(uri: str) -> bytes:
        if uri.endswith(".mp4"):
            raise OSError("503 Slow Down")
        return real(uri)

    monkeypatch.setattr(storage, "read_bytes", down)
    root = str(tmp_path / "root")
    with pytest.raises(chunk.StorageError, match="503"):
        ingest("openve-3m", store, root)
    monkeypatch.setattr(storage, "read_bytes", real)
    ingest("openve-3m", store, root)
    assert ledger(root)["openve-3m"]["rejects"] == 2
