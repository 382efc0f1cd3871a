"""`sama demo`: the main job with everything given, on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything the demo makes.")] = Path("out/demo"),
    clips: Annotated[
        Path | None, typer.Option(help="Real clips: a folder with a manifest.jsonl. Without it, a procedural world.")
    ] = None,
    short: Annotated[bool, typer.Option(help="Few samples and steps: does it work at all?")] = False,
    settings: Annotated[Path | None, typer.Option("--settings", help="YAML in place of recipes/demo.yaml.")] = None,
    change: Annotated[list[str] | None, typer.Option("--set", help="Override a setting: train.lr=1e-3.")] = None,
    print_config: Annotated[bool, typer.Option("--print-config", help="Print the resolved settings and stop.")] = False,
) -> None:
    """Go the whole way: ingest, curate, select, Stage 0, Stage 1, edit, report.

    Killed at any moment, the same command goes on where it was.

    Example: sama demo --out out/demo --clips my_clips --set stage1_steps=500
    """
    from pipelines import config
    from pipelines.demo.run import run_demo
    from pipelines.demo.settings import SHORT, DemoSettings

    source = str(settings) if settings else config.recipe("demo.yaml")
    chosen = config.load(DemoSettings, source, [*(SHORT if short else ()), *(change or [])])
    if print_config:
        print(config.dump(chosen), end="")
        return
    from pipelines.train.launch import TrainingFailedError

    try:
        run_demo(str(out), str(clips) if clips else None, chosen)
    except TrainingFailedError as error:
        typer.echo(f"sama: training failed: {error}", err=True)
        raise typer.Exit(1) from None
