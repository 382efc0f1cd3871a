"""A data root: its fixed share, its index after a move, its ledger."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipelines.samples import provenance
from pipelines.samples.index import (
    datasets_of,
    facts_of,
    media_of,
    open_root,
    read_index,
    read_rejects,
    write_index,
    write_rejects,
)  # fmt: skip
from pipelines.samples.ledger import LedgerError, ledger
from pipelines.samples.record import Sample, index_row
from pipelines.samples.shards import ShardWriter
from sama.errors import InputError
from tests.samples.test_record import sample

REJECT = {"dataset": "set", "manifest": "m", "row": 2, "upstream_id": "2", "reason": "missing_target",
          "detail": "gone", "raw_json": "{}"}  # fmt: skip


def make_root(root: Path, rows: int = 2, ended: str | None = "now") -> Path:
    open_root(str(root), 0.25)
    made: list[dict[str, Any]] = []
    with ShardWriter(str(root / "shards" / "set" / "a.tar")) as shard:
        for i in range(rows):
            one: Sample = sample(key=f"set-{i}")
            places = shard.add(one.key, {"source.mp4": b"s%d" % i, "target.mp4": b"t%d" % i, "json": one.to_json()})
            made.append(index_row(one, places, heldout_share=0.25))
    write_index(str(root), "set", made, "a")
    write_rejects(str(root), "set", [REJECT], "a")
    counts = {"manifests": {"m": rows + 1}}
    provenance.record(str(root / "index" / "set"), "test", {}, counts, {"m": "x"}, provenance.now(), ended)
    return root


def test_media_and_facts_by_range_also_after_the_root_moved(tmp_path: Path) -> None:
    root = make_root(tmp_path / "one")
    moved = tmp_path / "two"
    shutil.move(root, moved)
    for row, i in zip(read_index(str(moved)).to_pylist(), range(2), strict=True):
        assert row["source_uri"].startswith(str(moved))
        assert media_of(row, "source") == b"s%d" % i
        assert media_of(row, "target") == b"t%d" % i
        assert facts_of(row)["key"] == f"set-{i}"


def test_columns_and_datasets_can_be_chosen(tmp_path: Path) -> None:
    root = str(make_root(tmp_path / "root"))
    assert datasets_of(root) == ["set"]
    assert read_index(root, columns=["key", "split"]).column_names == ["key", "split"]
    assert read_index(root, []).num_rows == 0
    assert read_rejects(root).to_pylist() == [REJECT]
    with pytest.raises(InputError, match="has no dataset sets; there are set"):
        read_index(root, ["sets"])
    with pytest.raises(InputError, match="not a data root"):
        read_index(str(tmp_path))
    with pytest.raises(InputError, match="has no source"):
        media_of({"key": "k", "source_uri": None}, "source")
    with pytest.raises(ValueError, match="closed list"):
        write_rejects(root, "set", [{**REJECT, "reason": "bad luck"}], "b")


def test_the_held_out_share_is_fixed_by_the_first(tmp_path: Path) -> None:
    root = str(tmp_path / "root")
    with pytest.raises(InputError, match="not a data root"):
        open_root(root)
    with pytest.raises(InputError, match="at least 0 and below 1"):
        open_root(root, 1.5)
    assert open_root(root, 0.1) == open_root(root) == open_root(root, 0.1) == 0.1
    with pytest.raises(InputError, match=r"held-out share of 0\.1 .* 0\.2 was asked"):
        open_root(root, 0.2)
    (tmp_path / "root" / "root.json").write_text("{")
    with pytest.raises(InputError, match="not a readable description"):
        open_root(root)


def test_the_ledger_adds_up_or_says_so(tmp_path: Path) -> None:
    root = make_root(tmp_path / "root")
    assert ledger(str(root))["set"] == {
        "manifest_rows": 3, "index": 2, "rejects": 1, "by_reason": {"missing_target": 1}, "unaccounted": 0,
        "complete": True,
    }  # fmt: skip
    write_rejects(str(root), "set", [REJECT], "b")
    with pytest.raises(LedgerError, match="set: 3 manifest rows, but 2 in the index and 2 rejects"):
        ledger(str(root))
    assert ledger(str(root), check=False)["set"]["unaccounted"] == -1


def test_an_unfinished_ingest_shows_what_is_left(tmp_path: Path) -> None:
    root = make_root(tmp_path / "root", ended=None)
    (root / "rejects" / "set" / "part-a.parquet").unlink()
    facts = ledger(str(root))["set"]
    assert (facts["unaccounted"], facts["complete"]) == (1, False)


def test_provenance_holds_what_it_takes_to_do_it_again(tmp_path: Path) -> None:
    root = make_root(tmp_path / "root")
    facts = json.loads((root / "index" / "set" / "provenance.json").read_text())
    assert set(facts) == {"schema", "command", "settings", "commit", "versions", "inputs", "counts", "start", "end"}
    assert {"python", "ray", "pyarrow"} <= set(facts["versions"])
    assert provenance.read(str(tmp_path)) is None
