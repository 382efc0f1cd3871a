"""The ledger of the page: right counts when all is well, a sentence for each way in which it is not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.report.data import SHOWN_KEPT, _pick, read_root
from pipelines.report.runs import read_run
from pipelines.samples import storage, tables
from pipelines.samples.index import open_root
from sama.errors import InputError


@pytest.fixture
def copy(made, tmp_path: Path) -> Path:
    """A data root to spoil."""
    shutil.copytree(made.root, tmp_path / "root")
    return tmp_path / "root"


def test_counts(made) -> None:
    facts = read_root(str(made.root))
    assert facts.selection == "demo"
    assert facts.problems() == []
    assert facts.total("manifest") == facts.total("index") + facts.total("rejects") == 12 + 9 + 8 + 6
    assert [facts.decided(d) for d in tables.DECISIONS] == [made.kept, made.rejected, made.failed, 0]
    assert facts.total("train") + facts.total("heldout") == made.kept
    ditto = next(d for d in facts.datasets if d.name == "ditto-1m")
    assert ditto.ingest_reasons == {"unreadable_target": 1, "no_instruction": 1}
    assert ditto.reasons == {"static": 1, "shot_cut": 1, "too_short": 1, "decode_failed": 1}
    assert {r["decision"] for r in facts.kept} == {"kept"}
    assert len(facts.kept) == min(made.kept, SHOWN_KEPT)
    assert {r["dataset"] for r in facts.kept} == {"ditto-1m", "nhr-edit", "koala-36m"}
    assert all(r["target_size"] > 0 for r in facts.kept + facts.rejected)
    assert len(facts.ingest_rejects) == made.refused


def test_without_a_selection_nothing_is_decided(copy: Path) -> None:
    shutil.rmtree(copy / "selections")
    facts = read_root(str(copy))
    assert facts.selection is None
    assert facts.problems() == []
    assert facts.kept == facts.rejected == []


def test_a_lost_index_row_is_told(copy: Path) -> None:
    part = next((copy / "index" / "ditto-1m").glob("*.parquet"))
    pq.write_table(pq.read_table(part).slice(1), part)
    told = "; ".join(read_root(str(copy)).problems())
    assert "ditto-1m: 14 rows in the manifest, but 11 in the index and 2 rejects make 13" in told
    assert "1 rows of the selection are not in the index" in told


def test_a_sample_without_a_decision_is_told(copy: Path) -> None:
    path = copy / "selections" / "demo" / "selection.parquet"
    pq.write_table(pq.read_table(path).slice(2), path)
    assert "2 rows of the index have no decision in the selection" in "; ".join(read_root(str(copy)).problems())


def test_a_row_that_is_there_twice_is_told(copy: Path) -> None:
    part = next((copy / "index" / "nhr-edit").glob("*.parquet"))
    storage.write_part(copy / "index" / "nhr-edit", pq.read_table(part).slice(0, 1), "again")
    told = "; ".join(read_root(str(copy)).problems())
    assert "nhr-edit: 1 rows occur twice" in told


def test_an_unfinished_ingest_is_told(copy: Path) -> None:
    path = copy / "index" / "koala-36m" / "provenance.json"
    facts = json.loads(path.read_text()) | {"counts": {"manifests": {"a": 30}}, "end": None}
    path.write_text(json.dumps(facts))
    assert "its ingest has not finished, run it again" in read_root(str(copy)).problems()[0]


def test_bad_roots(made, copy: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a data root"):
        read_root(str(tmp_path / "nothing"))
    open_root(str(tmp_path / "empty"), heldout_share=0.1)
    with pytest.raises(InputError, match="holds no dataset"):
        read_root(str(tmp_path / "empty"))
    with pytest.raises(InputError, match="no selection other; there is demo"):
        read_root(str(made.root), "other")
    shutil.copytree(copy / "selections" / "demo", copy / "selections" / "late")
    with pytest.raises(InputError, match="demo, late: name one"):
        read_root(str(copy))


def test_a_gallery_takes_from_every_dataset_and_reason() -> None:
    rng = np.random.default_rng(0)
    rows = [{"key": f"k{i:05d}", "decision": "rejected", "dataset": "big" if i % 100 else "small", "category": "add",
             "reasons": [["static", "shot_cut"][int(rng.integers(2))]]} for i in range(5000)]  # fmt: skip
    columns = ["key", "decision", "reasons", "dataset", "category"]
    table = pa.Table.from_pylist(rows, schema=pa.schema([tables.SELECTION.field(c) for c in columns]))
    picked = _pick(table, "rejected", 12)
    assert len(picked) == 12
    assert {(r["dataset"], r["reasons"][0]) for r in picked.values()} == {
        (d, r) for d in ("big", "small") for r in ("static", "shot_cut")
    }
    assert picked == _pick(table, "rejected", 12)  # the same every time
    assert _pick(table, "kept", 12) == {}


def test_a_run_is_read_as_it_was_left(made, tmp_path: Path) -> None:
    run = read_run(str(made.runs[0]))
    assert run.steps == run.planned == 240  # the torn line is not a step
    loss = run.curves["train/loss_fm"]
    assert np.isnan(loss.values[17])
    assert np.isfinite(np.delete(loss.values, 17)).all()
    assert run.seconds == pytest.approx(240 * 1.1)
    assert run.loss() == pytest.approx(run.curves["train/loss"].values[-24:].mean())
    again = tmp_path / "run"
    shutil.copytree(made.runs[0], again)
    rows = (again / "metrics.jsonl").read_text().splitlines()[:-1]
    (again / "metrics.jsonl").write_text("\n".join([*rows, json.dumps({"step": 5, "train/loss": 99.0})]))
    assert read_run(str(again)).curves["train/loss"].values[5] == 99.0  # done again: the last one counts
    with pytest.raises(InputError, match="not a run folder"):
        read_run(str(tmp_path))
    (again / "plan.json").write_text("{")
    with pytest.raises(InputError, match="not valid JSON"):
        read_run(str(again))
