"""The Ray loader gives every rank exactly what the in-process reader gives it."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from pipelines.config import LoaderSettings
from pipelines.config import MicroBatch as Sizes
from pipelines.loading import MicroBatch, read
from pipelines.mixture import BatchPlan
from tests.loading.conftest import small_mixture

pytestmark = pytest.mark.usefixtures("ray_session")
SIZES = Sizes(image=2, video=1)
SETTINGS = LoaderSettings(decode_cpus=1.0, max_decoders=2, read_ahead_rows=1)  # the least that works is used instead


def through_ray(folder: str, ranks: int, start: int, stop: int, settings=SETTINGS) -> list[list[MicroBatch]]:
    """All rows by rank, every rank read at once as training workers do."""
    from pipelines.loading.ray_loader import dataset, iterate, split

    rows = dataset(folder, ranks, SIZES, start, stop, settings)
    with ThreadPoolExecutor(ranks) as pool:
        return list(pool.map(lambda shard: list(iterate(shard)), split(rows, ranks)))


def assert_same(found: list[MicroBatch], expected: list[MicroBatch]) -> None:
    assert [(b.step, b.micro, b.rank) for b in found] == [(b.step, b.micro, b.rank) for b in expected]
    for ours, theirs in zip(found, expected, strict=True):
        for name, value in vars(theirs).items():
            other = getattr(ours, name)
            if isinstance(value, np.ndarray):
                assert value.dtype == other.dtype
                assert np.array_equal(value, other), (name, theirs.step)
            elif name != "timings":
                assert value == other, (name, theirs.step)


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_rows_and_bytes_are_those_of_the_reader(plan, plan_folder, ranks):
    found = through_ray(plan_folder, ranks, 0, plan.steps)
    assert len({len(f) for f in found}) == 1
    for rank in range(ranks):
        assert_same(found[rank], list(read(plan, rank, ranks, SIZES, 0, plan.steps)))


def test_restart_in_the_middle_with_other_ranks(plan, plan_folder):
    """Two ranks up to step 5, three from there on: each step is what the plan says."""
    for ranks, start, stop in ((2, 0, 5), (3, 5, plan.steps)):
        found = through_ray(plan_folder, ranks, start, stop)
        for rank in range(ranks):
            assert_same(found[rank], list(read(plan, rank, ranks, SIZES, start, stop)))


def test_read_ahead_is_bounded_and_nothing_starves(media_root, tmp_path):
    """A consumer that stands still holds the plan back; one that goes on gets everything."""
    import ray

    from pipelines.loading.ray_loader import dataset, iterate, split

    plan = BatchPlan.from_mixture(small_mixture(steps=600), media_root)
    folder = plan.save(str(tmp_path))
    settings = LoaderSettings(decode_cpus=1.0, max_decoders=2, read_ahead_rows=14)
    made = ray.remote(Counter).options(name="made-rows", num_cpus=0).remote()
    rows = dataset(folder, 2, SIZES, 0, plan.steps, settings).map_batches(
        count_row, batch_size=1, batch_format="pyarrow", num_cpus=0.1
    )
    shards = split(rows, 2)
    taken = [0, 0]
    stop = threading.Event()

    def consume(rank: int) -> None:
        for _ in iterate(shards[rank]):
            taken[rank] += 1
            if taken[rank] == 5:
                stop.wait(12)
            if taken[rank] == 40:
                return

    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(consume, r) for r in range(2)]
        deadline = time.monotonic() + 60
        while min(taken) < 5 and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(4)
        assert taken == [5, 5]
        # taken by both ranks, one batch prefetched by each, and the bound
        assert ray.get(made.read.remote()) <= 2 * 6 + 14
        stop.set()
        for one in both:
            one.result(timeout=120)
    assert taken == [40, 40]


class Counter:
    """Rows that were really made."""

    def __init__(self) -> None:
        self.rows = 0

    def add(self) -> None:
        self.rows += 1

    def read(self) -> int:
        return self.rows


def count_row(rows):
    import ray

    ray.get(ray.get_actor("made-rows").add.remote())
    return rows


def test_storage_errors_reach_the_trainer(media_root, tmp_path):
    import shutil

    root = tmp_path / "copy"
    shutil.copytree(media_root, root)
    plan = BatchPlan.from_mixture(small_mixture(), str(root))
    folder = plan.save(str(tmp_path / "plan"))
    shutil.rmtree(root / "shards")
    with pytest.raises(Exception, match="not where the index says"):
        through_ray(folder, 1, 0, 2)
