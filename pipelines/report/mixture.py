"""The part of the page about the batch plan: shares of datasets, categories, tasks and shapes, and the sources."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from pipelines.report.charts import Bar, share_bars, stacked_bars
from pipelines.report.markup import Markup, number, tag
from pipelines.report.runs import Run

PARTS = {"dataset": ("by dataset", 0), "category": ("by category", 1), "task": ("by pretext task", 4),
         "bucket": ("by shape (frames × height × width)", 5), "license": ("by licence", 7)}  # fmt: skip


def section(runs: Sequence[Run]) -> Markup:
    """Per stage what its slots are made of; empty when no run has a plan."""
    return Markup("".join(_stage(run) for run in runs if counts_of(run)))


def counts_of(run: Run) -> dict[str, dict[str, float]]:
    """Samples that the whole plan will give, by dataset, category, task, licence and shape."""
    summary = run.plan.get("summary")
    if not isinstance(summary, dict):
        return {}
    found = {n: _numbers(summary.get(n)) for n in ("dataset", "category", "task", "license")}
    found["bucket"] = dict(_buckets(summary))
    return {n: c for n, c in found.items() if c}


def _buckets(summary: dict[str, Any]) -> Counter[str]:
    found: Counter[str] = Counter()
    batch = summary.get("global_batch") or {}
    for stream, shapes in (summary.get("buckets") or {}).items():
        for name, facts in shapes.items():
            found[f"{stream} {name.replace('x', '×')}"] += facts["steps"] * batch.get(stream, 1)
    return found


def _numbers(value: Any) -> dict[str, float]:
    if not isinstance(value, dict):
        return {}
    return {str(k): v for k, v in value.items() if isinstance(v, (int, float)) and v > 0}


def _stage(run: Run) -> Markup:
    counts = counts_of(run)
    charts = [share_bars(counts[n], title=f"Samples {title}", colour=hue)
              for n, (title, hue) in PARTS.items() if n in counts]  # fmt: skip
    summary = run.plan["summary"]
    name = f"{run.name}: {summary['name']}" if summary.get("name") else run.name
    steps = _numbers(summary.get("steps"))
    streams = stacked_bars([Bar("steps", steps, number(sum(steps.values())))], title="Optimizer steps by stream",
                           colours={"image": 6, "video": 0})  # fmt: skip
    return Markup(tag("h3", name) + tag("div", streams, charts, class_="grid") + _sources(summary) + _notes(summary))


def _sources(summary: dict[str, Any]) -> Markup:
    sources = [s for s in summary.get("sources") or [] if isinstance(s, dict)]
    if not sources:
        return Markup("")
    rows = []
    for s in sources:
        lost = {k: v for k, v in _numbers(s.get("counts")).items() if k not in ("in the index", "eligible")}
        rows.append(
            tag("tr", tag("td", s.get("stream")), tag("td", s.get("dataset")),
                tag("td", f"{s['share']:.1%}" if "share" in s else "–", class_="n"),
                tag("td", number(s.get("rows")), class_="n"), tag("td", number(s.get("samples")), class_="n"),
                tag("td", f"{s['epochs']:.2f}" if "epochs" in s else "–", class_="n"),
                tag("td", number(s.get("heldout")), class_="n"),
                tag("td", ", ".join(f"{number(v)} {k}" for k, v in lost.items()) or "–", class_="quiet"))
        )  # fmt: skip
    head = [("stream", ""), ("dataset", ""), ("share of its stream", "n"), ("samples in it", "n"), ("drawn", "n"),
            ("epochs", "n"), ("held out", "n"), ("not used", "")]  # fmt: skip
    cells = tag("tr", [tag("th", n, class_=c or None) for n, c in head])
    return tag("div", tag("table", tag("thead", cells), tag("tbody", rows)), class_="scroll")


def _notes(summary: dict[str, Any]) -> Markup:
    told = []
    if summary.get("left_out"):
        told.append(f"Optional sources without a sample: {', '.join(map(str, summary['left_out']))}.")
    for stream, moved in _numbers(summary.get("moved")).items():
        told.append(f"{number(moved)} {stream} samples of rare shapes train at a neighbouring one.")
    if summary.get("repeats"):
        shapes = ", ".join(map(str, summary["repeats"]))
        told.append(f"Fewer samples than a global batch, so they repeat within one: {shapes}.")
    return Markup("".join(tag("p", t, class_="quiet") for t in told))
