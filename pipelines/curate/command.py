"""The verbs curate, select and show."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from pipelines import tracking_stage

Root = Annotated[str, typer.Argument(help="The data root: a folder or a URI.")]


def curate(
    root: Root,
    dataset: Annotated[list[str] | None, typer.Option(help="Only this dataset; may be repeated.")] = None,
    judge: Annotated[str | None, typer.Option(help="Judge file (YAML): whom to ask about those that survive.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="One setting, as judge.turns=1; may be repeated.")
    ] = None,
    rules: Annotated[str | None, typer.Option(help="Rules file (YAML): who survives; defaults without it.")] = None,
    caption: Annotated[bool, typer.Option("--caption", help="Ask for captions of clips that have none.")] = False,
    sample: Annotated[int | None, typer.Option(min=1, help="Only so many samples, always the same ones.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what a judge would cost; send nothing.")] = False,
    print_config: Annotated[bool, typer.Option("--print-config", help="Print the resolved judge and stop.")] = False,
    join: Annotated[str | None, typer.Option(help="A file of others' scores to make usable in rules.")] = None,
    on: Annotated[str, typer.Option(help="With --join: the file's column that names the sample.")] = "key",
    as_: Annotated[str | None, typer.Option("--as", help="With --join: the name of these scores.")] = None,
    plugin: Annotated[
        list[str] | None, typer.Option(help="Optional signal, as nsfw=package.module:function; may be repeated.")
    ] = None,
    compare: Annotated[
        tuple[str, str] | None, typer.Option(metavar="A B", help="Print how far two judges, or joined scores, agree.")
    ] = None,
    address: Annotated[str | None, typer.Option(help="Ray cluster; without it a local Ray is started.")] = None,
    num_cpus: Annotated[int | None, typer.Option(help="Logical CPUs of a local Ray.")] = None,
    tracking_uri: tracking_stage.Uri = None,
    experiment: tracking_stage.Experiment = None,
    parent_run: tracking_stage.Parent = None,
) -> None:
    """Measure the signals of every sample that has none yet, then ask a judge (run it again at any time).

    Example: sama curate data/ --sample 500 --judge judge.yaml --set judge.turns=1
    """
    from pipelines import config
    from pipelines.cluster_session import connect
    from pipelines.curate import ask_command, ask_plan, plugins, tracked
    from pipelines.curate.curate import curate as run
    from pipelines.progress import say
    from pipelines.samples.index import datasets_of
    from sama.errors import InputError

    if join is not None or compare is not None:
        from pipelines.curate import select_command

        select_command.foreign(root, join, on, as_, compare)
        return
    plan = ask_command.plan_of(judge, set_ or [], rules, caption)
    if print_config:
        say(ask_command.as_yaml(judge, set_ or []))
        return
    optional = plugins.parse(plugin or [])
    known = datasets_of(root)  # a mistake is answered before Ray starts
    for name in dataset or ():
        if name not in known:
            raise InputError(f"{root} has no dataset {name}; there are {', '.join(known) or 'none'}")
    if dry_run:
        ask_command.dry_run(root, plan, dataset, sample)
        return
    key = ask_command.reachable(plan)
    where = tracking_stage.place(tracking_uri, experiment, parent_run)
    params: dict[str, Any] = {"root": root, "datasets": dataset or known, "sample": sample, "plugins": optional}
    params |= config.flatten(ask_plan.settings_of(plan)) if plan else {}
    with tracking_stage.stage_run(where, "curate", params) as log:
        connect(config.validate(config.RaySettings, {"address": address, "num_cpus": num_cpus}, "the options"))
        counts = run(root, dataset or None, plan=plan, sample=sample, key=key)
        for name, mine in counts.items():
            say(f"{name}: {mine['rows']} samples, {mine['looked']} looked at now, {mine['failed']} failed")
            if plan is not None:
                say(ask_command.told(plan, mine))
        if optional:
            done = plugins.curate(root, optional, dataset or None)
            say(f"plug-ins: {done['asked']} samples asked for, {done['scored']} scored now, {done['failed']} failed")
            log.count(done, "plugins.")
        tracked.curation(log, root, counts)
    say(f"next: sama select {root} --name first")


def select(
    root: Root,
    name: Annotated[str | None, typer.Option(help="Name of the selection; it is frozen once written.")] = None,
    rules: Annotated[str | None, typer.Option(help="Rules file (YAML); defaults without it.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="One rule, as video_edit.max_shot_cuts=1; may be repeated.")
    ] = None,
    from_list: Annotated[
        str | None, typer.Option(help="Keep what this file lists (csv, json, jsonl, parquet, txt) instead of rules.")
    ] = None,
    on: Annotated[
        str | None, typer.Option(help="The list's column that names the sample; all text without it.")
    ] = None,
    diff: Annotated[
        tuple[str, str] | None, typer.Option(metavar="OLD NEW", help="Print what NEW gains and loses against OLD.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="With --diff: a page with clips gained and lost.")] = None,
    media: Annotated[bool, typer.Option("--media/--no-media", help="With --out: clips in the page.")] = True,
    print_config: Annotated[bool, typer.Option("--print-config", help="Print the resolved rules and stop.")] = False,
    tracking_uri: tracking_stage.Uri = None,
    experiment: tracking_stage.Experiment = None,
    parent_run: tracking_stage.Parent = None,
) -> None:
    """Apply thresholds to signals and scores, and freeze the list of kept and rejected samples.

    Example: sama select data/ --name first --set text_to_video.max_black_border=0.05
    """
    from pipelines import config
    from pipelines.curate import select_command, tracked
    from pipelines.curate.rules import Rules
    from pipelines.progress import say
    from sama.errors import InputError

    if diff is not None:
        select_command.differences(root, *diff, out, media)
        return
    resolved = config.load(Rules, rules, set_ or [])
    if print_config:
        say(resolved.as_yaml().rstrip())
        return
    if name is None:
        raise InputError("a selection needs a name: add --name")
    if from_list is not None and (rules or set_):
        raise InputError("--from-list keeps what is listed; it takes no rules")
    where = tracking_stage.place(tracking_uri, experiment, parent_run)
    made_of = {"list": from_list, "on": on} if from_list else config.flatten(resolved.model_dump(mode="json"))
    with tracking_stage.stage_run(where, "select", {"root": root, "selection": name, **made_of}) as log:
        tracked.selection(log, root, name, select_command.freeze(root, name, resolved, from_list, on))


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
