"""The verbs curate, select and show."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Root = Annotated[str, typer.Argument(help="The data root: a folder or a URI.")]


def curate(
    root: Root,
    dataset: Annotated[list[str] | None, typer.Option(help="Only this dataset; may be repeated.")] = None,
    address: Annotated[str | None, typer.Option(help="Ray cluster; without it a local Ray is started.")] = None,
    num_cpus: Annotated[int | None, typer.Option(help="Logical CPUs of a local Ray.")] = None,
) -> None:
    """Measure the signals of every sample that has none yet (run it again at any time).

    Example: sama curate data/
    """
    from pipelines import config
    from pipelines.cluster_session import connect
    from pipelines.curate.curate import curate as run
    from pipelines.progress import say
    from pipelines.samples.index import datasets_of
    from sama.errors import InputError

    known = datasets_of(root)  # a mistake is answered before Ray starts
    for name in dataset or ():
        if name not in known:
            raise InputError(f"{root} has no dataset {name}; there are {', '.join(known) or 'none'}")
    connect(config.validate(config.RaySettings, {"address": address, "num_cpus": num_cpus}, "the options"))
    counts = run(root, dataset or None)
    for name, mine in counts.items():
        say(f"{name}: {mine['rows']} samples, {mine['looked']} looked at now, {mine['failed']} failed")
    say(f"next: sama select {root} --name first")


def select(
    root: Root,
    name: Annotated[str, typer.Option(help="Name of the selection; it is frozen once written.")],
    rules: Annotated[str | None, typer.Option(help="Rules file (YAML); defaults without it.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="One rule, as video_edit.max_shot_cuts=1; may be repeated.")
    ] = None,
    print_config: Annotated[bool, typer.Option("--print-config", help="Print the resolved rules and stop.")] = False,
) -> None:
    """Apply thresholds to the signals and freeze the list of kept and rejected samples.

    Example: sama select data/ --name first --set text_to_video.max_black_border=0.05
    """
    from pipelines import config
    from pipelines.curate.rules import Rules
    from pipelines.curate.select import select as run
    from pipelines.curate.summary import funnel
    from pipelines.progress import say

    resolved = config.load(Rules, rules, set_ or [])
    if print_config:
        say(resolved.as_yaml().rstrip())
        return
    summary = run(root, name, resolved)
    say(funnel(summary))
    say(f"selection {name}: {summary['decisions']['kept']} of {summary['rows']} samples kept")


def show(
    root: Root,
    key: Annotated[str, typer.Argument(help="Key of the sample.")],
    open_: Annotated[Path | None, typer.Option("--open", help="Write a page with the clips side by side.")] = None,
) -> None:
    """Print everything known of one sample.

    Example: sama show data/ ditto-1m-0005e4_1 --open sample.html
    """
    from pipelines.curate.show import describe, page
    from pipelines.progress import say

    say(describe(root, key))
    if open_ is not None:
        open_.write_text(page(root, key))
        say(f"\nwritten: {open_}")
