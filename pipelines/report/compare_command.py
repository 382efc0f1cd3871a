"""The verb `compare`."""

from __future__ import annotations

from typing import Annotated

import typer


def compare(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Two run folders or more.")],
    out: Annotated[str, typer.Option(help="Where the page is written.")] = "compare.html",
    title: Annotated[str, typer.Option(help="The page's title.")] = "SAMA runs",
    media: Annotated[bool, typer.Option("--media/--no-media", help="Pictures inside the page.")] = True,
) -> None:
    """Draw several runs on one page: losses against samples, tokens and device hours, mixtures, settings, strips.

    Example: sama compare runs/stage1-a runs/stage1-b --out compare.html
    """
    from pipelines.report.compare import build

    build(runs, out, title, media=media)
