"""Which data a run's weights have seen, counted from its batch plan and those of the runs it started from."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import yaml

from pipelines.progress import track
from pipelines.samples import storage
from sama.errors import InputError

SCHEMA = pa.schema(
    [
        ("stage", pa.int8()), ("dataset", pa.string()), ("revision", pa.string()), ("license", pa.string()),
        ("samples", pa.int64()), ("samples_seen", pa.int64()),
    ]
)  # fmt: skip
Known = tuple[int, str, str | None, str]  # stage, dataset, revision, license


@dataclass(frozen=True)
class Sources:
    """The table of data_sources.parquet, and the runs whose data could not be found out.

    samples: distinct ones; samples_seen: how often one of them was trained on. Null revision: not stated, or the data
    root is not at hand.
    """

    table: pa.Table
    missing: list[str]


def data_sources(run: str, step: int) -> Sources:
    """What the weights of `run` at `step` were trained on, with every run behind its init_from.

    Slots are counted as planned: where a file did not decode in training, another of its source stood in.
    """
    distinct: Counter[Known] = Counter()
    seen: Counter[Known] = Counter()
    missing: list[str] = []
    visited: set[str] = set()
    at: str | None = storage.absolute(run)
    upto: int | None = step
    while at is not None and at not in visited:
        visited.add(at)
        settings = _settings(at)
        if upto is None or not _count(at, upto, settings.get("data"), distinct, seen):
            missing.append(at)
        at = (settings.get("train") or {}).get("init_from")
        upto = None if at is None else _newest_step(at)
    rows = [
        (*known, distinct[known], seen[known]) for known in sorted(seen, key=lambda k: (k[0], k[1], str(k[2]), k[3]))
    ]
    columns = zip(*rows, strict=True) if rows else [[] for _ in SCHEMA]
    return Sources(
        pa.table([pa.array(c, f.type) for c, f in zip(columns, SCHEMA, strict=True)], schema=SCHEMA), missing
    )


def _count(run: str, step: int, root: str | None, distinct: Counter[Known], seen: Counter[Known]) -> bool:
    """Add a run's own data up to `step`; False when its plan cannot be read."""
    from pipelines.mixture import BatchPlan

    folder = storage.join(run, "plan")
    if not storage.exists(storage.join(folder, "plan.json")):
        return False
    try:
        plan = BatchPlan.open(folder)
    except (InputError, OSError, pa.ArrowInvalid):
        return False
    times = np.zeros(sum(g.size for g in plan.groups), dtype=np.int64)
    name = run.rsplit("/", 1)[-1]
    for i in track(range(min(step, plan.steps)), min(step, plan.steps), f"counting the data of {name}", unit="steps"):
        np.add.at(times, plan.rows_at(i), 1)
    revisions = _revisions(root, sorted({g.dataset for g in plan.groups}))
    for number, group in enumerate(plan.groups):
        rows = plan.rows_of(number, ["key", "dataset", "license"]).to_pydict()
        counts = times[group.first : group.first + group.size].tolist()
        for key, dataset, license_id, count in zip(rows["key"], rows["dataset"], rows["license"], counts, strict=True):
            if count:
                known = (plan.mixture.stage, dataset, revisions.get((dataset, key)), license_id or "unknown")
                distinct[known] += 1
                seen[known] += count
    return True


def _revisions(root: str | None, datasets: list[str]) -> dict[tuple[str, str], str]:
    """Revision by (dataset, key), as the data root's index has it; empty without a root."""
    from pipelines.samples.index import read_index

    if root is None or not storage.is_folder(root):
        return {}
    found = read_index(root, datasets, ["dataset", "key", "dataset_revision"]).to_pydict()
    rows = zip(found["dataset"], found["key"], found["dataset_revision"], strict=True)
    return {(dataset, key): revision for dataset, key, revision in rows if revision}


def _settings(run: str) -> dict:
    """The run's resolved settings; empty when there are none."""
    try:
        found = yaml.safe_load(storage.read_bytes(storage.join(run, "config.yaml")))
    except (OSError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}


def _newest_step(run: str) -> int | None:
    from pipelines.train.checkpoint import newest_step

    return newest_step(run)
