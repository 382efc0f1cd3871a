"""The verb estimate."""

from __future__ import annotations

import json

import typer

ESTIMATE_HELP = """Say what a training run will need before anything is allocated: memory, time, money.

Example: sama estimate stage0.yaml --device h200 --mfu 0.35 --price 3.5 --set train.workers=64

Ends with exit code 2 when the layout does not fit, and names one that does. Memory is counted on the real modules;
time follows from the stated share of the device's peak (--mfu), which is yours to know.
"""


def estimate(
    config_file: str = typer.Argument(..., metavar="CONFIG", help="Settings (YAML), or the name of a shipped recipe."),
    device: str = typer.Option("h100", help="a100-40, a100, h100, h200, b200, or the name that CUDA reports."),
    mfu: float = typer.Option(0.35, min=0.01, max=1.0, help="Forward and backward FLOPs over the device's peak."),
    encode_mfu: float = typer.Option(0.25, min=0.01, max=1.0, help="The same of the frozen encoders."),
    price: float | None = typer.Option(None, min=0.0, help="Money per device and hour."),
    per_node: int = typer.Option(8, min=1, help="Devices per node."),
    disk: float = typer.Option(2.0, min=0.01, help="GB/s that one node writes to the run folder's storage."),
    grace: float = typer.Option(120.0, min=0.0, help="Seconds of notice before a preemption."),
    overrides: list[str] = typer.Option([], "--set", help="A setting as dotted.name=value; may be repeated."),
    run: str | None = typer.Option(None, help="The run folder; overrides the config's."),
    data: str | None = typer.Option(None, help="The data root; overrides the config's."),
    as_json: bool = typer.Option(False, "--json", help="The estimate as JSON."),
) -> None:
    from pipelines import config
    from pipelines.planner import devices
    from pipelines.planner.cost import Rates
    from pipelines.progress import say
    from pipelines.train import estimate as room

    settings = config.load(config.Settings, config.recipe(config_file), overrides, run=run, data=data)
    rates = Rates(devices.find(device), mfu, encode_mfu, price)
    found = room.estimate(settings, rates, per_node)
    say(json.dumps(room.as_tree(found), indent=1) if as_json else "\n".join(room.lines(found, rates, grace, disk)))
    if not found.fits:
        better = room.fitting(settings, rates, per_node, [c.steps for c in found.work])
        raise room.refuse(found, better)


estimate.__doc__ = ESTIMATE_HELP
