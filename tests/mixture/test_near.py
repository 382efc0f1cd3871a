"""What resembles held-out footage is not trained on, and the plan says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.mixture import BatchPlan
from pipelines.mixture.compared import lines as differences
from pipelines.mixture.saved import difference
from pipelines.mixture.summary import lines
from pipelines.samples import near, tables
from tests.mixture.roots import write_root
from tests.mixture.test_plan import mixture, rows


def write(root: str, groups: list[list[dict[str, Any]]]) -> None:
    found = [
        {"source_group": r["source_group"], "near_group": min(m["source_group"] for m in g), "bits": 1.0, "samples": 1,
         "heldout": r["split"] == "heldout"}
        for g in groups for r in g
    ]  # fmt: skip
    near.write(root, pa.Table.from_pylist(found, schema=tables.NEAR), "test")


def trained(plan: BatchPlan) -> set[str]:
    return {plan.sample(row)["key"] for row in range(sum(g.size for g in plan.groups))}


def test_near_duplicates_of_heldout_footage_are_left_out(tmp_path: Path):
    several = rows()
    held, one, two, three = several[40], several[41], several[42], several[43]
    held["split"] = "heldout"
    root = write_root(tmp_path / "root", several)
    before = BatchPlan.from_mixture(mixture(), root)
    assert {one["key"], two["key"], three["key"]} <= trained(before)
    write(root, [[two, three]])
    assert BatchPlan.from_mixture(mixture(), root).digest == before.digest  # none of them is held out
    write(root, [[held, one], [two, three]])
    plan = BatchPlan.from_mixture(mixture(), root)
    assert trained(plan) == trained(before) - {one["key"]}
    assert held["key"] in {h.sample["key"] for h in plan.heldout}
    counts = [s["counts"] for s in plan.summary()["sources"] if s["dataset"] == one["dataset"]]
    assert [c["a near-duplicate of held-out footage"] for c in counts] == [1]
    for source in plan.summary()["sources"]:  # every row is accounted for
        lost = {n: c for n, c in source["counts"].items() if n not in ("in the index", "eligible")}
        assert source["counts"]["in the index"] == source["counts"]["eligible"] + sum(lost.values())
    assert any("1 a near-duplicate of held-out footage" in line for line in lines(plan))
    assert plan.digest != before.digest
    assert difference(before.facts, plan.facts) == "other footage is known to resemble held-out footage"
    assert any("a near-duplicate of held-out footage" in line for line in differences(before, plan))
    assert BatchPlan.from_mixture(mixture(), root).digest == plan.digest


def test_a_blocked_footage_takes_its_near_duplicates_along(tmp_path: Path):
    several = rows()
    root = write_root(tmp_path / "root", several)
    one, two = several[41], several[42]
    write(root, [[one, two]])
    pq.write_table(pa.Table.from_pylist([{"source_group": two["source_group"]}], tables.BLOCKLIST),
                   tmp_path / "root" / "blocklist.parquet")  # fmt: skip
    plan = BatchPlan.from_mixture(mixture(), root)
    assert not {one["key"], two["key"]} & trained(plan)
