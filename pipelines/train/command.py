"""The verbs train and status."""

from __future__ import annotations

import sys

import typer

TRAIN_HELP = """Train a stage on Ray, from the start or from where the run folder is.

Example: sama train stage0.yaml --set train.workers=8 --set train.lr=1e-5

The same command after any interruption goes on from the newest checkpoint. SIGTERM lets the workers finish their step
and save. CONFIG is YAML with the keys run, data,
mixture, preset, train, loader, tracking and ray; --print-config shows all of them.
"""
STATUS_HELP = """Say how a training run is doing: state, step, restarts, lost minutes, last error, newest checkpoint.

Example: sama status runs/stage0
"""


def train(
    config_file: str = typer.Argument(..., metavar="CONFIG", help="Settings (YAML), or the name of a shipped recipe."),
    overrides: list[str] = typer.Option([], "--set", help="A setting as dotted.name=value; may be repeated."),
    run: str | None = typer.Option(None, help="The run folder; overrides the config's."),
    data: str | None = typer.Option(None, help="The data root; overrides the config's."),
    print_config: bool = typer.Option(False, "--print-config", help="Print the resolved settings and stop."),
) -> None:
    from pipelines import config

    settings = config.load(config.Settings, config.recipe(config_file), overrides, run=run, data=data)
    if print_config:
        print(config.dump(settings), end="")
        return
    from pipelines.train import launch

    try:
        result = launch.train(settings)
    except launch.TrainingFailedError as error:
        print(f"sama: training failed: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    except launch.StoppedError as stop:
        from pipelines.train.notices import STOPPED

        print(f"sama: {stop}", file=sys.stderr)
        raise typer.Exit(STOPPED) from None
    print(f"{result.run}: {result.final_step} steps done; mlflow run {result.mlflow_run_id or 'none'}")


def status(run: str = typer.Argument(..., metavar="RUN", help="A run folder.")) -> None:
    from pipelines.train.status import describe

    print("\n".join(describe(run)))


train.__doc__, status.__doc__ = TRAIN_HELP, STATUS_HELP
