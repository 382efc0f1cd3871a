"""The verb `report`."""

from __future__ import annotations

from typing import Annotated

import typer


def report(
    root: Annotated[str, typer.Option(help="The data root.")],
    run: Annotated[list[str] | None, typer.Option(help="A run folder; repeat it in the order of the stages.")] = None,
    selection: Annotated[str | None, typer.Option(help="Name of the selection; not needed when there is one.")] = None,
    edits: Annotated[str | None, typer.Option(help="A folder with edited clips.")] = None,
    out: Annotated[str, typer.Option(help="Where the page is written.")] = "report.html",
    title: Annotated[str, typer.Option(help="The page's title.")] = "SAMA report",
    media: Annotated[bool, typer.Option("--media/--no-media", help="Pictures and clips inside the page.")] = True,
) -> None:
    """Write one self-contained HTML page: ledger, funnel, thumbnails, mixture, losses, edits.

    Example: sama report --root data --run out/stage0 --run out/stage1 --selection paper-v1 --edits out/edits --out
    report.html
    """
    from pipelines.report.build import build

    build(root, run or [], out, selection, edits, title, media=media)
