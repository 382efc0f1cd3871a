"""Who saw a sample: runs, the checkpoints they keep, runs that started from them, exports."""

import json
from pathlib import Path

import pytest
import yaml

from pipelines.mixture import BatchPlan, sightings
from sama.errors import InputError
from tests.mixture.roots import write_root
from tests.mixture.test_commands import sama
from tests.mixture.test_plan import mixture, rows


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> str:
    found = rows()
    found[50]["source_url"] = "https://example.org/clip/50"
    return write_root(tmp_path_factory.mktemp("root"), found)


@pytest.fixture(scope="module")
def plan(root) -> BatchPlan:
    return BatchPlan.from_mixture(mixture(), root)


def make_run(folder: Path, plan: BatchPlan, done: int, checkpoints: list[int], init_from: Path | None = None) -> Path:
    plan.save(str(folder / "plan"))
    (folder / "metrics.jsonl").write_text("".join(json.dumps({"step": s}) + "\n" for s in range(done)) + '{"st')
    for step in checkpoints:
        (folder / "checkpoints" / f"step-{step}").mkdir(parents=True)
        (folder / "checkpoints" / f"step-{step}" / "state.json").write_text("{}")
    (folder / "checkpoints" / "step-999").mkdir(parents=True)  # half written: no state.json
    (folder / "config.yaml").write_text(yaml.safe_dump({"train": {"init_from": init_from and str(init_from)}}))
    return folder


def make_export(folder: Path, run: Path, step: int) -> Path:
    folder.mkdir(parents=True)
    (folder / "data_sources.parquet").write_bytes(b"")
    (folder / "provenance.json").write_text(json.dumps({"settings": {"run": str(run), "step": step}}))
    return folder


def test_a_url_leads_to_its_sample_by_key_and_source_group_too(plan):
    (found,) = sightings.in_plan(plan, "https://example.org/clip/50")
    assert found.key == "clips-c10"
    assert found.steps == plan.find("clips-c10")
    assert sightings.in_plan(plan, str(found.source_group)) == [found]
    sample = next(s for b in plan for s in b.slots if s.key == found.key)
    assert found.target_sha256 == plan.sample(sample.sample)["target_sha256"].hex()
    assert sightings.in_plan(plan, "https://example.org/clip/5") == []
    assert sightings.in_plan(plan, "clips-c1") != found  # a longer key that begins alike is another


def test_runs_and_exports_that_saw_a_sample(plan, tmp_path):
    first = plan.find("clips-c20")[0][0]
    none = make_run(tmp_path / "runs" / "early", plan, first, [first])
    saw = make_run(tmp_path / "runs" / "late", plan, first + 9, [first, first + 1, first + 8])
    child = make_run(tmp_path / "runs" / "child", plan, 1, [1], init_from=saw)
    clean = make_run(tmp_path / "runs" / "clean", plan, 1, [1], init_from=none)
    exports = [make_export(tmp_path / "out" / str(i), r, s) for i, (r, s) in enumerate(((saw, first), (child, 1)))]
    found = {c.folder: c for c in sightings.in_runs([str(tmp_path / "runs"), str(tmp_path / "out")], "clips-c20")}
    assert {f for f, c in found.items() if c.carries} == {str(saw), str(child), str(exports[1])}
    assert found[str(saw)].checkpoints == [first + 1, first + 8]
    assert (found[str(saw)].first, found[str(saw)].steps) == (first, first + 9)
    assert found[str(child)].checkpoints == [1]
    assert found[str(child)].inherited == str(saw)
    assert not found[str(clean)].carries
    out = sama("plan", "--find", "clips-c20", "--runs", tmp_path / "runs", "--runs", tmp_path / "out").splitlines()
    assert out[-1] == "clips-c20: in the weights of 3 of 6 runs and exports"
    assert f"first in step {first}; in checkpoints step-{first + 1}, step-{first + 8}" in "\n".join(out)
    told = json.loads(sama("plan", "--find", "clips-c20", "--runs", saw, "--json"))
    assert told["runs"][0]["carries"] is True


def test_a_substitute_was_seen_too(plan, tmp_path):
    key = plan[399].slots[0].key
    first = plan.find(key)[0][0]
    assert first > 0
    run = make_run(tmp_path / "run", plan, first, [first])
    assert not sightings.in_runs([str(run)], key)[0].carries
    event = {"kind": "substitute", "step": 0, "message": f"clips clips-c1: cannot decode; {key} instead"}
    (run / "events.jsonl").write_text(json.dumps(event) + "\n")
    assert sightings.in_runs([str(run)], key)[0].first == 0


def test_what_cannot_be_told_is_said(plan, tmp_path):
    gone = tmp_path / "gone"
    run = make_run(tmp_path / "run", plan, 0, [], init_from=gone)
    (found,) = sightings.in_runs([str(run)], "clips-c20")
    assert "it started from" in found.unknown
    assert "holds no plan" in found.unknown
    with pytest.raises(InputError, match="holds no run and no export"):
        sightings.in_runs([str(gone)], "clips-c20")
