"""`sama export`: exact weights in both formats, the card, the data's sources, checksums."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from pipelines.edit.card import Facts, licence
from pipelines.edit.export import export
from pipelines.edit.sources import Sources, data_sources
from pipelines.mixture import BatchPlan
from pipelines.mixture.mixture import Mixture
from sama.checkpoints import load_diffusers, load_official, read_safetensors
from sama.errors import InputError
from sama.presets import get_preset
from tests.edit.conftest import lively_weights
from tests.mixture.roots import entry, write_root


def mixture(stage: int, *datasets: str) -> Mixture:
    sources = [{"dataset": name, "selection": "all"} for name in datasets]
    streams = {"image": {"global_batch": 3, "sources": sources}}
    return Mixture.model_validate(
        {"schema": "sama.mixture/1", "name": "m", "stage": stage, "steps": 8, "streams": streams}
    )


@pytest.fixture
def two_runs(run_folder: Path, tmp_path: Path) -> tuple[Path, dict[str, BatchPlan]]:
    """stage1 at step 3 of 8, which started from stage0; both with plans over one data root, revisions in its index."""
    rows = [entry("a", str(i), "image_edit", dataset_revision="r1", license="MIT") for i in range(5)]
    rows += [entry("b", str(i), "image_edit", license="CC-BY-NC-4.0") for i in range(40)]
    root = write_root(tmp_path / "data", rows)
    plans = {}
    for stage, name, datasets in ((0, "stage0", ("a",)), (1, "stage1", ("a", "b"))):
        run = tmp_path / name
        shutil.copytree(run_folder, run)
        plans[name] = BatchPlan.from_mixture(mixture(stage, *datasets), root)
        plans[name].save(str(run / "plan"))
        init = str(tmp_path / "stage0") if stage else None
        (run / "config.yaml").write_text(yaml.safe_dump({"data": root, "train": {"init_from": init}}))
    return tmp_path / "stage1", plans


@pytest.mark.parametrize("to", ["official", "diffusers"])
def test_the_ema_weights_come_out_exactly(run_folder: Path, tmp_path: Path, to: str):
    out = tmp_path / "out"
    done = export(str(run_folder), to, str(out))
    assert (done["preset"], done["step"]) == ("tiny", 3)
    model = load_official(out / "sama.safetensors", "tiny") if to == "official" else load_diffusers(out)
    expected = lively_weights(1)
    assert set(model.state_dict()) == set(expected)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    names = {"README.md", "SHA256SUMS", "data_sources.parquet", "provenance.json"}
    parts = {"transformer", "scheduler", "vae", "text_encoder", "tokenizer", "vision", "model_index.json"}
    weights = {"official": {"sama.safetensors"}, "diffusers": parts}[to]
    assert {p.name for p in out.iterdir()} == names | weights
    check = subprocess.run(
        ["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=out, capture_output=True, check=False
    )
    assert check.returncode == 0
    listed = {line.split("  ")[1] for line in (out / "SHA256SUMS").read_text().splitlines()}
    assert listed == {str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()} - {"SHA256SUMS"}


def test_raw_weights_and_bfloat16(run_folder: Path, tmp_path: Path):
    export(str(run_folder), "official", str(tmp_path / "raw"), weights="raw")
    raw = load_official(tmp_path / "raw/sama.safetensors", "tiny").state_dict()
    expected = lively_weights(2)
    assert all(torch.equal(raw[k], expected[k]) for k in expected)
    export(str(run_folder), "official", str(tmp_path / "half"), dtype="bfloat16")
    half = read_safetensors(tmp_path / "half/sama.safetensors")
    assert half["blocks.0.self_attn.q.weight"].dtype == torch.bfloat16
    assert half["blocks.0.modulation"].dtype == torch.float32


def test_the_sources_are_what_the_plans_say(two_runs):
    run, plans = two_runs
    found = data_sources(str(run), 3)
    assert found.missing == []
    seen: Counter[tuple[int, str]] = Counter()
    distinct: dict[tuple[int, str], set[str]] = {}
    for stage, name in enumerate(("stage0", "stage1")):
        for step in range(3):
            for slot in plans[name][step].slots:
                seen[stage, slot.dataset] += 1
                distinct.setdefault((stage, slot.dataset), set()).add(slot.key)
    facts = {"a": ("r1", "MIT"), "b": (None, "CC-BY-NC-4.0")}
    expected = [(s, d, *facts[d], len(distinct[s, d]), seen[s, d]) for s, d in sorted(seen)]
    assert [tuple(row.values()) for row in found.table.to_pylist()] == expected
    assert sum(found.table["samples_seen"].to_pylist()) == 2 * 3 * 3


def test_the_card(two_runs, tmp_path: Path):
    run, _ = two_runs
    export(str(run), "official", str(tmp_path / "out"))
    text = (tmp_path / "out/README.md").read_text()
    _, matter, body = text.split("---\n", 2)
    front = yaml.safe_load(matter)
    assert front["license"] == "other"  # one of the datasets is non-commercial
    assert front["pipeline_tag"] == "video-to-video"
    assert "| 1 | b | not stated | CC-BY-NC-4.0 |" in body
    assert "| 0 | a | r1 | MIT |" in body
    assert "3 steps" in body
    assert str(tmp_path) not in text
    table = pq.read_table(tmp_path / "out/data_sources.parquet")
    assert table.equals(data_sources(str(run), 3).table)
    provenance = json.loads((tmp_path / "out/provenance.json").read_text())
    assert provenance["command"] == "export"
    assert provenance["settings"]["weights"] == "ema"


def test_data_that_are_not_known_are_said_to_be_unknown(two_runs, tmp_path: Path):
    run, _ = two_runs
    shutil.rmtree(tmp_path / "stage0/plan")
    export(str(run), "official", str(tmp_path / "out"))
    assert "The data of stage0 are not documented here" in (tmp_path / "out/README.md").read_text()
    shutil.rmtree(tmp_path / "data")
    found = data_sources(str(run), 3)
    assert found.missing == [str(tmp_path / "stage0")]
    assert set(found.table["revision"].to_pylist()) == {None}


def test_the_licence_of_the_card():
    def card(ids: list[str], missing: list[str]) -> str:
        sources = Sources(pa.table({"license": pa.array(ids, pa.string())}), missing)
        return licence(Facts(get_preset("wan2.1-t2v-14b"), 1, "ema", "official", "float32", 1, sources))

    assert card(["MIT", "CC-BY-4.0"], []) == "apache-2.0"
    assert card(["MIT", "CC-BY-NC-4.0"], []) == "other"
    assert card(["MIT", "unknown"], []) == "other"
    assert card(["MIT"], ["runs/stage0"]) == "other"
    assert card([], []) == "other"


def test_bad_input_leaves_nothing_behind(run_folder: Path, tmp_path: Path):
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "file").write_text("mine")
    bare = tmp_path / "bare"
    bare.mkdir()
    cases = [
        ((str(run_folder), "official", str(taken)), {}, "exists already"),
        ((str(run_folder), "onnx", str(tmp_path / "x")), {}, "there are official, diffusers, lora"),
        ((str(run_folder), "official", str(tmp_path / "x")), {"weights": "best"}, "there are ema, raw"),
        ((str(run_folder), "official", str(tmp_path / "x")), {"dtype": "int8"}, "there are float32, bfloat16"),
        ((str(run_folder), "official", str(tmp_path / "x")), {"step": 1}, "no checkpoint of step 1"),
        ((str(bare), "official", str(tmp_path / "x")), {}, "no checkpoint yet"),
        ((str(tmp_path / "no"), "official", str(tmp_path / "x")), {}, "no run folder"),
    ]
    for arguments, options, words in cases:
        with pytest.raises(InputError, match=words):
            export(*arguments, **options)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bare", "taken"]
    assert (taken / "file").read_text() == "mine"


def test_a_failed_export_vanishes(run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("pipelines.edit.export.checksums", fail)
    with pytest.raises(OSError, match="disk full"):
        export(str(run_folder), "diffusers", str(tmp_path / "out"))
    assert list(tmp_path.iterdir()) == []
