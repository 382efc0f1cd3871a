"""How selection rules on signals alone agree with pairs that a person judged, each footage left out in turn.

    python benchmarks/eye_verdicts.py CLIPS [--root ROOT]

CLIPS is a folder for `sama ingest clips` whose manifest rows carry `eye_verdict` (good, partial, failed) and
`source_group` (the same footage). ROOT is kept and used again when given.

Each of the rules below has one threshold. For every group it is chosen on all other groups, by one procedure
(`between`), and the pairs of that group are judged with it. All other rules keep their defaults. `partial` pairs choose
no threshold. Two more lines say what the shipped defaults decide, which were set near the values chosen on all groups.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.cli import quiet_dependencies


def between(good: np.ndarray, failed: np.ndarray, low: float) -> float:
    """The threshold below which a pair is rejected: halfway from the lowest good value to what fails below it.

    What fails below it is the median of the failed values under the lowest good one; where there is none, `low`,
    the signal's lower end: a rule without an example keeps away from the good ones.
    """
    worst = float(np.min(good))
    beyond = failed[failed < worst]
    return (worst + (float(np.median(beyond)) if len(beyond) else low)) / 2


def choose(rows: list[dict[str, Any]]) -> dict[str, float]:
    """The three thresholds of video edits from judged rows: index columns, signals, `eye`.

    min_structure_kept, min_motion_ratio: `between` over the pairs to which the rule applies. caption_strokes: halfway
    from the 95th percentile of the clips without a text edit to the sparsest source of a text edit.
    """
    from pipelines.curate.rules import KindRules

    rules = KindRules()

    def values(name: str, eye: str, which: list[dict[str, Any]]) -> np.ndarray:
        return np.array([r[name] for r in which if r["eye"] == eye and r[name] is not None])

    local = [r for r in rows if r["category"] in rules.structure_categories]
    moving = [r for r in rows if r["category"] not in rules.motion_exempt]
    plain = [r[f"text_strokes_{s}"] for r in rows if r["category"] != "text" for s in ("source", "target")]
    captions = [r["text_strokes_source"] for r in rows if r["category"] == "text"]
    usual = float(np.percentile(plain, 95))
    return {
        "min_structure_kept": between(
            values("structure_kept", "good", local), values("structure_kept", "failed", local), 0.0
        ),
        "min_motion_ratio": between(
            values("motion_ratio", "good", moving), values("motion_ratio", "failed", moving), 0.0
        ),
        "caption_strokes": (usual + min(captions)) / 2 if captions else 2 * usual,
    }


@contextlib.contextmanager
def measured(clips: Path, where: str | None) -> Iterator[str]:
    """A data root with the clips and their signals."""
    from pipelines.cluster_session import connect
    from pipelines.curate.curate import curate
    from pipelines.ingest.ingest import ingest

    with contextlib.ExitStack() as stack:
        root = where or stack.enter_context(tempfile.TemporaryDirectory())
        if not (Path(root) / "root.json").exists():
            ingest("clips", str(clips), root)
        connect()
        curate(root)
        yield root


def judged_rows(root: str) -> tuple[pa.Table, pa.Table, list[dict[str, Any]]]:
    """Index rows of judged video edits, their verdicts, and both as plain rows with `eye` and `footage`."""
    from pipelines.curate.verdicts import verdicts
    from pipelines.samples.index import read_index

    index = read_index(root)
    extra = [json.loads(e or "{}") for e in index["extra_json"].to_pylist()]
    mask = [
        bool(e.get("eye_verdict")) and k == "video_edit" for e, k in zip(extra, index["kind"].to_pylist(), strict=True)
    ]
    index = index.filter(pa.array(mask))
    extra = [e for e, m in zip(extra, mask, strict=True) if m]
    seen = verdicts(root, index["sample_digest"])
    rows = [
        {**signals, **row, "eye": e["eye_verdict"].split()[0], "footage": e["source_group"]}
        for signals, row, e in zip(seen.to_pylist(), index.to_pylist(), extra, strict=True)
    ]
    return index, seen, rows


def decided(index: pa.Table, seen: pa.Table, changes: dict[str, float]) -> list[dict[str, Any]]:
    from pipelines import config
    from pipelines.curate.rules import Rules
    from pipelines.curate.select import decide_on
    from pipelines.samples import tables

    rules = config.load(Rules, None, [f"video_edit.{name}={value}" for name, value in changes.items()])
    return decide_on(index, seen, rules, tables.BLOCKLIST.empty_table()).to_pylist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", type=Path)
    parser.add_argument("--root")
    options = parser.parse_args()
    quiet_dependencies()
    with measured(options.clips, options.root) as root:
        index, seen, rows = judged_rows(root)
        left_out: Counter[tuple[str, str]] = Counter()
        chosen: list[dict[str, float]] = []
        for footage in sorted({r["footage"] for r in rows}):
            changes = choose([r for r in rows if r["footage"] != footage])
            chosen.append(changes)
            mine = pa.array([r["footage"] == footage for r in rows])
            for row in decided(index.filter(mine), seen.filter(mine), changes):
                eye = next(r["eye"] for r in rows if r["key"] == row["key"])
                left_out[eye, row["decision"]] += 1
                if (row["decision"] == "kept") != (eye != "failed"):
                    print(f"{eye} but {row['decision']}: {row['key']} {row['reasons']}")
        default = Counter((r["eye"], d["decision"]) for r, d in zip(rows, decided(index, seen, {}), strict=True))
    print(f"\n{len(rows)} pairs, {len(chosen)} groups; thresholds chosen, least and most over the groups left out:")
    for name in chosen[0]:
        print(f"  {name}: {min(c[name] for c in chosen):.3f} to {max(c[name] for c in chosen):.3f}")
    print("\n| by eye | left out: kept | rejected | defaults: kept | rejected |\n| --- | ---: | ---: | ---: | ---: |")
    for eye in ("good", "partial", "failed"):
        counts = [table[eye, what] for table in (left_out, default) for what in ("kept", "rejected")]
        print(f"| {eye} | {' | '.join(map(str, counts))} |")


if __name__ == "__main__":
    main()
