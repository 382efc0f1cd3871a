"""`sama plan`: what a mixture will train on, before a GPU is paid for."""

from __future__ import annotations

from typing import Annotated

import typer


def plan(
    mixture: Annotated[
        str | None, typer.Argument(help="A mixture file, a shipped recipe, or a folder with a compiled plan.")
    ] = None,
    data: Annotated[str | None, typer.Option(help="The data root: a folder or a URI.")] = None,
    out: Annotated[str | None, typer.Option(help="Write the compiled plan here, for workers to open.")] = None,
    find: Annotated[
        str | None, typer.Option(help="Name every step that trains on this key, source_group or URL.")
    ] = None,
    runs: Annotated[
        list[str] | None,
        typer.Option(help="With --find: a run, an export or a folder of them that may carry it; may be repeated."),
    ] = None,
    diff: Annotated[
        str | None, typer.Option(help="A folder with a compiled plan, or a run: say all that differs from it.")
    ] = None,
    first: Annotated[int, typer.Option(min=0, help="How many of the first global batches to list.")] = 6,
    as_json: Annotated[bool, typer.Option("--json", help="Summary or findings as JSON, whole.")] = False,
    print_config: Annotated[bool, typer.Option("--print-config", help="Print the resolved mixture and stop.")] = False,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="A mixture setting, as steps=1000; may be repeated.")
    ] = None,
) -> None:
    """Compile a mixture over a data root and say what will be trained.

    Example: sama plan stage1-paper.yaml --data s3://bucket/root --out s3://bucket/plans/stage1

    Prints shares by dataset, category, task and licence, shapes, epochs per source and what was left out by what.

    Who saw a clip? sama plan --find https://example.org/clip --runs runs/
    """
    import json

    from pipelines import config
    from pipelines.mixture import compared, sightings
    from pipelines.mixture.mixture import load_mixture
    from pipelines.mixture.plan import BatchPlan
    from pipelines.mixture.summary import lines
    from pipelines.progress import say
    from sama.errors import InputError

    if runs and find is None:
        raise InputError("--runs says who saw a sample: name the sample with --find KEY, source_group or URL")
    compiled = None
    if mixture is None:
        if find is None or not runs:
            raise InputError("sama plan needs a mixture: a file, a shipped recipe or a folder with a compiled plan")
    elif (folder := _plan_folder(mixture)) is not None:
        if set_:
            raise InputError(f"{mixture} is a compiled plan: --set goes with a mixture file")
        compiled = BatchPlan.open(folder)
    else:
        wanted = load_mixture(mixture, set_ or [])
        if print_config:
            say(config.dump(wanted).rstrip())
            return
        if data is None:
            raise InputError("sama plan needs --data ROOT, the data root that the mixture draws from")
        compiled = BatchPlan.from_mixture(wanted, data)
    if find is not None:
        found = sightings.in_plan(compiled, find) if compiled else []
        carriers = sightings.in_runs(runs, find) if runs else None
        told = sightings.lines(find, found, compiled.steps if compiled else 0, carriers)
        for line in [json.dumps(sightings.document(found, carriers), indent=1)] if as_json else told:
            say(line)
    elif diff is not None and compiled is not None:
        for line in compared.lines(BatchPlan.open(_plan_folder(diff) or diff), compiled):
            say(line)
    elif as_json and compiled is not None:
        say(json.dumps(compiled.summary(), indent=1))
    elif compiled is not None:
        for line in lines(compiled, first):
            say(line)
    if out is not None and compiled is not None:
        say(f"plan written to {compiled.save(out)}")


def _plan_folder(place: str) -> str | None:
    """The folder of the compiled plan that a folder or a run holds; None for anything else."""
    from pipelines.samples import storage

    for folder in (storage.join(place, "plan"), place):
        if storage.exists(storage.join(folder, "plan.json")):
            return folder
    return None
