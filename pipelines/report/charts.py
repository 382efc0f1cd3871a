"""Charts as inline SVG. Colours are CSS variables, so that one drawing serves light and dark.

Hovering needs no script: every column of a line chart is a transparent group that shows its own rule and
read-out while the pointer is over it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from pipelines.report.markup import Markup, number, tag

Numbers = Sequence[float] | np.ndarray
COLOURS = 10  # --c0 … --c9 in style.css
POINTS = 400  # drawn per line; more is finer than a pixel
COLUMNS = 150  # hover columns per chart


@dataclass(frozen=True)
class Line:
    """One curve: values (n,) over steps (n,), ascending; a value that is not finite is a gap."""

    name: str
    steps: Numbers
    values: Numbers
    colour: int = 0
    style: Literal["line", "faint", "points", "dashed"] = "line"
    readout: bool = True


@dataclass(frozen=True)
class Bar:
    """One horizontal bar of named parts; `note` stands at its end."""

    label: str
    parts: dict[str, float] = field(default_factory=dict)
    note: str = ""


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers (1, 2, 5 times a power of ten) from within [low, high], about `count` of them."""
    if not (math.isfinite(low) and math.isfinite(high)) or high <= low:
        return [low]
    rough = (high - low) / max(count, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def smooth(values: Numbers, window: int | None = None) -> np.ndarray:
    """Centred moving mean over `window` points (default: a fifteenth of the curve).

    At an end the window loses the half that would lie outside and no more, so that the curve does not end in a
    single noisy step. Values that are not finite are left out of the mean.
    """
    data = np.asarray(values, dtype=np.float64)
    if len(data) == 0:
        return data
    half = (window if window is not None else max(3, len(data) // 15)) // 2
    good = np.isfinite(data)
    total = np.concatenate([[0.0], np.cumsum(np.where(good, data, 0.0))])
    count = np.concatenate([[0], np.cumsum(good)])
    place = np.arange(len(data))
    low, high = np.maximum(place - half, 0), np.minimum(place + half + 1, len(data))
    seen = count[high] - count[low]
    return np.where(seen > 0, (total[high] - total[low]) / np.maximum(seen, 1), np.nan)


def thin(steps: Numbers, values: Numbers, limit: int = POINTS) -> tuple[np.ndarray, np.ndarray]:
    """At most about `limit` points: each bin keeps its lowest and highest, so that spikes stay visible."""
    x, y = np.asarray(steps, dtype=np.float64), np.asarray(values, dtype=np.float64)
    if len(x) <= limit:
        return x, y
    chosen: set[int] = {0, len(x) - 1}
    for part in np.array_split(np.arange(len(x)), limit // 2):
        good = part[np.isfinite(y[part])]
        if len(good):
            chosen |= {int(good[np.argmin(y[good])]), int(good[np.argmax(y[good])])}
        else:
            chosen.add(int(part[0]))  # an all-gap bin stays a gap
    order = sorted(chosen)
    return x[order], y[order]


def line_chart(
    lines: Sequence[Line], *, title: str, unit: str = "", axis: str = "step", width: int = 560, height: int = 270
) -> Markup:
    """Curves over the optimizer step (or what `axis` names) with axes, legend and hover read-out; empty when nothing
    is finite."""
    drawn = [s for s in lines if len(s.steps) and np.isfinite(np.asarray(s.values, dtype=np.float64)).any()]
    if not drawn:
        return Markup("")
    left, right, top, bottom = 52, 14, 14, 34
    low, high = _range(drawn)
    x_low = min(float(s.steps[0]) for s in drawn)
    x_high = max(float(s.steps[-1]) for s in drawn)
    x_high = x_high if x_high > x_low else x_low + 1

    def px(step: float) -> float:
        return left + (step - x_low) / (x_high - x_low) * (width - left - right)

    def py(value: float) -> float:
        return top + (high - value) / (high - low) * (height - top - bottom)

    grid: list[Markup] = []
    for value in ticks(low, high):
        y = f"{py(value):.1f}"
        grid.append(tag("line", class_="grid", x1=left, x2=width - right, y1=y, y2=y))
        grid.append(tag("text", number(value), x=left - 7, y=y, dy="0.32em", text_anchor="end"))
    for value in ticks(x_low, x_high, 6):
        if axis != "step" or value == int(value):
            x = f"{px(value):.1f}"
            grid.append(tag("line", class_="tick", x1=x, x2=x, y1=height - bottom, y2=height - bottom + 4))
            grid.append(tag("text", number(value), x=x, y=height - bottom + 17, text_anchor="middle"))
    grid.append(tag("line", class_="axis", x1=left, x2=width - right, y1=height - bottom, y2=height - bottom))
    grid.append(tag("text", axis, x=width - right, y=height - 3, text_anchor="end", class_="unit"))
    if unit:
        grid.append(tag("text", unit, x=left - 7, y=top - 3, text_anchor="end", class_="unit"))

    curves = [_curve(s, px, py, (low, high)) for s in drawn if s.style != "points"]
    points = [_curve(s, px, py, (low, high)) for s in drawn if s.style == "points"]  # whole, even at the edge
    frame = tag("svg", curves, x=left, y=top, width=width - left - right, height=height - top - bottom,
                viewBox=f"{left} {top} {width - left - right} {height - top - bottom}", class_="plot")  # fmt: skip
    outside = sum(int(np.sum(np.asarray(s.values, dtype=np.float64) > high + 1e-12)) for s in drawn)
    box = (left, width - right, top, height - bottom)
    hover = _hover([s for s in drawn if s.readout], px, py, box, axis)
    summary = "; ".join(f"{s.name}: {number(_last(s))} at the end" for s in drawn if s.readout)
    inside = (tag("g", grid), frame, points, tag("g", hover))
    told = f"{title}. {summary}"
    drawing = tag("svg", *inside, viewBox=f"0 0 {width} {height}", class_="chart", role="img", aria_label=told)
    note = tag("span", f"{outside} points above the axis", class_="quiet") if outside else ""
    legend = [_key(s.name, s.colour, s.style) for s in drawn if s.readout]
    caption = tag("figcaption", tag("b", title), tag("span", legend, note, class_="legend"))
    return tag("figure", caption, drawing, class_="panel")


def stacked_bars(
    bars: Sequence[Bar], *, title: str, unit: str = "", colours: dict[str, int] | None = None, share: bool = False
) -> Markup:
    """Horizontal bars of parts, one scale for all (or each its own whole: `share`), with hover titles."""
    bars = [b for b in bars if sum(b.parts.values()) > 0]
    if not bars:
        return Markup("")
    names = list(dict.fromkeys(n for b in bars for n in b.parts))
    hue = colours or {n: i % COLOURS for i, n in enumerate(names)}
    longest = max(sum(b.parts.values()) for b in bars)
    rows = []
    for bar in bars:
        whole = sum(bar.parts.values())
        scale = 1000 / (whole if share else longest)
        x, cells = 0.0, []
        for name, value in bar.parts.items():
            if value <= 0:
                continue
            told = f"{bar.label} · {name}: {number(value)}{unit} ({value / whole:.1%})"
            w = f"{value * scale:.2f}"
            cells.append(tag("rect", tag("title", told), x=f"{x:.2f}", y=0, width=w, height=18, class_=f"f{hue[name]}"))
            x += value * scale
        told = f"{bar.label}: " + ", ".join(f"{n} {number(v)}{unit}" for n, v in bar.parts.items())
        drawing = bar_svg(cells, told)
        rows.append(tag("div", tag("span", bar.label, class_="name", title=bar.label), drawing,
                        tag("span", bar.note, class_="value"), class_="barrow"))  # fmt: skip
    legend = [_key(n, hue[n], "line") for n in names if any(b.parts.get(n, 0) > 0 for b in bars)]
    caption = tag("figcaption", tag("b", title), tag("span", legend, class_="legend")) if title or legend else ""
    return tag("figure", caption, tag("div", rows, class_="bars"), class_="panel")


def share_bars(values: dict[str, float], *, title: str, unit: str = "", colour: int = 0, top: int = 14) -> Markup:
    """One bar per name, longest first, with its number and share; what exceeds `top` is summed as "others"."""
    ordered = sorted(((n, v) for n, v in values.items() if v > 0), key=lambda p: (-p[1], p[0]))
    if not ordered:
        return Markup("")
    if len(ordered) > top:
        rest = ordered[top - 1 :]
        ordered = [*ordered[: top - 1], (f"{len(rest)} others", sum(v for _, v in rest))]
    whole, longest = sum(values.values()), max(v for _, v in ordered)
    rows = []
    for name, value in ordered:
        told = f"{name}: {number(value)}{unit} ({value / whole:.1%})"
        bar = tag("rect", tag("title", told), x=0, y=0, width=f"{value / longest * 1000:.2f}", height=18,
                  class_=f"f{colour}")  # fmt: skip
        drawing = bar_svg(bar, told)
        note = f"{number(value)}{unit} · {value / whole:.0%}" if whole != 1 else f"{value:.1%}"
        rows.append(tag("div", tag("span", name, class_="name", title=name), drawing,
                        tag("span", note, class_="value"), class_="barrow"))  # fmt: skip
    return tag("figure", tag("figcaption", tag("b", title)), tag("div", rows, class_="bars"), class_="panel")


def bar_svg(cells: Markup | list[Markup], told: str) -> Markup:
    """A horizontal bar of <rect>s on a scale of 0..1000."""
    return tag(
        "svg", cells, viewBox="0 0 1000 18", preserveAspectRatio="none", class_="bar", role="img", aria_label=told
    )


def _range(lines: Sequence[Line]) -> tuple[float, float]:
    """Bounds of the value axis: all of the readable curves; faint raw curves only up to their 99th percentile."""
    found: list[np.ndarray] = []
    for line in lines:
        data = np.asarray(line.values, dtype=np.float64)
        data = data[np.isfinite(data)]
        if line.style == "faint" and len(data):
            data = np.clip(data, None, np.quantile(data, 0.99))
        found.append(data)
    every = np.concatenate(found)
    low, high = float(every.min()), float(every.max())
    if low >= 0 and low < 0.5 * high:
        low = 0.0
    pad = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    return (low if low == 0 else low - pad), high + pad


def _curve(line: Line, px, py, bounds: tuple[float, float]) -> Markup:
    steps, values = thin(line.steps, line.values)
    values = np.clip(values, bounds[0] - (bounds[1] - bounds[0]), bounds[1] + (bounds[1] - bounds[0]))
    if line.style == "points":
        return tag("g", [tag("circle", cx=f"{px(x):.1f}", cy=f"{py(y):.1f}", r=3)
                         for x, y in zip(steps, values, strict=True) if np.isfinite(y)],
                   _path(steps, values, px, py, f"s{line.colour} dashed"), class_=f"f{line.colour}")  # fmt: skip
    return _path(steps, values, px, py, f"s{line.colour} {line.style}")


def _path(steps: np.ndarray, values: np.ndarray, px, py, classes: str) -> Markup:
    words, pen = [], False
    for x, y in zip(steps, values, strict=True):
        if np.isfinite(y):
            words.append(f"{'L' if pen else 'M'}{px(x):.1f} {py(y):.1f}")
        pen = bool(np.isfinite(y))
    return tag("path", d="".join(words), class_=classes)


def _hover(lines: Sequence[Line], px, py, box: tuple[int, int, int, int], axis: str) -> list[Markup]:
    """One transparent column per (bin of) step with a rule, dots and the values there."""
    left, right, top, bottom = box
    every = np.unique(np.concatenate([np.asarray(s.steps, dtype=np.float64) for s in lines]))
    if len(every) > COLUMNS:
        every = every[np.unique(np.linspace(0, len(every) - 1, COLUMNS).astype(int))]
    edges = [px(v) for v in every]
    columns = []
    for i, step in enumerate(every):
        x0 = left if i == 0 else (edges[i - 1] + edges[i]) / 2
        x1 = right if i == len(every) - 1 else (edges[i] + edges[i + 1]) / 2
        gap = (every[-1] - every[0]) / max(len(every) - 1, 1)
        dots, words = [], [f"{axis} {number(int(step) if axis == 'step' else float(step))}"]
        for line in lines:
            at = int(np.abs(np.asarray(line.steps, dtype=np.float64) - step).argmin())
            value = float(line.values[at])
            if math.isfinite(value) and abs(float(line.steps[at]) - step) <= (max(gap, 1) if axis == "step" else gap):
                words.append(f"{line.name} {number(value)}")
                dots.append(tag("circle", cx=f"{edges[i]:.1f}", cy=f"{py(value):.1f}", r=3.2, class_=f"f{line.colour}"))
        rule = tag("line", x1=f"{edges[i]:.1f}", x2=f"{edges[i]:.1f}", y1=top, y2=bottom, class_="rule")
        told = tag("text", " · ".join(words), x=right, y=top - 3, text_anchor="end", class_="readout")
        area = tag("rect", tag("title", "\n".join(words)), x=f"{x0:.1f}", y=top, width=f"{max(x1 - x0, 0.5):.1f}",
                   height=bottom - top)  # fmt: skip
        columns.append(tag("g", area, rule, dots, told, class_="hit"))
    return columns


def _last(line: Line) -> float:
    data = np.asarray(line.values, dtype=np.float64)
    return float(data[np.isfinite(data)][-1])


def _key(name: str, colour: int, style: str) -> Markup:
    return tag("span", tag("i", class_=f"key b{colour} {style}"), name, class_="item")
