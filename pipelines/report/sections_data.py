"""The part of the page about data: ledger, where samples left, thumbnails."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from typing import Any

from pipelines.report.charts import Bar, bar_svg, share_bars, stacked_bars
from pipelines.report.data import Dataset, Root
from pipelines.report.markup import Markup, clipped, number, tag
from pipelines.report.media import Album, blurred, row_of_frames, void
from sama import video

HUES = {"kept": 2, "rejected": 1, "failed": 3, "unscored": 8, "refused at ingest": 4}


def ledger(root: Root) -> Markup:
    """Every sample accounted for, per dataset, with a check mark or a loud warning."""
    selected = root.selection is not None
    problems = root.problems()
    unknown = [d.name for d in root.datasets if d.manifest is None]
    if problems:
        banner = tag("div", "✗ The ledger does not add up.", tag("ul", [tag("li", p) for p in problems]),
                     class_="banner bad", role="alert")  # fmt: skip
    else:
        told = f"✓ Every sample is accounted for: {number(root.total('index') + root.total('rejects'))} went in, "
        told += f"{number(root.total('index'))} are in the index and {number(root.total('rejects'))} were refused at "
        told += "ingest with a reason."
        banner = tag("div", told, class_="banner good")
    head = ["dataset", "manifest", "=", "index", "+", "refused"]
    head += ["", "index", "=", "kept", "+", "rejected", "+", "failed", "+", "unscored"] if selected else []
    rows = [_ledger_row(d, selected) for d in root.datasets]
    if len(root.datasets) > 1:
        rows.append(_ledger_row(_sum(root), selected, class_="total"))
    table = tag("div", tag("table", tag("thead", tag("tr", [tag("th", h, class_="n" if i else None)
                                                               for i, h in enumerate([*head, ""])])),
                           tag("tbody", rows)), class_="scroll")  # fmt: skip
    note = ""
    if unknown:
        note = tag("p", f"No ingest wrote down how many rows {', '.join(unknown)} was given (its tars were indexed as "
                   "they are): the first sum cannot be checked there.", class_="quiet")  # fmt: skip
    return Markup(banner + table + note)


def _ledger_row(dataset: Dataset, selected: bool, class_: str | None = None) -> Markup:
    def n(value: Any) -> Markup:
        return tag("td", number(value) if isinstance(value, int) else value or "–", class_="n")

    def sign(text: str) -> Markup:
        return tag("td", text, class_="n quiet")

    cells = [tag("td", dataset.name), n(dataset.manifest), sign("="), n(dataset.index), sign("+"), n(dataset.rejects)]
    if selected:
        cells += [sign(""), n(dataset.index), sign("=")]
        for i, name in enumerate(("kept", "rejected", "failed", "unscored")):
            cells += [sign("+")] if i else []
            cells.append(n(dataset.decisions[name]))
    problems = dataset.problems(selected)
    cells.append(tag("td", "✗ does not add up" if problems else "✓", class_="no" if problems else "ok"))
    return tag("tr", cells, class_=class_)


def _sum(root: Root) -> Dataset:
    whole = Dataset("all datasets")
    known = [d.manifest for d in root.datasets]
    whole.manifest = sum(m for m in known if m is not None) if None not in known else None
    for name in ("index", "rejects", "unlisted", "foreign", "doubled", "train", "heldout"):
        setattr(whole, name, root.total(name))
    for dataset in root.datasets:
        whole.decisions += dataset.decisions
    return whole


def funnel(root: Root) -> Markup:
    """How many of each dataset got how far, and why the others did not."""
    bars = []
    for d in root.datasets:
        parts = {n: float(d.decisions[n]) for n in ("kept", "rejected", "failed", "unscored")}
        if root.selection is None:
            parts = {"unscored": float(d.index)}
        whole = d.index + d.rejects
        bars.append(Bar(d.name, {**parts, "refused at ingest": float(d.rejects)},
                        f"{number(d.decisions['kept'])} of {number(whole)} kept"))  # fmt: skip
    overview = stacked_bars(bars, title="What became of every sample", colours=HUES)
    bars = [Bar(name, {n: float(counts[n]) for n in ("kept", "rejected", "failed", "unscored")},
                f"{number(counts['kept'])} of {number(counts.total())} kept")
            for name, counts in sorted(root.categories.items(), key=lambda pair: -pair[1].total())]  # fmt: skip
    overview = Markup(overview + stacked_bars(bars, title="The same by category", colours=HUES))
    panels = [_dataset_panel(d, root.selection is not None) for d in root.datasets]
    return Markup(overview + tag("div", panels, class_="grid"))


def _dataset_panel(dataset: Dataset, selected: bool) -> Markup:
    steps = [("given to ingest", dataset.index + dataset.rejects), ("in the index", dataset.index)]
    if selected:
        decided = dataset.decisions
        steps += [("measured", decided["kept"] + decided["rejected"]), ("kept", decided["kept"]),
                  ("kept to train on", dataset.train), ("kept, held out", dataset.heldout)]  # fmt: skip
    longest = max(1, steps[0][1])
    rows = []
    for name, count in steps:
        told = f"{name}: {number(count)} ({count / longest:.0%})"
        hue = HUES["kept"] if name.startswith("kept") else 0
        width = f"{count / longest * 1000:.1f}"
        drawing = bar_svg(tag("rect", tag("title", told), x=0, y=0, width=width, height=18, class_=f"f{hue}"), told)
        rows.append(tag("div", tag("span", name, class_="name"), drawing, tag("span", number(count), class_="value"),
                        class_="barrow"))  # fmt: skip
    reasons = [_reasons("Refused at ingest because", dataset.ingest_reasons, HUES["refused at ingest"]),
               _reasons("Rejected or failed because", dataset.reasons, HUES["rejected"])]  # fmt: skip
    return tag("section", tag("h3", dataset.name), tag("div", rows, class_="bars"), reasons, class_="panel")


def _reasons(title: str, counts: Counter[str], hue: int) -> Markup:
    if not counts:
        return Markup("")
    ordered = counts.most_common(12)
    badges = [tag("span", tag("i", class_=f"key b{hue}"), f"{_words(n)} ", tag("b", number(c)), class_="badge")
              for n, c in ordered]  # fmt: skip
    more = len(counts) - len(ordered)
    extra = tag("span", f"and {more} more", class_="badge") if more > 0 else ""
    return Markup(tag("p", title, class_="quiet", style="margin:12px 0 2px;font-size:13px")
                  + tag("div", badges, extra, class_="badges"))  # fmt: skip


def reasons_chart(root: Root) -> Markup:
    """The reasons of all datasets in two charts."""
    ingest = sum((d.ingest_reasons for d in root.datasets), Counter())
    curation = sum((d.reasons for d in root.datasets), Counter())
    charts = [share_bars({_words(k): v for k, v in ingest.items()}, title="Why ingest refused a row", colour=4),
              share_bars({_words(k): v for k, v in curation.items()},
                         title="Why curation kept a sample out (several reasons are possible)", colour=1)]  # fmt: skip
    return tag("div", charts, class_="grid") if any(charts) else Markup("")


def gallery(
    rows: list[dict[str, Any]], album: Album, watch: Callable[[], None], hidden: Collection[str] = ()
) -> Markup:
    """One card per index row: frames of source over frames of target, words, reasons. hidden: keys shown blurred."""
    cards = []
    for row in rows:
        cards.append(_card(row, album, row["key"] in hidden))
        watch()
    return tag("div", cards, class_="gallery")


def _card(row: Mapping[str, Any], album: Album, blur: bool) -> Markup:
    sides = [s for s in ("source", "target") if row.get(f"{s}_uri")]
    name = f"{row['dataset']} {row['key']}"
    still = all((row[f"{s}_frames"] or 1) == 1 for s in sides)
    layout = "one" if len(sides) == 1 and still else "pair" if still else "stack" if len(sides) > 1 else "row"
    pictures = [_side(row, s, album, name, layout, blur) for s in sides]
    words = row.get("instruction") or row.get("caption")
    badges = [tag("span", _words(r), class_="badge bad") for r in row.get("reasons") or []]
    if row.get("decision") == "kept":
        badges += [tag("span", "held out", class_="badge")] if row.get("split") == "heldout" else []
    shape = _shape(row, "target") if row.get("target_uri") else ""
    other = _shape(row, "source") if row.get("source_uri") else ""
    facts = [row["dataset"], row.get("category"), shape if not other or other == shape else f"{other} → {shape}"]
    return tag(
        "article",
        tag("div", pictures or void("no media"), class_=f"row {layout}"),
        tag("div", badges, class_="badges") if badges else "",
        tag("div", clipped(words, 180) if words else tag("span", "no words", class_="quiet"), class_="words"),
        tag("div", " · ".join(str(f) for f in facts if f), tag("br"), tag("code", row["key"]), class_="meta"),
        class_="sample",
    )


def _side(row: Mapping[str, Any], side: str, album: Album, name: str, layout: str, blur: bool) -> Markup:
    if not album.enabled:
        return void(f"{side}: pictures were not asked for")
    try:
        frames = row_of_frames(row, side)
        shown = album.picture(blurred(frames) if blur else frames, f"{side} frames of {name}")
    except video.MediaError as error:
        shown = void(f"{side} does not decode: {error}")
    except (OSError, EOFError) as error:
        shown = void(f"{side} cannot be read: {error}")
    label = tag("span", side, class_="side")
    return tag("figure", [label, shown] if layout == "stack" else [shown, label] if layout == "pair" else shown)


def _shape(row: Mapping[str, Any], side: str) -> str:
    size = f"{row[f'{side}_width']}×{row[f'{side}_height']}"
    frames = row[f"{side}_frames"] or 1
    return size if frames == 1 else f"{size}, {frames} frames at {number(round(row[f'{side}_fps'] or 0, 2))} fps"


def ingest_rejects(rows: list[dict[str, Any]], total: int) -> Markup:
    """Refused rows as text: there may be nothing that could be shown."""
    if not rows:
        return tag("p", "Ingest refused nothing.", class_="quiet")
    body = [
        tag("tr", tag("td", r["dataset"]), tag("td", tag("span", _words(r["reason"]), class_="badge bad")),
            tag("td", r.get("upstream_id") or "–"), tag("td", clipped(r.get("detail"), 300)),
            tag("td", f"{(r.get('manifest') or '').rsplit('/', 1)[-1]}, row {r['row']}", class_="quiet"),
            tag("td", _raw(r.get("raw_json"))))
        for r in rows
    ]  # fmt: skip
    head = tag("tr", [tag("th", h) for h in ("dataset", "reason", "upstream id", "detail", "where", "")])
    note = tag("p", f"{number(len(rows))} of {number(total)} shown.", class_="quiet") if len(rows) < total else ""
    return Markup(tag("div", tag("table", tag("thead", head), tag("tbody", body)), class_="scroll") + note)


def _raw(raw: str | None) -> Markup:
    if not raw:
        return Markup("")
    try:
        shown = json.dumps(json.loads(raw), indent=1, ensure_ascii=False)
    except ValueError:
        shown = raw
    return tag("details", tag("summary", "row"), tag("pre", shown[:1500]))


def _words(reason: str | None) -> str:
    return (reason or "unknown").replace("_", " ")
