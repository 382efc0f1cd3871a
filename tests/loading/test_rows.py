"""Rows of the loader without Ray: what each rank gets is what the plan says, for any number of ranks."""

import json
from collections import defaultdict

import numpy as np
import pytest

from pipelines.config import MicroBatch as Sizes
from pipelines.loading import MicroBatch, StorageError, read, read_item, rows
from pipelines.mixture import BatchPlan
from pipelines.mixture.order import key_of
from pipelines.samples import storage
from sama import video
from sama.pretext import perturb
from tests.loading.conftest import COUNTS, small_mixture
from tests.mixture.roots import write_media_root

SIZES = Sizes(image=2, video=1)


@pytest.fixture(scope="session")
def global_batches(plan) -> dict[int, MicroBatch]:
    """Every step as one rank with one micro-step sees it."""
    whole = Sizes(image=5, video=4)
    return {b.step: b for b in read(plan, 0, 1, whole, 0, plan.steps)}


def test_one_rank_sees_the_plan(plan, global_batches):
    assert sorted(global_batches) == list(range(plan.steps))
    for step, batch in global_batches.items():
        planned = plan[step]
        assert (batch.stream, batch.bucket, batch.micro_steps) == (planned.stream, planned.bucket, 1)
        assert batch.keys == [s.key for s in planned.slots]
        assert batch.tasks == [s.task for s in planned.slots]
        assert batch.starts.tolist() == [s.start for s in planned.slots]
        assert batch.seeds.tolist() == [s.seed for s in planned.slots]
        assert batch.drop_source.tolist() == [s.drop_source for s in planned.slots]
        assert batch.weights.tolist() == [1.0] * len(planned.slots)
        assert batch.source.shape == batch.target.shape == (
            len(planned.slots), planned.bucket.frames, planned.bucket.height, planned.bucket.width, 3,
        )  # fmt: skip
        assert batch.source.dtype == np.uint8
        assert set(batch.timings) == {"fetch", "decode", "perturb"}


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_any_number_of_ranks_sees_the_same_slots_once(plan, global_batches, ranks):
    for step in range(plan.steps):
        seen = defaultdict(list)
        lengths = set()
        for rank in range(ranks):
            batches = list(read(plan, rank, ranks, SIZES, step, step + 1))
            lengths.add(len(batches))
            assert [(b.micro, b.rank) for b in batches] == [(m, rank) for m in range(len(batches))]
            for batch in batches:
                real = int(batch.weights.sum())
                assert batch.frames == sum(
                    batch.bucket.frames * (2 if t == "edit" else 1) for t in batch.tasks[:real]
                )  # a filler is not decoded
                for i, slot in enumerate(batch.slots):
                    if batch.weights[i]:
                        seen[int(slot)].append((batch, i))
                    else:
                        assert not batch.source[i].any()
                        assert not batch.target[i].any()
        whole = global_batches[step]
        assert len(lengths) == 1
        assert lengths == {b.micro_steps for found in seen.values() for b, _ in found}
        assert sorted(seen) == list(range(whole.real_global_batch))
        for slot, found in seen.items():
            ((batch, i),) = found  # once, with weight 1
            assert np.array_equal(batch.target[i], whole.target[slot])
            assert np.array_equal(batch.source[i], whole.source[slot])
            assert batch.prompts[i] == whole.prompts[slot]
            assert batch.seeds[i] == whole.seeds[slot]
            assert batch.real_global_batch == whole.real_global_batch


def test_pixels_are_the_files_frames(plan, global_batches):
    checked = set()
    for step, batch in global_batches.items():
        for i, slot in enumerate(plan[step].slots):
            sample = plan.sample(slot.sample)
            data = storage.read_range(sample["target_uri"], sample["target_offset"], sample["target_size"])
            frames = range(slot.start, slot.start + batch.bucket.frames)
            wanted = video.decode(data, list(frames), (batch.bucket.height, batch.bucket.width))
            assert np.array_equal(batch.target[i], wanted)
            if slot.task == "edit":
                data = storage.read_range(sample["source_uri"], sample["source_offset"], sample["source_size"])
                assert np.array_equal(
                    batch.source[i], video.decode(data, list(frames), (batch.bucket.height, batch.bucket.width))
                )
            else:
                rng = np.random.Generator(np.random.Philox(key=key_of(slot.seed, "perturb")))
                assert np.array_equal(batch.source[i], perturb(slot.task, wanted, rng))
            checked.add((sample["kind"], slot.task))
    assert {("image_edit", "edit"), ("video_edit", "edit"), ("text_to_video", "tube_shuffle")} <= checked


def test_prompts(plan, global_batches):
    found = defaultdict(set)
    for step, batch in global_batches.items():
        for slot, prompt in zip(plan[step].slots, batch.prompts, strict=True):
            sample = plan.sample(slot.sample)
            found["dropped" if slot.drop_instruction else slot.task].add(
                (prompt, sample["instruction"] or sample["caption"])
            )
    assert {p for p, _ in found.pop("dropped")} == {"[Video edit]"}
    assert all(p == f"[Video edit] {text}" for p, text in found.pop("edit"))
    assert all(p == text for p, text in found.pop("none", set()))
    speed = found.pop("speed")
    assert all(p == f"[Restore the video to normal playback speed.] {text}" for p, text in speed)
    slot = next(s for b in plan for s in b.slots if s.task == "speed" and not s.drop_instruction)
    silent = {"instruction": None, "caption": None}
    assert rows.prompt_of(plan.mixture, silent, slot) == "[Restore the video to normal playback speed.]"


def test_held_out_items(plan):
    assert plan.heldout
    for item in plan.heldout:
        batch = read_item(plan, item)
        assert batch.keys == [item.slot.key]
        assert batch.target.shape == (1, item.bucket.frames, item.bucket.height, item.bucket.width, 3)
        assert not batch.drop_source.any()
        assert batch.prompts != ["[Video edit]"]
    assert len({(i.sample["dataset"]) for i in plan.heldout[:2]}) == min(
        2, len({i.sample["dataset"] for i in plan.heldout})
    )


def test_travels_as_an_arrow_row(global_batches):
    for batch in list(global_batches.values())[:3]:
        table = batch.to_table()
        again = MicroBatch.from_table(table)
        for name, value in vars(batch).items():
            other = getattr(again, name)
            if isinstance(value, np.ndarray):
                assert np.array_equal(value, other), name
                assert value.dtype == other.dtype, name
            else:
                assert value == other, name
        assert again.target.ctypes.data == batch.target.ctypes.data  # no copy on either side


def damaged(root: str, key: str, side: str, data: bytes | None) -> str:
    """Overwrite a member in its shard (same length); with `data` None the shard's bytes are wrong, not the index."""
    plan = BatchPlan.from_mixture(small_mixture(), root)
    rows = (plan.sample(r) for r in range(sum(g.size for g in plan.groups)))
    sample = next(s for s in rows if s["key"] == key)
    start, size = sample[f"{side}_offset"], sample[f"{side}_size"]
    with open(sample[f"{side}_uri"], "r+b") as file:
        file.seek(start)
        file.write((data or b"\0" * size)[:size].ljust(size, b"\0"))
    return sample[f"{side}_uri"]


def test_bytes_that_changed_on_storage_stop_the_run(tmp_path):
    root = write_media_root(tmp_path, {**COUNTS, "clips": ("text_to_video", 4)})
    plan = BatchPlan.from_mixture(small_mixture(), root)
    slot = plan[0].slots[0]
    uri = damaged(root, slot.key, "target", None)
    with pytest.raises(StorageError, match=f"{slot.key} .* digest differs"):
        rows.build_row(plan, 0, 0, 0, 1, SIZES)
    with open(uri, "r+b") as file:
        file.truncate(1000)
    with pytest.raises(StorageError, match="not where the index says"):
        list(read(plan, 0, 1, SIZES, 0, plan.steps))


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_media_that_never_decoded_is_substituted(broken_plan, broken, ranks):
    """The digest in the index is that of the broken bytes: the content is at fault, not the storage. Who stands in is a
    function of (seed, step, slot, attempt): neither ranks nor what was read before have a part in it."""
    attempts = set()
    for step in range(broken_plan.steps - 1, -1, -1):
        planned, lines, expected = broken_plan[step], [], []
        for number, slot in enumerate(planned.slots):
            used, key = slot.sample, slot.key
            tried = 0
            while key in broken:
                group = next(g for g in broken_plan.groups if g.first <= slot.sample < g.first + g.size)
                first = key_of(broken_plan.mixture.seed, step, number)
                at = key_of(first, "substitute", tried) % group.size
                others = [group.first + (at + i) % group.size for i in range(group.size)]
                used = next(r for r in others if r != slot.sample and broken_plan.sample(r)["kind"] == "text_to_video")
                lines.append((key, broken_plan.sample(used)["key"]))
                key, tried = broken_plan.sample(used)["key"], tried + 1
            attempts.add(tried)
            expected.append((key, slot.task, slot.seed, slot.start))  # all clips are equally long
        found, said = {}, []
        for rank in range(ranks):
            for batch in read(broken_plan, rank, ranks, SIZES, step, step + 1):
                said += batch.substituted
                for i in np.flatnonzero(batch.weights).tolist():
                    facts = (batch.keys[i], batch.tasks[i], int(batch.seeds[i]), int(batch.starts[i]))
                    found[int(batch.slots[i])] = facts
                    sample = next(
                        s for s in map(broken_plan.sample, range(sum(g.size for g in broken_plan.groups)))
                        if s["key"] == batch.keys[i]
                    )  # fmt: skip
                    data = storage.read_range(sample["target_uri"], sample["target_offset"], sample["target_size"])
                    start, bucket = int(batch.starts[i]), batch.bucket
                    wanted = video.decode(data, range(start, start + bucket.frames), (bucket.height, bucket.width))
                    assert np.array_equal(batch.target[i], wanted)
        assert [found[n] for n in range(len(planned.slots))] == expected
        told = [(s.split(":")[0].removeprefix("clips "), s.split("; ")[-1].removesuffix(" instead")) for s in said]
        assert sorted(told) == sorted(lines)
    assert {0, 1, 2} <= attempts


def test_too_many_substitutes_are_fatal():
    rows.check_substitutes(10, 20)
    rows.check_substitutes(11, 20_000)
    with pytest.raises(StorageError, match="11 of 10000 samples did not decode"):
        rows.check_substitutes(11, 10_000)


def test_a_flaky_read_is_tried_again(plan, monkeypatch):
    calls = []
    real = storage.read_range

    def flaky(*args):
        calls.append(args)
        if len(calls) <= 2:
            raise OSError("timeout")
        return real(*args)

    monkeypatch.setattr(rows, "FIRST_PAUSE_S", 0.0)
    monkeypatch.setattr(storage, "read_range", flaky)
    assert rows.fetch(plan.sample(0))["target"]
    monkeypatch.setattr(storage, "read_range", lambda *a: (_ for _ in ()).throw(OSError("gone")))
    with pytest.raises(StorageError, match="gone"):
        rows.fetch(plan.sample(0))


def test_a_saved_plan_serves_the_same_rows(plan, tmp_path):
    again = BatchPlan.open(plan.save(str(tmp_path / "plan")))
    first, second = (rows.build_row(p, 3, 1, 1, 2, SIZES) for p in (plan, again))
    assert np.array_equal(first.source, second.source)
    assert first.keys == second.keys
    assert json.loads((tmp_path / "plan" / "plan.json").read_text())["digest"] == plan.digest
