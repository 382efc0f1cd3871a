"""What one selection keeps and another does not."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.curate.reasons import words
from pipelines.curate.select import read_selection
from pipelines.samples.index import rows_of


def diff(root: str, old: str, new: str, examples: int = 24) -> dict[str, Any]:
    """Samples gained and lost between two selections.

    {"old", "new": names, "kept_in_both", "gained", "lost": {"samples", "datasets": {dataset: {"samples",
    "reasons": {reason: n}}}, "keys": at most `examples`}}. The reasons are those for which the other selection left
    the sample out; `not_in_selection` where it did not have it. A sample with two reasons counts under both.
    """
    tables = {name: read_selection(root, name) for name in (old, new)}
    kept = {name: t.filter(pc.equal(t["decision"].cast(pa.string()), "kept")) for name, t in tables.items()}
    both = pc.is_in(kept[old]["key"], value_set=kept[new]["key"].combine_chunks())
    return {
        "old": old,
        "new": new,
        "kept_in_both": int(pc.sum(both).as_py() or 0),
        "gained": _only(kept[new], kept[old], tables[old], examples),
        "lost": _only(kept[old], kept[new], tables[new], examples),
    }


def _only(mine: pa.Table, theirs: pa.Table, judged: pa.Table, examples: int) -> dict[str, Any]:
    alone = mine.filter(pc.invert(pc.is_in(mine["key"], value_set=theirs["key"].combine_chunks())))
    where = pc.index_in(alone["key"].combine_chunks(), value_set=judged["key"].combine_chunks())
    reasons = judged["reasons"].combine_chunks().take(where)
    codes, names = words(alone["dataset"])
    datasets: dict[str, Any] = {}
    for code in np.flatnonzero(np.bincount(codes)) if len(codes) else ():
        own = pa.array(codes == code)
        counted: Counter[str] = Counter()
        for row in pc.value_counts(pc.list_flatten(reasons.filter(own))).to_pylist():
            counted[row["values"]] += row["counts"]
        unknown = int(pc.sum(pc.is_null(where.filter(own))).as_py() or 0)
        counted |= Counter({"not_in_selection": unknown} if unknown else {})
        datasets[str(names[code])] = {"samples": int((codes == code).sum()), "reasons": dict(counted.most_common())}
    step = max(1, alone.num_rows // max(1, examples))
    keys = alone["key"].take(pa.array(np.arange(0, alone.num_rows, step)[:examples])).to_pylist()
    return {"samples": alone.num_rows, "datasets": dict(sorted(datasets.items())), "keys": keys}


def told(found: dict[str, Any]) -> str:
    """The counts as plain text."""
    lines = [f"kept by {found['old']} and {found['new']}: {found['kept_in_both']}"]
    for what, name in (("gained", found["old"]), ("lost", found["new"])):
        side = found[what]
        lines.append(f"{what}: {side['samples']}")
        for dataset, counts in side["datasets"].items():
            lines.append(f"  {dataset}: {counts['samples']}")
            lines += [f"    {n} left out by {name} for {reason}" for reason, n in counts["reasons"].items()]
    return "\n".join(lines)


def page(root: str, found: dict[str, Any], media: bool = True) -> str:
    """One self-contained HTML page: the counts, and looping clips of some samples gained and lost."""
    from pipelines.curate.gallery import card, document

    rows = rows_of(root, [*found["gained"]["keys"], *found["lost"]["keys"]])
    body = []
    for what in ("gained", "lost"):
        cards = [card(rows[k], [], media) for k in found[what]["keys"] if k in rows]
        body.append((f"{what}: {len(cards)} of {found[what]['samples']} shown", cards))
    return document(f"{found['old']} to {found['new']}", told(found), body)
