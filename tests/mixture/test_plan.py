"""The plan on synthetic indexes: shares, filters, refusals, and that nothing but its inputs decides it."""

import gc
import json
import subprocess
import sys
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from pipelines.config import validate
from pipelines.mixture import BatchPlan, GlobalBatch, Mixture, eligible, heldout, load_mixture
from pipelines.mixture.saved import difference
from pipelines.samples import storage, tables
from sama.errors import InputError
from tests.mixture.roots import entry, write_root, write_selection


def mixture(**changes) -> Mixture:
    tree = {
        "schema": "sama.mixture/1", "name": "test", "stage": 0, "seed": 7, "steps": 400,
        "schedule": {"image": 1, "video": 3},
        "buckets": {"area": 399360, "multiple": 32, "aspect": [0.5, 2.0], "frames": [49, 33]},
        "streams": {
            "image": {"global_batch": 6, "sources": [{"dataset": "stills", "selection": "all"}]},
            "video": {
                "global_batch": 5, "window": "random",
                "pretext": {"none": 1, "cube_inpainting": 2, "speed": 3, "tube_shuffle": 4},
                "sources": [
                    {"dataset": "clips", "selection": "all", "weight": 3},
                    {"dataset": "edits", "selection": "all", "weight": 1},
                ],
            },
        },
    }  # fmt: skip
    for name, value in changes.items():
        node = tree
        *parents, last = name.split("__")
        for part in parents:
            node = node[part]
        node[last] = value
    return validate(Mixture, tree, "the test's mixture")


def rows() -> list[dict]:
    rng = np.random.default_rng(0)
    found = [entry("stills", f"s{i}", "image_edit") for i in range(40)]
    found += [entry("clips", f"c{i}", "text_to_video", target_frames=int(rng.integers(33, 120))) for i in range(50)]
    found += [entry("edits", f"e{i}", category=["style", "add"][i % 2]) for i in range(30)]
    found[45]["split"] = found[46]["split"] = "heldout"
    return found


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> str:
    return write_root(tmp_path_factory.mktemp("root"), rows())


@pytest.fixture(scope="module")
def plan(root) -> BatchPlan:
    return BatchPlan.from_mixture(mixture(), root)


@pytest.fixture(scope="module")
def batches(plan) -> list[GlobalBatch]:
    return list(plan)


def test_steps_follow_the_schedule_and_have_one_shape(plan):
    streams = [plan[s].stream for s in range(40)]
    assert Counter(streams) == {"video": 30, "image": 10}
    assert all(Counter(streams[i : i + 4])["image"] == 1 for i in range(0, 40, 4))
    for step in range(40):
        batch = plan[step]
        assert (batch.step, len(batch.slots)) == (step, {"image": 6, "video": 5}[batch.stream])
        assert plan.place(step) == (batch.stream, batch.bucket)
        for slot in batch.slots:
            sample = plan.sample(slot.sample)
            assert sample["key"] == slot.key
            assert sample["length"] >= slot.start + batch.bucket.frames
            assert (batch.bucket.frames == 1) == (batch.stream == "image")
    with pytest.raises(IndexError):
        plan[400]


def test_shares_are_exact_in_the_long_run(root):
    long = BatchPlan.from_mixture(mixture(steps=13_334), root)  # about 10,000 video batches, counted in closed form
    seen = Counter()
    for group, drawn in zip(long.groups, long.draws(), strict=True):
        seen[group.dataset] += drawn
    assert sum(seen.values()) == 3334 * 6 + 10_000 * 5
    assert abs(seen["clips"] / (seen["clips"] + seen["edits"]) - 0.75) < 0.001


def test_shares_are_smooth_in_the_short_run(batches):
    clips = [sum(s.dataset == "clips" for s in b.slots) for b in batches if b.stream == "video"]
    assert np.abs(np.cumsum(clips) - 3.75 * np.arange(1, len(clips) + 1)).max() < 9


def test_every_epoch_sees_every_sample_once_in_a_new_order(batches):
    orders: dict[tuple[str, int], list[str]] = {}
    for batch in batches:
        for slot in batch.slots:
            if batch.stream == "image":
                orders.setdefault((slot.dataset, slot.epoch), []).append(slot.key)
    whole = [o for (_, _), o in sorted(orders.items()) if len(o) == 40]
    assert len(whole) >= 14
    assert all(set(o) == set(whole[0]) for o in whole)
    assert len({tuple(o) for o in whole}) == len(whole)


def test_pretext_ratios_and_tasks(batches):
    tasks = Counter(s.task for b in batches for s in b.slots if s.dataset == "clips")
    total = sum(tasks.values())
    for name, share in {"none": 0.1, "cube_inpainting": 0.2, "speed": 0.3, "tube_shuffle": 0.4}.items():
        assert abs(tasks[name] / total - share) < 0.01
    assert {s.task for b in batches for s in b.slots if s.dataset != "clips"} == {"edit"}


def test_dropout_windows_and_seeds(batches):
    slots = [s for b in batches for s in b.slots]
    assert len({s.seed for s in slots}) == len(slots)
    assert all(0 <= s.seed < 2**63 for s in slots)
    assert 0.07 < np.mean([s.drop_instruction for s in slots]) < 0.13
    assert not any(s.drop_source for s in slots)
    starts = [s.start for b in batches if b.stream == "video" for s in b.slots]
    assert len(set(starts)) > 20


def test_held_out_samples_never_train(batches, root):
    keys = {"clips-c5", "clips-c6"}
    assert not any(s.key in keys for b in batches for s in b.slots)
    held = heldout(mixture(), root)
    assert {h.sample["key"] for h in held} == keys
    assert all(h.slot.task in ("none", "cube_inpainting", "speed", "tube_shuffle") for h in held)
    assert all(h.sample["length"] >= h.bucket.frames for h in held)
    assert {h.sample["caption"] for h in held} == {"a clip of c5", "a clip of c6"}


def test_a_saved_plan_is_the_same_plan(plan, tmp_path):
    folder = plan.save(str(tmp_path / "plan"))
    again = BatchPlan.open(folder)
    assert again.digest == plan.digest
    assert [again[s] for s in (0, 17, 399)] == [plan[s] for s in (0, 17, 399)]
    assert again.sample(33) == plan.sample(33)
    assert again.heldout == plan.heldout
    assert plan.save(folder) == folder  # the same plan again: nothing to do
    other = json.loads((tmp_path / "plan" / "plan.json").read_text())
    changed = {**other, "digest": "x", "mixture": {**other["mixture"], "seed": 8}}
    (tmp_path / "plan" / "plan.json").write_text(json.dumps(changed))
    with pytest.raises(InputError, match=r"another plan \(mixture.seed was 8 and is 7\)"):
        plan.save(folder)
    with pytest.raises(InputError, match="holds no plan"):
        BatchPlan.open(str(tmp_path))


def test_nothing_but_the_content_decides_the_plan(plan, tmp_path):
    """Other file layout, row order, place, process and hash seed: the same steps."""
    shuffled = rows()
    np.random.default_rng(5).shuffle(shuffled)
    elsewhere = write_root(tmp_path / "elsewhere", shuffled, parts=5)
    (tmp_path / "m.yaml").write_text(yaml.safe_dump(mixture().tree()))
    code = (
        "import sys; from pipelines.mixture import BatchPlan; p = BatchPlan.from_file(sys.argv[1], data=sys.argv[2]);"
        "print(p.digest, *(s for k in (0, 9, 250) for s in p[k].slots), sep='\\n')"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "m.yaml"), elsewhere]
    out = subprocess.run(command, capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "99"}).stdout
    # row numbers may not differ either: they are places in the plan's own order
    assert out.splitlines() == [plan.digest, *(str(s) for k in (0, 9, 250) for s in plan[k].slots)]


def test_find_names_every_step_that_saw_a_sample(plan, batches):
    for key in ("stills-s3", "clips-c20", "edits-e29"):
        expected = [(b.step, i, s.epoch) for b in batches for i, s in enumerate(b.slots) if s.key == key]
        assert plan.find(key) == expected
        assert len(expected) > 1
    group = plan.sample(plan[0].slots[0].sample)["source_group"]
    assert plan.find(str(group)) == plan.find(plan[0].slots[0].key)
    assert plan.find("nobody") == []


def test_summary_counts_what_the_steps_hold(plan, batches):
    facts = plan.summary()
    slots = [s for b in batches for s in b.slots]
    assert facts["dataset"] == dict(Counter(s.dataset for s in slots).most_common())
    assert facts["steps"] == {"image": 100, "video": 300}
    assert facts["samples"] == {"image": 600, "video": 1500}
    shapes = Counter((b.stream, b.bucket) for b in batches)
    assert sum(v["steps"] for s in facts["buckets"].values() for v in s.values()) == sum(shapes.values())
    clips = next(s for s in facts["sources"] if s["dataset"] == "clips")
    assert clips["rows"] == 48
    assert clips["counts"]["held out"] == 2
    assert clips["epochs"] == pytest.approx(clips["samples"] / 48)
    assert abs(facts["task"]["tube_shuffle"] - 0.4 * clips["samples"]) < 20


def test_substitutes_share_source_shape_and_kind(plan):
    slot = plan[1].slots[0]
    rows_tried = {plan.substitute(slot, attempt) for attempt in range(12)}
    assert slot.sample not in rows_tried
    assert len(rows_tried) > 2
    assert {plan.sample(r)["dataset"] for r in rows_tried} == {slot.dataset}
    assert plan.substitute(slot, 3) == plan.substitute(slot, 3)


def test_kinds_and_where(tmp_path):
    kinds = ["video_edit", "image_edit", "text_to_video"]
    root = write_root(tmp_path, [entry("mixed", f"{k}{i}", k) for k in kinds for i in range(9)])
    both = {"dataset": "mixed", "selection": "all"}
    changes = {"streams__image__sources": [both], "streams__video__sources": [both]}
    with_pretext = BatchPlan.from_mixture(mixture(**changes), root)
    found = {(b.stream, with_pretext.sample(s.sample)["kind"], s.task == "edit") for b in with_pretext for s in b.slots}
    assert found == {
        ("image", "image_edit", True), ("video", "video_edit", True), ("video", "text_to_video", False),
    }  # fmt: skip
    without = BatchPlan.from_mixture(mixture(**changes, streams__video__pretext={}), root)
    assert {s.task for b in without for s in b.slots} == {"edit"}
    only = {**both, "where": {"kind": "text_to_video", "upstream_id": ["text_to_video3", "text_to_video4"]}}
    narrow = BatchPlan.from_mixture(mixture(**changes | {"streams__video__sources": [only]}), root)
    assert {s.key for b in narrow if b.stream == "video" for s in b.slots} == {
        "mixed-text_to_video3", "mixed-text_to_video4",
    }  # fmt: skip
    assert narrow.summary()["repeats"] == ["video 49x480x832"]


def test_an_empty_source_says_what_took_its_samples(root):
    changes = {"streams__video__sources": [{"dataset": "edits", "selection": "all", "where": {"category": ["text"]}}]}
    with pytest.raises(
        InputError, match=r"video stream's source edits has no sample .* of 30 .* 30 not where category is text"
    ):
        BatchPlan.from_mixture(mixture(**changes), root)
    optional = [{**changes["streams__video__sources"][0], "optional": True}, {"dataset": "clips", "selection": "all"}]
    plan = BatchPlan.from_mixture(mixture(streams__video__sources=optional), root)
    assert plan.summary()["left_out"] == ["video: edits"]
    with pytest.raises(InputError, match="all its optional sources are empty"):
        BatchPlan.from_mixture(mixture(streams__video__sources=optional[:1]), root)
    with pytest.raises(InputError, match="no dataset edit; there are clips, edits, stills"):
        BatchPlan.from_mixture(mixture(streams__image__sources=[{"dataset": "edit", "selection": "all"}]), root)
    with pytest.raises(InputError, match=r"no selection paper in .* there are: all"):
        BatchPlan.from_mixture(mixture(streams__image__sources=[{"dataset": "stills", "selection": "paper"}]), root)
    with pytest.raises(InputError, match="root"):
        BatchPlan.from_mixture(mixture(), root + "-absent")


def test_selection_and_blocklist_are_obeyed(tmp_path):
    found = rows()
    for i, row in enumerate(found):
        row["decision"] = ["kept", "rejected", "kept", "failed"][i % 4]
    root = write_root(tmp_path, found)
    plan = BatchPlan.from_mixture(mixture(), root)
    kept = {r["key"] for i, r in enumerate(rows()) if i % 2 == 0}
    assert {s.key for b in plan for s in b.slots} == kept - {"clips-c6"}  # c6 is held out
    blocked = [rows()[0], rows()[2], rows()[4]]
    table = pa.Table.from_pylist(
        [
            {"sha256": blocked[0]["target_sha256"], "reason": "takedown"},
            {"source_group": blocked[1]["source_group"], "reason": "takedown"},
            {"sha256": blocked[2]["source_sha256"], "reason": "takedown"},
        ],
        schema=tables.BLOCKLIST,
    )
    pq.write_table(table, tmp_path / "blocklist.parquet")
    without = BatchPlan.from_mixture(mixture(), root)
    assert {s.key for b in without for s in b.slots} == kept - {"clips-c6"} - {b["key"] for b in blocked}
    assert without.summary()["sources"][0]["counts"]["blocklisted"] == 3
    assert difference(plan.facts, without.facts) == "the blocklist has changed"


def test_a_blocklist_that_cannot_be_obeyed_stops_the_command(tmp_path):
    root, place = write_root(tmp_path, rows()), tmp_path / "blocklist.parquet"
    plan = BatchPlan.from_mixture(mixture(), root)
    group = [rows()[0]["source_group"]]
    pq.write_table(pa.table({"source_group": group}), place)  # the other columns may be absent
    assert rows()[0]["key"] not in {s.key for b in BatchPlan.from_mixture(mixture(), root) for s in b.slots}
    pq.write_table(pa.table({"source_group": pa.array([], pa.int64())}), place)
    assert BatchPlan.from_mixture(mixture(), root).digest == plan.digest
    pq.write_table(pa.table({"source_grp": group}), place)
    with pytest.raises(InputError, match="not a blocklist: 1 of its rows name no sha256, source_group or source_url"):
        BatchPlan.from_mixture(mixture(), root)
    pq.write_table(pa.table({"sha256": [rows()[0]["target_sha256"].hex()]}), place)
    with pytest.raises(InputError, match="not a blocklist: "):
        BatchPlan.from_mixture(mixture(), root)
    place.write_bytes(b"no parquet")
    with pytest.raises(InputError, match=r"not a blocklist: .* not a parquet file"):
        BatchPlan.from_mixture(mixture(), root)


def test_licence_gate(tmp_path):
    found = [
        entry("stills", f"s{i}", "image_edit", license=["CC-BY-NC-4.0", "MIT", "unknown"][i % 3]) for i in range(9)
    ]
    found += [entry("edits", f"e{i}") for i in range(9)]
    root = write_root(tmp_path, found)
    streams = {"streams__video__sources": [{"dataset": "edits", "selection": "all"}]}
    BatchPlan.from_mixture(mixture(**streams), root)
    with pytest.raises(InputError, match=r"forbids 6 .*: 3 of stills under CC-BY-NC-4.0, 3 of stills under unknown"):
        BatchPlan.from_mixture(mixture(**streams, license_policy="commercial"), root)
    with pytest.raises(InputError, match="3 of stills under unknown"):
        BatchPlan.from_mixture(mixture(**streams, license_policy=["MIT", "CC-BY-4.0", "CC-BY-NC-4.0"]), root)
    ours = [{"dataset": "stills", "selection": "all", "where": {"license": ["MIT"]}}]
    allowed = BatchPlan.from_mixture(
        mixture(**streams, streams__image__sources=ours, license_policy="commercial"), root
    )
    assert allowed.summary()["license"].keys() == {"MIT", "CC-BY-4.0"}


def test_max_epochs_lowers_a_share(root):
    sources = [
        {"dataset": "clips", "selection": "all", "weight": 1},
        {"dataset": "edits", "selection": "all", "weight": 1, "max_epochs": 10},
    ]
    plan = BatchPlan.from_mixture(mixture(streams__video__sources=sources), root)
    seen = Counter(s.key for b in plan for s in b.slots if s.dataset == "edits")
    assert max(seen.values()) <= 11
    assert abs(sum(seen.values()) - 300) <= 3
    capped = [{**s, "max_epochs": 2} for s in sources]
    with pytest.raises(InputError, match="needs 1500 samples over 400 steps, max_epochs of its sources allow 156"):
        BatchPlan.from_mixture(mixture(streams__video__sources=capped), root)


def test_shapes_by_aspect_length_and_rarity(tmp_path):
    portrait = {f"{s}_{n}": v for s in ("source", "target") for n, v in (("width", 480), ("height", 832))}
    odd = {f"{s}_{n}": v for s in ("source", "target") for n, v in (("width", 768), ("height", 512))}
    found = [entry("edits", f"wide{i}") for i in range(20)]
    found += [entry("edits", f"odd{i}", **odd) for i in range(2)]
    found += [entry("edits", f"tall{i}", **portrait) for i in range(2)]
    found += [entry("edits", f"short{i}", source_frames=40, target_frames=40) for i in range(6)]
    found += [entry("edits", f"tiny{i}", source_frames=49, target_frames=32) for i in range(3)]
    found += [entry("edits", f"skip{i}", skip_head=4, source_frames=52, target_frames=52) for i in range(5)]
    root = write_root(tmp_path, found)
    streams = {"video": {"global_batch": 5, "sources": [{"dataset": "edits", "selection": "all"}]}}
    plan = BatchPlan.from_mixture(mixture(streams=streams, schedule={"video": 1}), root)
    shapes: dict[str, set] = {}
    for batch in plan:
        for slot in batch.slots:
            shapes.setdefault(slot.key.rstrip("0123456789"), set()).add(batch.bucket)
    place = {k: next(iter(v)) for k, v in shapes.items()}
    assert all(len(v) == 1 for v in shapes.values())
    assert (place["edits-wide"].frames, place["edits-wide"].height, place["edits-wide"].width) == (49, 480, 832)
    assert place["edits-odd"] == place["edits-wide"]  # two rows only: they join the nearest shape
    assert (place["edits-tall"].height, place["edits-tall"].width) == (832, 480)  # no neighbour near enough: they stay
    assert place["edits-short"].frames == place["edits-skip"].frames == 33
    assert "edits-tiny" not in place
    facts = plan.summary()
    assert facts["sources"][0]["counts"]["shorter than 33 frames"] == 3
    assert facts["moved"] == {"video": 2}
    assert facts["repeats"] == ["video 49x832x480"]


def test_other_decisions_make_another_plan(plan, tmp_path):
    root = write_root(tmp_path, rows())
    write_selection(root, "all", rows(), ["rejected", *["kept"] * (len(rows()) - 1)])
    other = BatchPlan.from_mixture(mixture(), root)
    assert other.digest != plan.digest
    assert difference(plan.facts, other.facts) == "selection all has other decisions"
    assert difference(plan.facts, plan.facts) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"buckets__frames": [48]}, "4k\\+1"),
        ({"streams__video__pretext": {"warp": 1}}, "warp is not a pretext task; there are none, cube_inpainting"),
        ({"streams__video__pretext": {"tube_shufle": 1}}, "tube_shufle is not .* did you mean tube_shuffle"),
        ({"streams__video__pretext_options": {"sped": {"factor": 3}}}, "sped is not a pretext .* mean speed"),
        ({"streams__video__pretext_options": {"speed": {"facter": 3}}}, "facter is not an option of speed; .* factor"),
        (
            {"streams__video__sources": [{"dataset": "a", "selection": "b", "where": {"categori": 1}}]},
            "did you mean category",
        ),
        ({"streams__video__sources": [{"dataset": "a", "selection": "b", "where": {"score": 1}}]}, "not a column"),
        ({"streams__video__windows": "head"}, "did you mean .*window"),
        ({"schedule": {"image": 0, "video": 0}}, "no stream"),
        ({"streams__video__pretext_options": {"speed": {"variant": "shorter"}}}, "one shape"),
        ({"license_policy": 3}, "license_policy"),
    ],
)
def test_mistakes_in_a_mixture_are_named(change, message):
    with pytest.raises(InputError, match=message):
        mixture(**change)


@pytest.mark.parametrize(
    "name",
    [
        "stage0-paper.yaml",
        "stage1-paper.yaml",
        "demo-stage0.yaml",
        "demo-stage1.yaml",
        "demo-clips-stage0.yaml",
        "demo-clips-stage1.yaml",
    ],
)
def test_shipped_recipes_load(name):
    found = load_mixture(name, ["seed=3"])
    assert found.seed == 3
    assert found.license_policy == "research"
    assert found.active() == ["image", "video"]
    assert (found.stage == 0) == bool(found.stream("video").pretext)


def test_the_papers_numbers():
    for name in ("stage0-paper.yaml", "stage1-paper.yaml"):
        paper = load_mixture(name)
        assert [paper.stream(s).global_batch for s in ("image", "video")] == [448, 112]
        assert (paper.buckets.area, paper.buckets.multiple, paper.buckets.aspect) == (832 * 480, 32, (0.5, 2.0))
    assert load_mixture("stage0-paper.yaml").stream("video").pretext == {
        "none": 1, "cube_inpainting": 2, "speed": 3, "tube_shuffle": 4,
    }  # fmt: skip


def test_plan_of_a_moved_root_is_written_again(tmp_path):
    root = write_root(tmp_path / "a", rows())
    plan = BatchPlan.from_mixture(mixture(), root)
    folder = plan.save(str(tmp_path / "plan"))
    moved = rows()
    for row in moved:
        row["target_uri"] = "/moved.tar"
    again = BatchPlan.from_mixture(mixture(), write_root(tmp_path / "b", moved))
    assert again.digest == plan.digest
    again.save(folder)
    assert BatchPlan.open(folder).sample(0)["target_uri"] == "/moved.tar"
    assert storage.exists(folder)


def test_batches_of_any_size_give_the_same_plan(plan, root, monkeypatch):
    monkeypatch.setattr(eligible, "BATCH", 7)
    again = BatchPlan.from_mixture(mixture(), root)
    assert again.digest == plan.digest
    assert [again[s] for s in (0, 17, 399)] == [plan[s] for s in (0, 17, 399)]
    assert again.summary() == plan.summary()
    assert again.heldout == plan.heldout


def test_equal_samples_are_told_apart_by_their_key(tmp_path):
    """Of one content under two keys a selection may keep one; kept both, their order is that of the keys."""
    twins = [entry("edits", f"e{i}") for i in range(12)]
    for one, other in zip(twins[::2], twins[1::2], strict=True):
        other["sample_digest"] = one["sample_digest"]
    changes = {"streams__image": None, "streams__video__sources": [{"dataset": "edits", "selection": "all"}]}
    root = write_root(tmp_path, twins)
    plans = [BatchPlan.from_mixture(mixture(**changes), root)]
    keys = [plans[0].sample(n)["key"] for n in range(12)]
    assert all(keys[n] < keys[n + 1] for n in range(0, 12, 2))
    assert [plans[0].sample(n)["sample_digest"] for n in range(0, 12, 2)] == sorted(
        t["sample_digest"] for t in twins[::2]
    )
    write_selection(root, "all", twins, ["kept", "rejected"] * 6)
    assert {s.key for s in BatchPlan.from_mixture(mixture(**changes), root)[0].slots} <= {t["key"] for t in twins[::2]}


def test_rows_at_are_the_rows_of_the_slots(plan):
    for step in (0, 17, 399):
        assert plan.rows_at(step).tolist() == [s.sample for s in plan[step].slots]


def test_shares_counted_slot_by_slot_over_ten_thousand_batches(root):
    sources = [
        {"dataset": "clips", "selection": "all", "weight": 0.317},
        {"dataset": "edits", "selection": "all", "weight": 0.211},
    ]
    long = BatchPlan.from_mixture(mixture(steps=10_000, streams__image=None, streams__video__sources=sources), root)
    firsts = [g.first for g in long.groups]
    groups = np.concatenate([np.searchsorted(firsts, long.rows_at(s), "right") - 1 for s in range(10_000)])
    clips = np.asarray([g.dataset == "clips" for g in long.groups])[groups]
    assert abs(clips.mean() - 0.317 / 0.528) < 0.001
    after = np.arange(1, len(clips) + 1)
    assert np.abs(np.cumsum(clips) - after * 0.317 / 0.528).max() < 2 * len(long.groups)  # never far off on the way


def test_a_plan_keeps_a_bounded_number_of_held_out_samples(tmp_path, monkeypatch):
    monkeypatch.setattr(eligible, "HELDOUT", 5)
    monkeypatch.setattr(eligible, "BATCH", 8)
    found = [entry("stills", f"s{i}", "image_edit") for i in range(40)] + [entry("edits", f"e{i}") for i in range(9)]
    for row in found[:20]:
        row["split"] = "heldout"
    changes = {"streams__video__sources": [{"dataset": "edits", "selection": "all"}]}
    plan = BatchPlan.from_mixture(mixture(**changes), write_root(tmp_path, found))
    kept = sorted(found[:20], key=lambda r: r["sample_digest"])[:5]
    assert [h.sample["key"] for h in plan.heldout] == [r["key"] for r in kept]
    assert plan.summary()["sources"][0]["heldout"] == 20


def test_a_plan_in_files_of_an_older_layout_is_written_again(plan, tmp_path):
    folder = plan.save(str(tmp_path / "plan"))
    facts = json.loads((tmp_path / "plan" / "plan.json").read_text())
    (tmp_path / "plan" / "plan.json").write_text(json.dumps({k: v for k, v in facts.items() if k != "layout"}))
    with pytest.raises(InputError, match="compile it again"):
        BatchPlan.open(folder)
    plan.save(folder)
    assert BatchPlan.open(folder)[3] == plan[3]


def test_the_scratch_files_go_with_the_plan(root, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    found = BatchPlan.from_mixture(mixture(), root)
    assert len(list((tmp_path / "scratch").iterdir())) == 1
    found.save(str(tmp_path / "kept"))
    del found
    gc.collect()
    assert not list((tmp_path / "scratch").iterdir())
    assert BatchPlan.open(str(tmp_path / "kept"))[0].slots


PAPER = {
    "stage0-paper.yaml": ["nhr-edit", "gpt-image-edit", "x2edit", "koala-36m", "motionbench"],
    "stage1-paper.yaml": ["nhr-edit", "pico-banana-400k", "ditto-1m", "openve-3m", "reco-data"],
}


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_mixtures_over_a_root_with_its_datasets(name, tmp_path):
    image = ("nhr-edit", "gpt-image-edit", "x2edit", "pico-banana-400k")
    found = []
    for dataset in PAPER[name]:
        kind = "image_edit" if dataset in image else "text_to_video" if name.startswith("stage0") else "video_edit"
        for i in range(30):
            raw = {"category_raw": ["local_change", "remove"][i % 2]} if dataset == "openve-3m" else {}
            found.append(entry(dataset, f"x{i}", kind, category=["style", "add"][i % 2], **raw))
    plan = BatchPlan.from_file(name, data=write_root(tmp_path, found, "paper-v1"))
    assert [len(plan[s].slots) for s in (0, 1)] in ([448, 112], [112, 448])
    used = {s["dataset"]: s["rows"] for s in plan.summary()["sources"]}
    assert set(used) == set(PAPER[name])
    assert [used.get("ditto-1m", 15), used.get("openve-3m", 15)] == [15, 15]  # style only; local_change only
    assert set(plan.summary()["task"]) == (
        {"edit", "none", "cube_inpainting", "speed", "tube_shuffle"} if name.startswith("stage0") else {"edit"}
    )
