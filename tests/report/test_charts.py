"""Charts and markup: what is drawn is what was measured, and text stays text."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from pipelines.report.charts import Bar, Line, line_chart, share_bars, smooth, stacked_bars, thin, ticks
from pipelines.report.markup import Markup, clipped, duration, number, tag, text

SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.013, 0.027), (-3, 7), (0, 1e6), (1e-7, 3e-7), (99.5, 100.5)])
def test_ticks_are_round_inside_and_few(low: float, high: float) -> None:
    found = ticks(low, high)
    assert 2 <= len(found) <= 11
    assert all(low - 1e-9 <= t <= high + 1e-9 for t in found)
    step = found[1] - found[0]
    assert round(step / 10 ** math.floor(math.log10(step) + 1e-9), 6) in (1, 2, 2.5, 5, 10)


def test_ticks_of_an_empty_range() -> None:
    assert ticks(2.0, 2.0) == [2.0]


def test_smooth_is_a_centred_mean_that_skips_gaps() -> None:
    values = np.arange(100, dtype=float)
    assert np.allclose(smooth(values, 9)[4:-4], values[4:-4])  # a straight line stays one
    assert smooth(values, 9)[-1] == values[-5:].mean()  # the last point speaks for half a window, not for itself
    values[50] = np.nan
    assert np.isfinite(smooth(values, 9)).all()
    noise = np.random.default_rng(0).normal(size=1000)
    assert smooth(noise, 51).std() < 0.3 * noise.std()
    assert len(smooth([], 9)) == 0


def test_thin_keeps_spikes_and_ends() -> None:
    y = np.zeros(50_000)
    y[31_234] = 7.0
    x, kept = thin(np.arange(50_000), y)
    assert len(x) <= 402
    assert kept.max() == 7.0
    assert x[0] == 0
    assert x[-1] == 49_999
    assert (np.diff(x) > 0).all()


def test_line_chart_draws_values_where_they_belong() -> None:
    chart = line_chart([Line("loss", [0, 1, 2], [4.0, 2.0, 0.0])], title="t")
    root = ElementTree.fromstring(chart)
    path = next(p for p in root.iter("path")).get("d") or ""
    points = [tuple(float(v) for v in word.split()) for word in path.replace("M", "").split("L")]
    assert [p[0] for p in points] == sorted(p[0] for p in points)
    heights = [p[1] for p in points]
    assert heights[0] < heights[1] < heights[2]  # y grows downwards
    assert math.isclose(heights[1] - heights[0], heights[2] - heights[1], abs_tol=0.2)
    titles = [t.text for t in root.iter("title")]
    assert titles == ["step 0\nloss 4", "step 1\nloss 2", "step 2\nloss 0"]


def test_line_chart_breaks_at_gaps_and_is_absent_without_values() -> None:
    chart = line_chart([Line("loss", [0, 1, 2, 3], [1.0, math.nan, 1.0, 2.0])], title="t")
    path = next(p for p in ElementTree.fromstring(chart).iter("path")).get("d") or ""
    assert path.count("M") == 2
    assert line_chart([Line("loss", [0, 1], [math.nan, math.inf])], title="t") == ""
    assert line_chart([], title="t") == ""


def test_line_chart_says_what_it_cuts_off() -> None:
    values = np.ones(1000)
    values[5] = 1e6
    chart = line_chart([Line("norm", np.arange(1000), values, style="faint")], title="t")
    assert "1 points above the axis" in chart


def test_a_long_run_makes_a_small_chart() -> None:
    steps = np.arange(200_000)
    noise = np.random.default_rng(0).normal(size=len(steps))
    assert (
        len(line_chart([Line("a", steps, noise, style="faint"), Line("b", steps, smooth(noise))], title="t")) < 150_000
    )


def test_bars_have_widths_in_proportion() -> None:
    root = ElementTree.fromstring(stacked_bars([Bar("a", {"x": 3, "y": 1}), Bar("b", {"x": 2})], title="t"))
    assert [float(r.get("width") or 0) for r in root.iter("rect")] == [750.0, 250.0, 500.0]
    root = ElementTree.fromstring(share_bars({"few": 1, "many": 3}, title="t"))
    assert [t.text for t in root.iter("title")] == ["many: 3 (75.0%)", "few: 1 (25.0%)"]
    long = share_bars({f"n{i:03d}": 1.0 for i in range(100)}, title="t", top=10)
    assert "91 others: 91" in long
    assert stacked_bars([Bar("a", {"x": 0})], title="t") == ""


def test_text_is_escaped_once_and_markup_never() -> None:
    assert text('<b a="1">&') == "&lt;b a=&quot;1&quot;&gt;&amp;"
    assert tag("p", tag("b", "<"), None, False, ["x", 1]) == "<p><b>&lt;</b>x1</p>"
    assert tag("a", "x", title='" onclick="y', hidden=True, id=None) == (
        '<a title="&quot; onclick=&quot;y" hidden>x</a>'
    )
    assert text("a\x00b\ud800c\x1b") == "a\ufffdb\ufffdc\ufffd"
    assert isinstance(tag("br"), Markup)
    tag("p", "\ud800").encode()  # what cannot be encoded cannot be written


def test_numbers_read_well() -> None:
    assert [number(v) for v in (0, 1234567, 0.12345, 12.345, 1e-7, None, math.nan)] == [
        "0", "1\u2009234\u2009567", "0.1235", "12.3", "1.00e-07", "–", "–"
    ]  # fmt: skip
    assert [duration(s) for s in (None, 3.21, 45, 600, 7200)] == ["–", "3.2 s", "45 s", "10.0 min", "2.0 h"]
    assert clipped("a\n b " * 300, 10) == "a b a b a…"
