"""What a run in MLflow keeps of a curation and of a selection."""

from __future__ import annotations

import json
from typing import Any

from pipelines.curate import near
from pipelines.curate.select import selection_folder
from pipelines.curate.signals import SIGNALS_VERSION
from pipelines.samples import near as near_table
from pipelines.samples import storage
from pipelines.samples.ledger import ledger
from pipelines.tracking_stage import StageRun


def curation(run: StageRun, root: str, counts: dict[str, Any]) -> None:
    """counts: as from `curate`. Metrics: these per dataset, the ledger, near-duplicates."""
    run.count(counts, "curate.")
    run.count(near.summary(near_table.read(root)), "near_duplicates.")
    book(run, root)
    run.tags["sama.signals_version"] = str(SIGNALS_VERSION)
    run.artifacts.append(storage.join(root, "signals", "provenance.json"))


def selection(run: StageRun, root: str, name: str, summary: dict[str, Any]) -> None:
    """summary: as from `select`. Metrics: the funnel per dataset, reason and category; the frozen rules as a file."""
    run.count(summary["decisions"], "decisions.")
    run.count(summary["datasets"], "datasets.")
    run.tags["sama.selection_digests"] = json.dumps({name: summary["digest"]})
    folder = selection_folder(root, name)
    run.artifacts += [storage.join(folder, f) for f in ("selection.yaml", "summary.json")]


def book(run: StageRun, root: str) -> None:
    """The ledger of ingest as metrics: manifest_rows = index + rejects, unaccounted is zero."""
    run.count(ledger(root, check=False), "ledger.")
