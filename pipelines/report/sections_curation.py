"""The part of the page about curation: scores with thresholds that can be moved, borderline pairs, failures, cost."""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
import json

import numpy as np

from pipelines.report.curation import LEVELS, NULL, SKIPS, Curation, Score, kept, threshold_level
from pipelines.report.markup import Markup, clipped, duration, number, tag
from pipelines.report.media import Album, looping_pair

BARS = 50  # of a histogram: LEVELS / BARS levels each


def script() -> str:
    """The only script of the page: it moves thresholds over the data inside the page."""
    return (importlib.resources.files("pipelines.report") / "what_if.js").read_text()


def script_digest() -> str:
    """The script as a source that a Content-Security-Policy allows, and no other."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script().encode()).digest()).decode()}'"


def what_if(found: Curation) -> Markup:
    """Every score's histogram with its threshold as a slider, and how many samples all thresholds keep together."""
    if not found.scores:
        return Markup("")
    scale = found.rows / max(found.packed, 1)
    keeps = kept(found)
    total = tag("b", number(round(keeps * scale)), id="what-if-total")
    back = tag("button", "back to the selection's", id="what-if-reset", class_="needs-script", hidden=True)
    head = tag("div", tag("p", "Kept with these thresholds: ", total, f" of {number(found.rows)}. ", back),
               tag("div", [tag("span", f"{name} ", tag("b", "", id=f"what-if-set-{i}"), class_="badge needs-script",
                               hidden=True) for i, name in enumerate(found.datasets)], class_="badges"),
               class_="panel what-if")  # fmt: skip
    note = f"Every {round(scale)}th sample is inside the page; counts are scaled up. " if scale > 1 else ""
    note += "A threshold set for one dataset alone is not shown: here each holds for its kind of sample in all of them."
    panels = [_score(i, s) for i, s in enumerate(found.scores)]
    data = {
        "levels": LEVELS, "scale": scale, "datasets": found.datasets, "dataset": _packed(found.dataset),
        "other": _packed(found.other.astype(np.uint8)),
        "scores": [{"threshold": s.threshold, "keep": s.keep, "low": s.low, "high": s.high, "levels": _packed(s.levels),
                    "null_passes": s.null_passes, "start": threshold_level(s.threshold, s.low, s.high)}
                   for s in found.scores],
    }  # fmt: skip
    # no "<" can close the script element early: base64 and names with it escaped
    inside = Markup(json.dumps(data).replace("<", "\\u003c"))
    embedded = tag("script", inside, type="application/json", id="what-if-data") + tag("script", Markup(script()))
    return Markup(head + tag("p", note, class_="quiet") + tag("div", panels, class_="grid three") + embedded)


def _packed(values: np.ndarray) -> str:
    return base64.b64encode(values.astype(np.uint8).tobytes()).decode()


def _score(i: int, score: Score) -> Markup:
    counts = np.bincount(score.levels[score.levels < SKIPS], minlength=LEVELS)[:LEVELS].reshape(BARS, -1).sum(axis=1)
    tallest = max(1, int(counts.max()))
    width = 1000 / BARS
    bars = []
    for at, count in enumerate(counts):
        if count:
            tall = max(2.0, count / tallest * 100)
            low, high = (score.low + (score.high - score.low) * k / BARS for k in (at, at + 1))
            bars.append(tag("rect", tag("title", f"{number(low)} to {number(high)}: {number(int(count))}"),
                            x=f"{at * width:.1f}", y=f"{104 - tall:.1f}", width=f"{width - 2:.1f}",
                            height=f"{tall:.1f}", class_="f0"))  # fmt: skip
    start = threshold_level(score.threshold, score.low, score.high)
    x = (start + (score.keep == "max")) / LEVELS * 1000
    line = tag("line", x1=f"{x:.1f}", x2=f"{x:.1f}", y1=0, y2=104, class_="threshold", id=f"what-if-line-{i}")
    told = f"{score.name} of {score.kind}, threshold {number(score.threshold)}"
    drawing = tag("svg", bars, line, viewBox="0 0 1000 104", preserveAspectRatio="none", class_="histogram",
                  role="img", aria_label=told)  # fmt: skip
    slider = tag("input", type="range", min=0, max=LEVELS - 1, value=start, id=f"what-if-{i}", aria_label=told,
                 class_="needs-script", hidden=True)  # fmt: skip
    words = ("kept at least " if score.keep == "min" else "kept up to ",
             tag("b", number(score.threshold), id=f"what-if-value-{i}"))  # fmt: skip
    missing = int((score.levels == NULL).sum())
    note = (f"{number(score.low)} … {number(score.high)}",
            f", {number(missing)} not scored" if missing else "",
            tag("span", "; this alone keeps out ", tag("b", "", id=f"what-if-alone-{i}"), class_="needs-script",
                hidden=True))  # fmt: skip
    caption = tag("figcaption", tag("b", score.name.replace("_", " ")), tag("span", words, class_="legend"))
    kind = tag("div", score.kind.replace("_", " "), " · ", note, class_="quiet small")
    return tag("figure", caption, drawing, slider, kind, class_="panel")


def borderline(found: Curation, album: Album, hidden: set[str]) -> Markup:
    """Looping clips of the samples next to each threshold. hidden: keys that are shown blurred."""
    cards = []
    for row in found.borderline:
        mood = "good" if row["decision"] == "kept" else "bad"
        cards.append(
            tag(
                "article",
                looping_pair(row, album, row["key"] in hidden),
                tag("div", tag("span", row["decision"], class_=f"badge {mood}"),
                    tag("span", f"{row['score'].replace('_', ' ')} {number(row['value'])}, "
                        f"threshold {number(row['threshold'])}", class_="badge"), class_="badges"),
                tag("div", clipped(row.get("instruction") or row.get("caption"), 180), class_="words"),
                tag("div", f"{row['dataset']} · {row['category']}", tag("br"), tag("code", row["key"]), class_="meta"),
                class_="sample",
            )
        )  # fmt: skip
    return tag("div", cards, class_="gallery")


def failures(found: Curation) -> Markup:
    """What could not be looked at, by stage and error, with an example."""
    rows = [tag("tr", tag("td", dataset), tag("td", stage), tag("td", kind), tag("td", number(n), class_="n"),
                tag("td", clipped(example, 200)))
            for dataset, stage, kind, n, example in found.failures[:40]]  # fmt: skip
    head = tag("tr", [tag("th", h) for h in ("dataset", "stage", "error", "samples", "for example")])
    return tag("div", tag("table", tag("thead", head), tag("tbody", rows)), class_="scroll")


def duplicates(found: Curation) -> Markup:
    """Groups of samples of the same footage, the largest first."""
    rows = [tag("tr", tag("td", tag("code", str(group))), tag("td", number(n), class_="n"),
                tag("td", tag("code", ", ".join(keys))))
            for group, n, keys in found.groups]  # fmt: skip
    head = tag("tr", [tag("th", h) for h in ("group", "samples", "among them")])
    return tag("div", tag("table", tag("thead", head), tag("tbody", rows)), class_="scroll")


def cost(found: Curation) -> Markup:
    """Time and tokens of each stage of curation."""
    rows = []
    for stage, counts in found.cost.items():
        tokens = [counts.get(n) for n in ("prompt_tokens", "completion_tokens")]
        each = counts["seconds"] / max(1, counts["rows"])
        rows.append(tag("tr", tag("td", stage), tag("td", number(int(counts["rows"])), class_="n"),
                        tag("td", duration(counts["seconds"]), class_="n"), tag("td", f"{each:.2f} s", class_="n"),
                        [tag("td", number(int(t)) if t is not None else "–", class_="n") for t in tokens]))  # fmt: skip
    head = tag("tr", [tag("th", h) for h in ("stage", "rows", "time, summed", "each", "tokens in", "tokens out")])
    return tag("div", tag("table", tag("thead", head), tag("tbody", rows)), class_="scroll")
