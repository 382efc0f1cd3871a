"""The `sama` command. Each verb lives in its own room; nothing heavy is imported before a verb runs."""

from __future__ import annotations

import importlib
import os
import sys

import typer

from sama.errors import InputError

# verb -> module with a function of the same name; the module's top level imports nothing heavy
VERBS = {
    "demo": "pipelines.demo.command",
    "ingest": "pipelines.ingest.command",
    "index": "pipelines.ingest.command",
    "curate": "pipelines.curate.command",
    "select": "pipelines.curate.command",
    "show": "pipelines.curate.command",
    "plan": "pipelines.mixture.command",
    "estimate": "pipelines.train.estimate_command",
    "encode": "pipelines.encode.command",
    "train": "pipelines.train.command",
    "status": "pipelines.train.command",
    "edit": "pipelines.edit.command",
    "export": "pipelines.edit.command",
    "report": "pipelines.report.command",
    "compare": "pipelines.report.compare_command",
    "pretext": "pipelines.mixture.pretext_command",
    "doctor": "pipelines.doctor",
}

app = typer.Typer(
    name="sama",
    help="Curate video-editing data and train SAMA models, on a laptop or a Ray cluster.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    add_completion=False,
)


def build() -> typer.Typer:
    for verb, module in VERBS.items():
        found = getattr(importlib.import_module(module), verb)
        if isinstance(found, typer.Typer):
            app.add_typer(found, name=verb)
        else:
            app.command(verb)(found)
    return app


def quiet_dependencies() -> None:
    """Telemetry is off unless the user turned it on; log noise of libraries stays out of our lines."""
    for name, value in {
        "RAY_USAGE_STATS_ENABLED": "0",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_LOGGING_LEVEL": "WARNING",
        "DO_NOT_TRACK": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "TOKENIZERS_PARALLELISM": "false",
    }.items():
        os.environ.setdefault(name, value)


def main() -> None:
    quiet_dependencies()
    try:
        build()()
    except InputError as error:
        print(f"sama: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("sama: stopped; run the same command again to go on", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
