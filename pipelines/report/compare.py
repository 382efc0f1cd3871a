"""`compare.html`: several runs side by side, against what they had seen and what they had cost."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from pipelines import config
from pipelines.progress import say
from pipelines.report.charts import COLOURS, Bar, Line, line_chart, smooth, stacked_bars
from pipelines.report.markup import Markup, duration, number, tag
from pipelines.report.media import Album
from pipelines.report.mixture import counts_of
from pipelines.report.page import page
from pipelines.report.runs import Curve, Run, read_run
from pipelines.report.sections_runs import strip_name
from pipelines.samples import storage
from sama.errors import InputError

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
STRIPS_MB = 12
SAMPLES_SHOWN = 6
HELDOUT = "heldout/loss_fm"
AXES = {"samples seen": "samples", "tokens seen": "tokens", "device hours": "hours"}
SILENT = {"run", "mixture", "train.init_from"}  # differ between any two runs, and stand in the table of runs


def build(uris: Sequence[str], out: str = "compare.html", title: str = "SAMA runs", *, media: bool = True) -> str:
    """Write the page; where it is. InputError when there are not two runs, or one is no run folder."""
    if len(uris) < 2:
        raise InputError("sama compare needs two run folders or more")
    began = time.monotonic()
    runs = [read_run(u) for u in uris]
    names = labels(runs)
    sections = [
        ("runs", "The runs", "Final loss: mean of the last tenth. Best held-out: the lowest mean over tasks.",
         _table(runs, names)),
        ("differences", "What was set differently", "Only settings that are not the same in all.",
         _differences(runs, names)),
        ("mixture", "What they were trained on", "Share of all samples that the plan gives.", _shares(runs, names)),
        ("loss", "Loss in training", "Flow-matching loss, moving mean.", _losses(runs, names, "train/loss_fm", True)),
        ("heldout", "Loss on held-out samples", "At fixed timesteps, mean over tasks or categories. Compare runs only "
         "where their held-out samples are the same.", _losses(runs, names, HELDOUT, False)),
        ("strips", "The same held-out samples", "The newest strip of each run: source, wanted, the model's own.",
         _strips(runs, names, Album(STRIPS_MB * 2**20, media))),
    ]  # fmt: skip
    made = page(title, POLICY, [s for s in sections if s[3]])
    uri = storage.absolute(out)
    storage.write_bytes(uri, made)
    say(f"compare: {uri} ({len(made) / 1e6:.1f} MB, {duration(time.monotonic() - began)})")
    return uri


def labels(runs: Sequence[Run]) -> list[str]:
    """A short name for each run: its folder, with as many parents as it takes to tell them apart."""
    parts = [r.uri.rstrip("/").split("/") for r in runs]
    depth = 1
    while depth < max(len(p) for p in parts) and len({tuple(p[-depth:]) for p in parts}) < len(runs):
        depth += 1
    return ["/".join(p[-depth:]) for p in parts]


def abscissa(run: Run, axis: str) -> np.ndarray:
    """What a run had spent after each of its steps. axis: samples, tokens or hours (of all its devices)."""
    if axis == "hours":
        workers = float(run.world_size)
        return np.cumsum([(r.get("seconds") or 0.0) * workers / 3600 for r in run.rows])
    keys = ("seen/tokens",) if axis == "tokens" else ("seen/video_samples", "seen/image_samples")
    return np.array([sum(r.get(k) or 0 for k in keys) for r in run.rows], dtype=np.float64)


def heldout_mean(run: Run) -> Curve | None:
    """Mean over tasks and categories of the held-out loss, where it was measured."""
    found = [c for n, c in run.curves.items() if n.startswith(f"{HELDOUT}/")]
    if not found:
        return None
    steps = np.unique(np.concatenate([c.steps for c in found]))
    table = np.full((len(found), len(steps)), np.nan)
    for row, curve in zip(table, found, strict=True):
        row[np.searchsorted(steps, curve.steps)] = curve.values
    good = np.isfinite(table).all(0)  # a mean over fewer tasks is another quantity
    return Curve(steps[good], table[:, good].mean(0)) if good.any() else None


def _losses(runs: Sequence[Run], names: Sequence[str], metric: str, smoothed: bool) -> Markup:
    charts = []
    for title, axis in AXES.items():
        lines = []
        for i, (run, name) in enumerate(zip(runs, names, strict=True)):
            curve = run.curves.get(metric) if smoothed else heldout_mean(run)
            if curve is None or not len(curve.steps):
                continue
            at = {r["step"]: x for r, x in zip(run.rows, abscissa(run, axis), strict=True)}
            where = np.array([at[int(s)] for s in curve.steps])
            values = smooth(curve.values) if smoothed else curve.values
            lines.append(Line(name, where, values, i % COLOURS, "line" if smoothed else "points"))
        charts.append(line_chart(lines, title=f"against {title}", axis=title))
    return tag("div", charts, class_="grid three") if any(charts) else Markup("")


def _table(runs: Sequence[Run], names: Sequence[str]) -> Markup:
    head = ["run", "stage", "preset", "steps", "samples", "tokens", "device hours", "final loss", "best held-out",
            "started from", "restarts", "plan"]  # fmt: skip
    rows = []
    for i, (run, name) in enumerate(zip(runs, names, strict=True)):
        heldout, settings = heldout_mean(run), run.config
        seen = {axis: abscissa(run, axis) for axis in AXES.values()}
        last = {axis: float(x[-1]) if len(x) else 0.0 for axis, x in seen.items()}
        origin = (settings.get("train") or {}).get("init_from")
        mixture = run.plan.get("mixture")
        cells = [
            tag("td", tag("i", class_=f"key b{i % COLOURS} line"), name),
            tag("td", str(mixture.get("stage", "–") if isinstance(mixture, dict) else "–")),
            tag("td", settings.get("preset", "–")),
            _cell(number(run.steps) + (f" of {number(run.planned)}" if run.planned != run.steps else "")),
            _cell(number(last["samples"])), _cell(number(last["tokens"])), _cell(f"{last['hours']:.2f}"),
            _cell(number(run.loss())), _cell(number(float(heldout.values.min()) if heldout else None)),
            tag("td", str(origin).rstrip("/").rsplit("/", 1)[-1] if origin else "–"),
            _cell(number(run.count("restart") + run.count("node_lost"))),
            tag("td", tag("code", str(run.plan.get("digest", ""))[:12])),
        ]  # fmt: skip
        rows.append(tag("tr", *cells))
    header = tag("tr", [tag("th", h) for h in head])
    return tag("div", tag("table", tag("thead", header), tag("tbody", rows)), class_="scroll")


def _cell(text: str) -> Markup:
    return tag("td", text, class_="n")


def _differences(runs: Sequence[Run], names: Sequence[str]) -> Markup:
    flat = []
    for run in runs:
        mixture = run.plan.get("mixture")
        tree = {**run.config, "mixture": mixture if isinstance(mixture, dict) else {}}
        flat.append(config.flatten(tree))
    keys = [k for k in dict.fromkeys(k for f in flat for k in f) if k not in SILENT]
    rows = []
    for key in keys:
        values = [f.get(key, "–") for f in flat]
        if any(v != values[0] for v in values[1:]):
            rows.append(tag("tr", tag("td", tag("code", key)), [tag("td", _short(v)) for v in values]))
    if not rows:
        return tag("p", "Nothing: the settings are the same.", class_="quiet")
    header = tag("tr", tag("th", "setting"), [tag("th", n) for n in names])
    return tag("div", tag("table", tag("thead", header), tag("tbody", rows)), class_="scroll")


def _short(value: object) -> str:
    told = str(value)
    return told if len(told) <= 80 else f"{told[:77]}..."


def _shares(runs: Sequence[Run], names: Sequence[str]) -> Markup:
    charts = []
    for part, title in {"dataset": "dataset", "category": "category", "task": "pretext task"}.items():
        bars = []
        for run, name in zip(runs, names, strict=True):
            counted = counts_of(run).get(part, {})
            whole = sum(counted.values())
            bars.append(Bar(name, dict(sorted(counted.items(), key=lambda p: -p[1])), f"{number(whole)} samples"))
        charts.append(stacked_bars(bars, title=f"Samples by {title}", share=True))
    return tag("div", charts, class_="grid three") if any(charts) else Markup("")


def _strips(runs: Sequence[Run], names: Sequence[str], album: Album) -> Markup:
    """Rows: samples that most runs have a strip of. Columns: runs."""
    newest: list[dict[str, tuple[int, str]]] = []
    for run in runs:
        found: dict[str, tuple[int, str]] = {}
        for uri in run.strips:
            step, sample = strip_name(uri)
            found[sample] = max(found.get(sample, (-1, "")), (step, uri))
        newest.append(found)
    every = {s: sum(s in f for f in newest) for f in newest for s in f}
    chosen = sorted((s for s, n in every.items() if n > 1), key=lambda s: (-every[s], s))[:SAMPLES_SHOWN]
    out = []
    for sample in chosen:
        figures = []
        for name, found in zip(names, newest, strict=True):
            if sample in found:
                step, uri = found[sample]
                caption = tag("div", tag("b", name), f" · step {number(step)}", class_="meta")
                figures.append(tag("figure", album.file(uri, f"{sample} by {name}"), caption, class_="strip"))
        out.append(tag("h3", sample) + tag("div", figures, class_="grid three"))
    if not out and any(newest):
        return tag("p", "No held-out sample has a strip in more than one of these runs.", class_="quiet")
    return Markup("".join(out))
