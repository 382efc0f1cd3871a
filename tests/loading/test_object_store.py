"""The reader over an object store: ranges only, retries, and the same rows as from a disk."""

import numpy as np
import pyarrow.fs as pafs
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from pipelines.config import MicroBatch as Sizes
from pipelines.loading import StorageError, read, rows
from pipelines.mixture import BatchPlan
from pipelines.samples import storage
from tests.loading.conftest import COUNTS, small_mixture
from tests.mixture.roots import write_media_root

SIZES = Sizes(image=2, video=1)


class Bucket(pafs.FSSpecHandler):
    """An object store in memory. It notes what is read of shards, and fails when told to."""

    def __init__(self) -> None:
        super().__init__(MemoryFileSystem(skip_instance_cache=True))
        self.fs.store, self.fs.pseudo_dirs = {}, [""]
        self.fail, self.attempts, self.read = 0, 0, 0

    def open_input_file(self, path):
        if not path.endswith(".tar"):
            return super().open_input_file(path)
        self.attempts += 1
        if self.fail:
            self.fail -= 1
            raise OSError("503 slow down")
        return Noting(super().open_input_file(path), self)


def Noting(file, bucket):  # noqa: N802
    class Counted:
        def __init__(self) -> None:
            self.closed = False

        def readable(self):
            return True

        def seekable(self):
            return True

        def writable(self):
            return False

        def seek(self, *args):
            return file.seek(*args)

        def tell(self):
            return file.tell()

        def size(self):
            return file.size()

        def read(self, size=-1):
            data = file.read(size)
            bucket.read += len(data)
            return data

        def close(self):
            self.closed = True
            file.close()

    import pyarrow as pa

    return pa.PythonFile(Counted(), mode="r")


@pytest.fixture
def bucket(monkeypatch):
    handler = Bucket()
    system = pafs.PyFileSystem(handler)
    monkeypatch.setattr(storage, "_remote", lambda root: system)
    monkeypatch.setattr(rows, "FIRST_PAUSE_S", 0.0)
    return handler


@pytest.fixture
def remote_plan(bucket):
    write_media_root("s3://bucket/root", COUNTS)
    return BatchPlan.from_mixture(small_mixture(), "s3://bucket/root")


def test_rows_are_those_of_a_disk_and_only_their_ranges_are_read(bucket, remote_plan, plan):
    bucket.read, wanted = 0, 0
    for theirs, ours in zip(read(remote_plan, 0, 1, SIZES, 0, 6), read(plan, 0, 1, SIZES, 0, 6), strict=True):
        assert theirs.keys == ours.keys
        assert np.array_equal(theirs.target, ours.target)
        assert np.array_equal(theirs.source, ours.source)
        wanted += theirs.fetched_bytes
    assert bucket.read - wanted <= 1024 * bucket.attempts  # the tar headers between two members that are read at once


def test_an_object_store_that_fails_now_and_then_is_asked_again(bucket, remote_plan):
    expected = rows.build_row(remote_plan, 0, 0, 0, 1, SIZES)
    bucket.fail = rows.RETRIES - 1
    again = rows.build_row(remote_plan, 0, 0, 0, 1, SIZES)
    assert np.array_equal(again.target, expected.target)
    assert not again.substituted  # what storage does wrong is never answered with another sample
    bucket.fail, bucket.attempts = 1000, 0
    with pytest.raises(StorageError, match="503 slow down"):
        rows.build_row(remote_plan, 0, 0, 0, 1, SIZES)
    assert bucket.attempts == rows.RETRIES
