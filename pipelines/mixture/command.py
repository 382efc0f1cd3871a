"""`sama plan`: what a mixture will train on, before a GPU is paid for."""

from __future__ import annotations

from typing import Annotated

import typer


def plan(
    mixture: Annotated[str, typer.Argument(help="A mixture file, a shipped recipe, or a folder with a compiled plan.")],
    data: Annotated[str | None, typer.Option(help="The data root: a folder or a URI.")] = None,
    out: Annotated[str | None, typer.Option(help="Write the compiled plan here, for workers to open.")] = None,
    find: Annotated[
        str | None, typer.Option(help="Name every step that trains on this key, source_group or URL.")
    ] = None,
    diff: Annotated[str | None, typer.Option(help="A folder with a compiled plan: say what differs from it.")] = None,
    first: Annotated[int, typer.Option(min=0, help="How many of the first global batches to list.")] = 6,
    as_json: Annotated[bool, typer.Option("--json", help="The summary as JSON.")] = False,
    print_config: Annotated[bool, typer.Option("--print-config", help="Print the resolved mixture and stop.")] = False,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="A mixture setting, as steps=1000; may be repeated.")
    ] = None,
) -> None:
    """Compile a mixture over a data root and say what will be trained.

    Example: sama plan stage1-paper.yaml --data s3://bucket/root --out s3://bucket/plans/stage1

    Prints shares by dataset, category, task and licence, shapes, epochs per source and what was left out by what.
    """
    import json

    from pipelines import config
    from pipelines.mixture.mixture import load_mixture
    from pipelines.mixture.plan import BatchPlan
    from pipelines.mixture.saved import difference, facts_of
    from pipelines.mixture.summary import lines
    from pipelines.progress import say
    from pipelines.samples import storage
    from sama.errors import InputError

    if storage.exists(storage.join(mixture, "plan.json")):
        if set_:
            raise InputError(f"{mixture} is a compiled plan: --set goes with a mixture file")
        compiled = BatchPlan.open(mixture)
    else:
        wanted = load_mixture(mixture, set_ or [])
        if print_config:
            say(config.dump(wanted).rstrip())
            return
        if data is None:
            raise InputError("sama plan needs --data ROOT, the data root that the mixture draws from")
        compiled = BatchPlan.from_mixture(wanted, data)
    if find is not None:
        seen = compiled.find(find)
        for step, slot, epoch in seen:
            say(f"step {step}, slot {slot}, epoch {epoch}")
        say(
            f"{find}: trained on {len(seen)} times in {compiled.steps} steps"
            if seen
            else f"{find}: in no step of this plan"
        )
    elif diff is not None:
        differs = difference(facts_of(diff), compiled.facts)
        say("the same plan" if differs is None else f"another plan: {differs}")
    elif as_json:
        say(json.dumps(compiled.summary(), indent=1))
    else:
        for line in lines(compiled, first):
            say(line)
    if out is not None:
        say(f"plan written to {compiled.save(out)}")
