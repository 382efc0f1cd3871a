"""The part of the page about near-duplicates: groups of footage that is the same although its bytes differ."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.curate.near import MEAN_BITS, summary
from pipelines.report.markup import Markup, number, tag
from pipelines.report.media import Album, looping_pair
from pipelines.samples import near
from pipelines.samples.index import datasets_of, rows_of, scan_index

SHOWN, MEMBERS = 8, 3  # groups, and footages of each


@dataclass
class NearGroup:
    """Footage that is the same although its bytes differ. members: an index row of each footage shown, with `bits` (to
    the nearest other), `samples` of it and `heldout`."""

    footages: int
    samples: int
    heldout: bool
    members: list[dict[str, Any]]


@dataclass
class Near:
    """groups: the largest; counts: as from curate.near.summary, of all."""

    groups: list[NearGroup] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)


def read(root: str) -> Near:
    """From the table of a root."""
    table = near.read(root)
    return Near(_groups(root, table), summary(table))


def lead(found: Near) -> str:
    """What was found, in words."""
    counts = found.counts
    text = f"{number(counts['footages'])} footages in {number(counts['groups'])} groups look the same although their "
    text += f"bytes differ (another encoding, size or length): at most {MEAN_BITS:g} of 64 bits a frame apart. "
    if not counts["beside_heldout"]:
        return text + "None of them resembles held-out footage. Source left, target right."
    left = counts["beside_heldout"]
    text += f"No plan trains on {number(left)} sample{'s' if left > 1 else ''} that resemble{'' if left > 1 else 's'} "
    return text + "held-out footage. Source left, target right."


def section(found: Near, album: Album, hidden: Collection[str]) -> Markup:
    """Groups of near-duplicates, a looping clip of each footage shown. hidden: keys that are shown blurred."""
    panels = []
    for group in found.groups:
        cards = []
        for row in group.members:
            apart = "the same file" if row["bits"] == 0 else f"{number(round(row['bits'], 1))} bits from the nearest"
            samples = f"{number(row['samples'])} sample{'s' if row['samples'] > 1 else ''}"
            badges = [tag("span", apart, class_="badge"), tag("span", samples, class_="badge"),
                      tag("span", "held out", class_="badge") if row["heldout"] else ""]  # fmt: skip
            cards.append(
                tag("article", looping_pair(row, album, row["key"] in hidden), tag("div", badges, class_="badges"),
                    tag("div", f"{row['dataset']} · {row['category']}", tag("br"), tag("code", row["key"]),
                        class_="meta"), class_="sample")
            )  # fmt: skip
        title = f"{number(group.footages)} footages, {number(group.samples)} samples"
        title += f", {len(group.members)} footages shown" if len(group.members) < group.footages else ""
        title += "; the others are not trained on, since one is held out" if group.heldout else ""
        panels += [tag("h3", title), tag("div", cards, class_="gallery")]
    return Markup("".join(panels))


def _groups(root: str, table: pa.Table) -> list[NearGroup]:
    """The groups with the most footage, then samples, and a sample of each of their footages."""
    found: dict[int, list[dict[str, Any]]] = {}
    counts = table.group_by("near_group").aggregate([("source_group", "count"), ("samples", "sum")])
    largest = counts.sort_by([("source_group_count", "descending"), ("samples_sum", "descending")])
    for row in table.filter(pc.is_in(table["near_group"], value_set=largest["near_group"][:SHOWN])).to_pylist():
        found.setdefault(row["near_group"], []).append(row)
    shown = [m for rows in found.values() for m in sorted(rows, key=lambda r: r["bits"])[:MEMBERS]]
    keys: dict[int, str] = {}
    wanted = pa.array([m["source_group"] for m in shown], pa.int64())
    for dataset in datasets_of(root) if shown else ():
        for part in scan_index(root, dataset, ["key", "source_group"]):
            for row in part.filter(pc.is_in(part["source_group"], value_set=wanted)).to_pylist():
                keys.setdefault(row["source_group"], row["key"])
    rows = rows_of(root, list(keys.values()))
    groups = []
    for members in found.values():
        some = [{**rows[keys[m["source_group"]]], **m} for m in members if m in shown and m["source_group"] in keys]
        total, held = sum(m["samples"] for m in members), any(m["heldout"] for m in members)
        groups.append(NearGroup(len(members), total, held, sorted(some, key=lambda r: (r["bits"], r["key"]))))
    return sorted(groups, key=lambda g: (-g.footages, -g.samples))
