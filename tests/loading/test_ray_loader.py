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
            elif name not in ("timings", "rows_ahead", "bytes_ahead"):
                assert value == other, (name, theirs.step)


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])  # 3 divides neither batch
def test_rows_and_bytes_are_those_of_the_reader(plan, plan_folder, ranks):
    found = through_ray(plan_folder, ranks, 0, plan.steps)
    assert len({len(f) for f in found}) == 1
    for rank in range(ranks):
        assert_same(found[rank], list(read(plan, rank, ranks, SIZES, 0, plan.steps)))


def test_restarts_at_any_step_with_any_number_of_ranks(broken_plan, tmp_path):
    """Three lives of a run, cut at random steps, each with other ranks: together they are the plan, slot by slot,
    with the same substitutes for what does not decode."""
    plan, plan_folder = broken_plan, broken_plan.save(str(tmp_path))
    rng = np.random.default_rng(7)
    first, second = sorted(rng.choice(np.arange(1, plan.steps), 2, replace=False).tolist())
    seen: dict[int, dict[int, tuple]] = {}
    for ranks, start, stop in ((2, 0, first), (3, first, second), (1, second, plan.steps)):
        found = through_ray(plan_folder, ranks, start, stop)
        for rank in range(ranks):
            assert_same(found[rank], list(read(plan, rank, ranks, SIZES, start, stop)))
            for batch in found[rank]:
                for i in np.flatnonzero(batch.weights).tolist():
                    facts = (
                        batch.keys[i], batch.tasks[i], int(batch.starts[i]), int(batch.seeds[i]),
                        batch.target[i, 0].tobytes(),
                    )  # fmt: skip
                    assert seen.setdefault(batch.step, {}).setdefault(int(batch.slots[i]), facts) is facts  # only once
    whole = {b.step: b for b in read(plan, 0, 1, Sizes(image=5, video=4), 0, plan.steps)}
    for step in range(plan.steps):
        assert seen[step] == {
            i: (whole[step].keys[i], s.task, int(whole[step].starts[i]), s.seed, whole[step].target[i, 0].tobytes())
            for i, s in enumerate(plan[step].slots)
        }
    assert any(batch.substituted for batch in whole.values())


def test_a_run_is_read_in_segments(plan, plan_folder, monkeypatch):
    """Passes of a few steps each, the last one shorter, are together the plan; so is a run of no step."""
    from pipelines.loading import ray_loader

    monkeypatch.setattr(ray_loader, "SEGMENT_ROWS", 20)  # 4 rows a step at the most: passes of 5, 5 and 1 steps
    found = through_ray(plan_folder, 2, 1, plan.steps)
    for rank in range(2):
        assert_same(found[rank], list(read(plan, rank, 2, SIZES, 1, plan.steps)))
    assert through_ray(plan_folder, 2, plan.steps, plan.steps) == [[], []]


def test_groups_of_workers_share_a_data_rank(plan, plan_folder):
    from pipelines.loading.ray_loader import PlanSplit, dataset, iterate

    rows = dataset(plan_folder, 2, SIZES, 0, 3, SETTINGS)
    shards = [given["plan"] for given in PlanSplit(group_size=2).configure({"plan": rows}, 4, None, None)]
    assert [s is None for s in shards] == [False, True, False, True]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda shard: list(iterate(shard)), shards[::2]))
    for rank in range(2):
        assert_same(found[rank], list(read(plan, rank, 2, SIZES, 0, 3)))
    with pytest.raises(ValueError, match="3 workers do not form groups of 2"):
        PlanSplit(group_size=2).configure({"plan": rows}, 3, None, None)


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


def test_the_watchdog_names_a_stuck_decoder(media_root, tmp_path):
    """A shard that is a pipe nobody writes to: whoever opens it waits for ever."""
    import os
    import shutil

    from pipelines.loading.ray_loader import dataset, iterate, split

    root = tmp_path / "copy"
    shutil.copytree(media_root, root)
    plan = BatchPlan.from_mixture(small_mixture(), str(root))
    folder = plan.save(str(tmp_path / "plan"))
    tars = list((root / "shards").rglob("*.tar"))
    for tar in tars:
        tar.unlink()
        os.mkfifo(tar)
    said: list[tuple[str, str]] = []
    (shard,) = split(dataset(folder, 1, SIZES, 0, 2, SETTINGS), 1)

    def consume() -> None:
        try:
            list(iterate(shard, stall_warning_s=1.0, on_stall=lambda *told: said.append(told)))
        except Exception as error:
            said.append(("ended", str(error)))

    consumer = threading.Thread(target=consume, daemon=True)
    consumer.start()
    deadline = time.monotonic() + 90
    while not any("decode running" in sentence for sentence, _ in said) and time.monotonic() < deadline:
        time.sleep(0.2)
    pipes = [os.open(tar, os.O_RDWR | os.O_NONBLOCK) for tar in tars]  # what hangs may go on, to an error
    consumer.join(60)
    for pipe in pipes:
        os.close(pipe)
    sentence, dump = next(told for told in said if "decode running" in told[0])
    assert "rank that has no row yet" in sentence
    assert "stuck in decode running: row 0 is being fetched and decoded" in sentence
    assert "decoding" in dump
    assert "object_store_memory" in dump
    assert "Ray Data:" in dump
