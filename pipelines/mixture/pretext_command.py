"""`sama pretext`: the motion alignment tasks, as text and as pictures."""

from __future__ import annotations

from typing import Annotated

import typer

pretext = typer.Typer(
    help="The pretext tasks of motion alignment: list them, or see them on a clip.", no_args_is_help=True
)


@pretext.command("list")
def list_tasks() -> None:
    """Every registered task with its token and its options.

    Example: sama pretext list
    """
    from pipelines.progress import say
    from sama.pretext import PERTURBATIONS

    for task in PERTURBATIONS.values():
        say(f"{task.name}: {task.summary}")
        say(f"    token: {task.token or '(none)'}")
        if task.options:
            say(f"    options: {', '.join(f'{k}={v}' for k, v in task.options.items())}")


@pretext.command()
def preview(
    clip: Annotated[str, typer.Argument(help="A video file.")],
    out: Annotated[str, typer.Option(help="The picture to write (png).")],
    task: Annotated[list[str] | None, typer.Option(help="Only this task; may be repeated.")] = None,
    frames: Annotated[int, typer.Option(min=2, help="Frames of the clip that are perturbed.")] = 17,
    shown: Annotated[int, typer.Option(min=1, help="Frames in each row of the picture.")] = 9,
    height: Annotated[int, typer.Option(min=16, help="Height of a frame in the picture.")] = 96,
    seed: Annotated[int, typer.Option(min=0, help="Of the random draws.")] = 0,
) -> None:
    """Draw the clip under every task: one row each, the untouched clip first.

    Example: sama pretext preview clip.mp4 --out strip.png
    """
    from pipelines.mixture.strip import draw
    from pipelines.progress import say
    from pipelines.samples import storage
    from sama.errors import InputError
    from sama.video import MediaError

    if not storage.exists(clip):
        raise InputError(f"there is no file {clip}")
    try:
        picture = draw(storage.read_bytes(clip), task or [], frames, shown, height, seed)
    except MediaError as error:
        raise InputError(f"{clip} cannot be shown: {error}") from None
    storage.write_bytes(out, picture)
    say(f"written to {storage.absolute(out)}")
