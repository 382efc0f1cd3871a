"""The verb `report`."""

from __future__ import annotations

from typing import Annotated

import typer

from pipelines import tracking_stage


def report(
    root: Annotated[str, typer.Option(help="The data root.")],
    run: Annotated[list[str] | None, typer.Option(help="A run folder; repeat it in the order of the stages.")] = None,
    selection: Annotated[str | None, typer.Option(help="Name of the selection; not needed when there is one.")] = None,
    edits: Annotated[str | None, typer.Option(help="A folder with edited clips.")] = None,
    out: Annotated[str, typer.Option(help="Where the page is written.")] = "report.html",
    title: Annotated[str, typer.Option(help="The page's title.")] = "SAMA report",
    media: Annotated[bool, typer.Option("--media/--no-media", help="Pictures and clips inside the page.")] = True,
    tracking_uri: tracking_stage.Uri = None,
    experiment: tracking_stage.Experiment = None,
    parent_run: tracking_stage.Parent = None,
) -> None:
    """Write one self-contained HTML page: ledger, funnel, thumbnails, mixture, losses, edits.

    Example: sama report --root data --run out/stage0 --run out/stage1 --selection paper-v1 --edits out/edits --out
    report.html
    """
    from pipelines.curate import tracked
    from pipelines.report.build import build

    where = tracking_stage.place(tracking_uri, experiment, parent_run)
    params = {"root": root, "runs": run, "selection": selection, "edits": edits}
    with tracking_stage.stage_run(where, "report", params) as log:
        log.artifacts.append(build(root, run or [], out, selection, edits, title, media=media))
        tracked.book(log, root)
