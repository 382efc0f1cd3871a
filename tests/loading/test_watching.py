"""The loader's numbers, and the sentence of its watchdog, without Ray."""

import asyncio
import itertools
import time

import pytest

from pipelines.config import LoaderSettings
from pipelines.config import MicroBatch as Sizes
from pipelines.loading import read
from pipelines.loading.clock import RowClock
from pipelines.loading.room import check_room, least_ahead, row_bytes, rows_ahead
from pipelines.loading.watching import SUMMED, State, Watchdog, measures, metrics, stuck
from sama.errors import InputError
from tests.loading.conftest import small_mixture


def state(made: int, limit: int, taken: list[int], running=(), decoded=()) -> State:
    return State(made, limit, taken, dict.fromkeys(running, (7.0, "node pid 3")), list(decoded), 0)


@pytest.mark.parametrize(
    ("found", "stage", "words"),
    [
        (None, "clock", "does not answer"),
        (state(20, 40, [4, 4], decoded=[9]), "split", "row 9 is decoded"),
        (state(20, 40, [4, 4], running=[9]), "decode running", "7 s on node pid 3"),
        (state(20, 40, [4, 4], running=[8]), "decode pending", "row 9 waits"),
        (state(9, 40, [4, 4], decoded=[8]), "generation", "row 9 may be made"),
        (state(9, 9, [0, 4], decoded=[8]), "consumer", "rank 0 has taken only 0 rows"),
    ],
)
def test_the_stuck_stage_is_named(found, stage, words):
    """Rank 1 of 2 waits for its fifth row, which is row 9."""
    named, why = stuck(found, 1, 4)
    assert named == stage
    assert words in why


def test_the_clock_knows_where_rows_are():
    async def run() -> None:
        clock = RowClock(2, 6)
        assert await clock.limit(0) == 6
        for row in range(4):
            await clock.decoding(row, "here")
        await clock.decoded(1, 100)
        await clock.decoded(0, 50)
        await clock.made(5)
        now = await clock.state()
        assert (now.made, now.limit, now.decoded, sorted(now.running), now.bytes_ahead) == (5, 6, [0, 1], [2, 3], 150)
        assert await clock.take(0, 1) == (4, 100)
        assert (await clock.state()).limit == 6  # rank 1 holds it
        assert await clock.take(1, 1) == (3, 0)
        assert (await clock.state()).limit == 8
        assert await clock.take(0, 2) == (2, 0)
        await clock.decoded(2, 70)  # taken before this message came
        await clock.decoding(0, "a second time")
        now = await clock.state()
        assert (now.decoded, sorted(now.running), now.bytes_ahead) == ([], [3], 0)

    asyncio.run(run())


def test_a_wait_is_reported_while_it_lasts_and_ever_more_rarely():
    said = []
    dog = Watchdog(0.4, said.append)
    with dog.wait():
        time.sleep(0.1)
    assert not said
    time.sleep(0.6)  # nobody waits
    assert not said
    with dog.wait():
        time.sleep(3.0)
    assert 1 <= len(said) <= 3  # at 0.4, 0.8 and 1.6 s or later, the next would be at 3.2 or more
    assert said[0] >= 0.4
    assert all(later >= 2 * before for before, later in itertools.pairwise(said))
    count = len(said)
    with dog.wait():
        time.sleep(0.78)
    dog.close()
    assert len(said) == count + 1
    assert said[-1] < 2 * said[-2]  # another wait, counted from its own beginning


def test_numbers_of_a_step(plan):
    sizes = Sizes(image=2, video=1)
    batches = [b for rank in range(2) for b in read(plan, rank, 2, sizes, 1, 2)]
    for batch in batches:
        batch.rows_ahead, batch.bytes_ahead = 5, 1000
    sums = [sum(parts) for parts in zip(*(measures(b) for b in batches), strict=True)]
    assert len(sums) == len(SUMMED)
    row = metrics(sums, seconds=2.0)
    assert set(row) == {
        f"loader/{n}"
        for n in ("fetch_s", "decode_s", "perturb_s", "frames_per_s", "mb_per_s", "rows_ahead", "bytes_ahead")
    }
    planned = plan[1]
    media = {s.key: plan.sample(s.sample) for s in planned.slots}
    size = sum((media[s.key]["source_size"] or 0) + media[s.key]["target_size"] for s in planned.slots)
    sides = sum(2 if media[s.key]["source_uri"] else 1 for s in planned.slots)
    assert size <= row["loader/mb_per_s"] * 2e6 + 0.5 <= size + 2 * 65536 * len(planned.slots)
    assert row["loader/frames_per_s"] == sides * planned.bucket.frames / 2
    assert row["loader/decode_s"] == pytest.approx(sum(b.timings["decode"] for b in batches))
    assert (row["loader/rows_ahead"], row["loader/bytes_ahead"]) == (5, 1000)


def test_room():
    mixture, sizes = small_mixture(), Sizes(image=4, video=2)
    each = row_bytes(mixture, sizes)
    assert each == 2 * 2 * 5 * 32 * 32 * 3  # two clips of five frames of 1024 pixels, on both sides
    settings = LoaderSettings(read_ahead_rows=64, max_decoders=2)
    check_room(mixture, sizes, 2, settings, store=64 * each, cpus=1)
    with pytest.raises(InputError, match=r"up to 64 rows .* set loader.read_ahead_rows to 63 or less"):
        check_room(mixture, sizes, 2, settings, store=64 * each - 1, cpus=1)
    least = least_ahead(2, 2)
    assert rows_ahead(2, LoaderSettings(read_ahead_rows=1, max_decoders=2)) == least == 12
    with pytest.raises(InputError, match="2 data ranks and 2 decoders need 12 rows at the least"):
        check_room(mixture, sizes, 2, settings, store=least * each - 1, cpus=1)
    with pytest.raises(InputError, match=r"training workers leave 0\.5"):
        check_room(mixture, sizes, 2, settings, store=64 * each, cpus=0.5)


def test_a_stall_is_an_event_and_a_file_of_the_run(tmp_path):
    from pipelines.train.on_ray import stall_log
    from pipelines.train.records import read_events

    stall_log(str(tmp_path))("loader: rank 0 has waited", "all that is known")
    (event,) = read_events(str(tmp_path))
    (file,) = tmp_path.glob("loader-stall-*.txt")
    assert (event["kind"], event["message"]) == ("stall", f"loader: rank 0 has waited ({file.name})")
    assert file.read_text() == "all that is known"
