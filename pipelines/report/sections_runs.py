"""The part of the page about training and editing: curves, where the seconds went, strips, edited clips."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from pipelines.report.charts import Bar, Line, line_chart, smooth, stacked_bars
from pipelines.report.edits import Edit
from pipelines.report.markup import Markup, clipped, duration, number, tag
from pipelines.report.media import Album, void
from pipelines.report.runs import TIMES, Curve, Run

SAMPLES_PER_RUN, STRIPS_PER_SAMPLE = 4, 3
HUES = {part: i for i, part in zip((8, 5, 0, 4, 6), TIMES, strict=True)}


def curves(run: Run) -> Markup:
    """Loss curves of one stage: what was measured faint, its moving mean on top."""
    charts = [
        line_chart(_raw_and_smooth(run, {"train/loss": "loss"}, 0), title="Training loss"),
        line_chart(_raw_and_smooth(run, {"train/loss_fm": "flow matching"}, 2), title="Flow-matching loss"),
        line_chart(_raw_and_smooth(run, {"train/loss_sem": "semantic"}, 4), title="Semantic loss (L1)"),
        line_chart(_by_task(run), title="Flow-matching loss by task, moving mean"),
        line_chart(_heldout(run), title="Flow-matching loss on held-out samples"),
        line_chart(
            _raw_and_smooth(run, {"train/grad_norm": "gradient norm"}, 7), title="Gradient norm before clipping"
        ),
    ]
    shown = [c for c in charts if c]
    return tag("div", shown, class_="grid") if shown else tag("p", "This run has no metrics yet.", class_="quiet")


def _raw_and_smooth(run: Run, names: dict[str, str], colour: int) -> list[Line]:
    lines = []
    for name, label in names.items():
        curve = run.curves.get(name)
        if curve is not None:
            lines += [Line(label, curve.steps, curve.values, colour, "faint", readout=False),
                      Line(f"{label}, moving mean", curve.steps, smooth(curve.values), colour)]  # fmt: skip
    return lines


def _by_task(run: Run) -> list[Line]:
    found = _family(run, "train/loss_fm/")
    return [Line(n, c.steps, smooth(c.values), i % 10) for i, (n, c) in enumerate(found.items())]


def _heldout(run: Run) -> list[Line]:
    found = _family(run, "heldout/loss_fm/")
    return [Line(n, c.steps, c.values, i % 10, "points") for i, (n, c) in enumerate(found.items())]


def _family(run: Run, prefix: str) -> dict[str, Curve]:
    return {n.removeprefix(prefix): c for n, c in sorted(run.curves.items()) if n.startswith(prefix)}


def time_split(runs: Sequence[Run]) -> Markup:
    """Mean seconds of a step by part, per stage and stream."""
    bars = []
    for run in runs:
        streams = dict.fromkeys(r.get("stream") for r in run.rows)
        for stream in streams:
            rows = [r for r in run.rows if r.get("stream") == stream]
            parts = {p: float(np.mean([r.get(f"time/{p}") or 0.0 for r in rows])) for p in TIMES}
            label = f"{run.name}, {stream} steps" if stream else run.name
            bars.append(Bar(label, parts, f"{number(sum(parts.values()))} s a step"))
    return stacked_bars(bars, title="Where the seconds of a step go (mean)", unit=" s", colours=HUES)


def run_facts(run: Run) -> Markup:
    """What a stage was, in one list."""
    train = run.config.get("train") or {}
    pairs: list[tuple[str, Any]] = [
        ("steps", f"{number(run.steps)} of {number(run.planned)}" if run.planned else number(run.steps)),
        ("training time", duration(run.seconds) if run.seconds else None),
        ("loss", _fell(run)),
        ("starts from", train.get("init_from")),
        ("preset", run.config.get("preset")),
        ("workers", train.get("workers")),
        ("learning rate, EMA decay", _join(train.get("lr"), train.get("ema_decay"))),
        ("samples seen", _join(*(f"{number(c.last)} {n}" for n, c in _seen(run)))),
        ("throughput", _throughput(run)),
        ("restarts", run.count("restart") or None),
        ("substituted samples", run.count("substitute") or None),
        ("plan", tag("code", str(run.plan.get("digest"))[:16]) if run.plan.get("digest") else None),
    ]
    shown = [(k, v) for k, v in pairs if v not in (None, "")]
    return tag("dl", [[tag("dt", k), tag("dd", v)] for k, v in shown], class_="facts")


def _fell(run: Run) -> str | None:
    curve, last = run.curves.get("train/loss"), run.loss()
    if curve is None or last is None:
        return None
    head = curve.values[: max(1, len(curve.values) // 10)]
    return f"{number(float(np.nanmean(head)))} → {number(last)} (means of the first and the last tenth)"


def _seen(run: Run) -> list[tuple[str, Curve]]:
    names = {"seen/video_samples": "clips", "seen/image_samples": "image edits", "seen/tokens": "tokens"}
    return [(label, run.curves[n]) for n, label in names.items() if n in run.curves and run.curves[n].last]


def _throughput(run: Run) -> str | None:
    curve = run.curves.get("speed/tokens_per_s")
    return f"{number(round(float(np.nanmedian(curve.values))))} tokens/s (median)" if curve else None


def _join(*values: Any) -> str | None:
    return ", ".join(str(v) for v in values if v is not None) or None


def events(run: Run) -> Markup:
    """What happened to a run: starts, restarts, failures; checkpoints only counted."""
    shown = [e for e in run.events if e.get("kind") not in ("checkpoint", "substitute")]
    counts = Counter(e.get("kind") for e in run.events)
    rows = [
        tag("tr", tag("td", _when(e.get("time")), class_="quiet"), tag("td", e.get("kind")),
            tag("td", number(e["step"]) if isinstance(e.get("step"), int) else "–", class_="n"),
            tag("td", clipped(str(e.get("message") or ""), 300)))
        for e in shown[-40:]
    ]  # fmt: skip
    if not rows:
        return Markup("")
    summary = f"{len(run.events)} events: " + ", ".join(f"{c} {k}" for k, c in counts.most_common())
    head = tag("tr", tag("th", "time (UTC)"), tag("th", "kind"), tag("th", "step", class_="n"), tag("th", "message"))
    table = tag("div", tag("table", tag("thead", head), tag("tbody", rows)), class_="scroll")
    return tag("details", tag("summary", summary), table)


def _when(value: Any) -> str:
    if isinstance(value, (int, float)):
        return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(value))
    return str(value or "–")


def strips(run: Run, album: Album) -> Markup:
    """Sample strips of one stage: a few samples, each in the order of training, first and last among them."""
    groups: dict[str, list[tuple[int, str]]] = {}
    for uri in run.strips:
        step, sample = strip_name(uri)
        groups.setdefault(sample, []).append((step, uri))
    if not groups:
        return Markup("")
    out = [tag("h3", run.name)]
    for sample, found in sorted(groups.items())[:SAMPLES_PER_RUN]:
        every = sorted(found)
        chosen = [every[i] for i in sorted({round(v) for v in np.linspace(0, len(every) - 1, STRIPS_PER_SAMPLE)})]
        figures = []
        for step, uri in chosen:
            caption = tag("div", tag("b", f"step {number(step)}"), f" · {sample}" if sample else "", class_="meta")
            picture = album.file(uri, f"sample strip of {run.name}, step {step}, {sample}")
            figures.append(tag("figure", picture, caption, class_="strip"))
        out.append(tag("div", figures, class_="grid three"))
    if len(groups) > SAMPLES_PER_RUN:
        out.append(tag("p", f"{SAMPLES_PER_RUN} of {len(groups)} samples shown.", class_="quiet"))
    return Markup("".join(out))


def strip_name(uri: str) -> tuple[int, str]:
    """(step, what is shown) of samples/step-N-<what>.png; names of another form count as step 0."""
    name = uri.rsplit("/", 1)[-1].removesuffix(".png")
    found = re.fullmatch(r"step-(\d+)-?(.*)", name)
    return (int(found.group(1)), found.group(2)) if found else (0, name)


def edited(edits: Sequence[Edit], album: Album) -> Markup:
    """Edited clips: the instruction, source frames over edited frames, and the clip itself where it is small."""
    figures = []
    for edit in edits:
        picture = edit.strip(album)
        facts = [edit.facts.get("category"), edit.facts.get("key"), f"{number(edit.facts['seconds'])} s"
                 if isinstance(edit.facts.get("seconds"), (int, float)) else None]  # fmt: skip
        figures.append(
            tag(
                "figure",
                tag("div", f"“{clipped(edit.instruction, 300)}”", class_="words"),
                picture or void("no strip"),
                album.clip(edit.media) if edit.media.endswith(".mp4") else "",
                tag("div", " · ".join(str(f) for f in facts if f), " · ", tag("code", edit.name), class_="meta"),
                class_="strip",
            )
        )
    return tag("div", figures, class_="grid")
