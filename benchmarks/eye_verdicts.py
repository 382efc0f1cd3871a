"""How the default selection rules, on signals alone, agree with pairs that a person judged.

    python benchmarks/eye_verdicts.py CLIPS

CLIPS is a folder for `sama ingest clips` whose manifest rows carry `eye_verdict` (good, partial, failed).
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from pathlib import Path

from pipelines.cli import quiet_dependencies


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", type=Path)
    options = parser.parse_args()
    quiet_dependencies()
    from pipelines.cluster_session import connect
    from pipelines.curate.curate import curate
    from pipelines.curate.select import read_selection, select
    from pipelines.ingest.ingest import ingest
    from pipelines.samples.index import read_index

    rows = [json.loads(line) for line in (options.clips / "manifest.jsonl").read_text().splitlines() if line]
    verdicts = {row["id"]: row.get("eye_verdict", "").split(" ")[0] for row in rows if row.get("eye_verdict")}
    connect()
    with tempfile.TemporaryDirectory() as root:
        ingest("clips", str(options.clips), root)
        curate(root)
        select(root, "default")
        decided = read_selection(root, "default").select(["key", "decision", "reasons"]).to_pylist()
        upstream = dict(zip(*read_index(root, columns=["key", "upstream_id"]).to_pydict().values(), strict=True))
    table: Counter[tuple[str, str]] = Counter()
    for row in decided:
        verdict = verdicts.get(upstream[row["key"]])
        if verdict:
            table[verdict, row["decision"]] += 1
    print("| by eye | kept | rejected |\n| --- | ---: | ---: |")
    for verdict in ("good", "partial", "failed"):
        print(f"| {verdict} | {table[verdict, 'kept']} | {table[verdict, 'rejected']} |")


if __name__ == "__main__":
    main()
