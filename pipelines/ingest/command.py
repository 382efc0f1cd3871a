"""`sama ingest` and `sama index`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from pipelines.config import RaySettings, load
from pipelines.progress import say
from sama.errors import InputError

Root = Annotated[str, typer.Option("--root", help="The data root: a folder or a URI (s3://, gs://).")]
Heldout = Annotated[
    float | None,
    typer.Option("--heldout-share", help="Share of the footage never trained on; fixed by the first ingest (0.05)."),
]
RaySet = Annotated[list[str] | None, typer.Option("--set", help="A Ray setting, e.g. num_cpus=8 or address=auto.")]


def ingest(
    dataset: Annotated[
        str, typer.Argument(help="ditto-1m, openve-3m, reco-data, nhr-edit, koala-36m, clips, or pairs (any manifest).")
    ],
    folder: Annotated[str, typer.Argument(help="Where the data set lies as its owners published it.")],
    root: Root,
    name: Annotated[str | None, typer.Option(help="The dataset's name in the root, if not the data set's own.")] = None,
    heldout_share: Heldout = None,
    chunk_rows: Annotated[int | None, typer.Option(help="Manifest rows per task and shard.")] = None,
    column: Annotated[
        list[str] | None, typer.Option("--map", help="field=column, e.g. target=edited_clip (pairs, nhr-edit).")
    ] = None,
    manifest: Annotated[str | None, typer.Option(help="The manifest inside the folder (pairs, clips).")] = None,
    license: Annotated[str | None, typer.Option(help="SPDX licence of the rows (pairs, clips).")] = None,
    retry_missing: Annotated[
        bool, typer.Option("--retry-missing", help="Look again for media that earlier runs did not find.")
    ] = False,
    set_: RaySet = None,
) -> None:
    """Bring a data set into a data root as shards, index and rejects.

    Example: sama ingest ditto-1m /data/Ditto-1M --root s3://bucket/root

    Broken samples become rejects with a reason. Killed at any moment, the same command goes on.
    """
    from pipelines.ingest.candidate import Options
    from pipelines.ingest.ingest import CHUNK_ROWS
    from pipelines.ingest.ingest import ingest as run

    options = Options(columns=_pairs(column or []), manifest=manifest, license=license)
    done = run(
        dataset,
        folder,
        root,
        name=name,
        heldout_share=heldout_share,
        chunk_rows=CHUNK_ROWS if chunk_rows is None else chunk_rows,
        options=options,
        retry_missing=retry_missing,
        ray_settings=load(RaySettings, overrides=set_ or []),
    )
    _report(name or dataset, done, root)


def index(
    root: Annotated[str, typer.Argument(help="The data root that gets the index.")],
    dataset: Annotated[str, typer.Argument(help="The dataset's name in the root.")],
    tars: Annotated[list[str], typer.Argument(help="Tars, or folders of tars; they stay where they are.")],
    heldout_share: Heldout = None,
    set_: RaySet = None,
) -> None:
    """Index tars that hold samples in our layout: <key>.source.mp4, <key>.target.mp4, <key>.json.

    Example: sama index /data/root my-edits /data/tars/*.tar

    What is broken or cut off becomes a reject with a reason.
    """
    from pipelines.ingest.tars import index_tars

    done = index_tars(
        root, dataset, tars, heldout_share=heldout_share, ray_settings=load(RaySettings, overrides=set_ or [])
    )
    _report(dataset, done, root)


def _pairs(texts: list[str]) -> dict[str, str]:
    found = {}
    for text in texts:
        field, mark, column = text.partition("=")
        if not (field and mark and column):
            raise InputError(f"--map {text}: write it as field=column")
        found[field] = column
    return found


def _report(name: str, done: dict[str, Any], root: str) -> None:
    before = f", {done['done_before']} rows done before" if done["done_before"] else ""
    why = ", ".join(f"{n} {reason}" for reason, n in done["reasons"].items())
    say(f"{name}: {done['index']} samples indexed, {done['rejects']} rejected{f' ({why})' if why else ''}{before}")
    say(f"{name}: {done['manifest_rows']} rows in all, now in {root}")
