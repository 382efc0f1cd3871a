"""The verbs `edit` and `export`. Nothing heavy is imported before one of them runs."""

from __future__ import annotations

from typing import Annotated

import typer

from sama.errors import InputError

Run = Annotated[str | None, typer.Option(help="A run folder; its newest EMA weights are used.")]
Step = Annotated[int | None, typer.Option(help="The run's checkpoint of this step instead of the newest.")]


def edit(
    clip: Annotated[str, typer.Argument(help="A video or an image.")],
    instruction: Annotated[str | None, typer.Argument(help="What to change, in one sentence.")] = None,
    *,
    out: Annotated[str, typer.Option(help="The edited file: .mp4 for a video; .png, .jpg or .webp for an image.")],
    run: Run = None,
    weights: Annotated[
        str | None, typer.Option(help="A safetensors file or a diffusers folder instead of a run.")
    ] = None,
    preset: Annotated[str | None, typer.Option(help="The model size that --weights belongs to.")] = None,
    step: Step = None,
    instructions: Annotated[
        str | None, typer.Option(help="A text file, one instruction per line: OUT-01, -02, ...")
    ] = None,
    steps: Annotated[int, typer.Option(help="Euler steps.")] = 50,
    shift: Annotated[float, typer.Option(help="Shift of the noise levels.")] = 5.0,
    guidance: Annotated[float, typer.Option(help="Guidance scale; 1 is without, and twice as fast.")] = 5.0,
    source_guidance: Annotated[
        float | None,
        typer.Option(help="Guide the source apart from the text; --guidance is then the text's own weight."),
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same file.")] = 0,
    frames_per_window: Annotated[
        int | None, typer.Option(help="Longest piece edited at once, 4k+1 frames; default: as in training, else 81.")
    ] = None,
    negative_prompt: Annotated[
        str | None, typer.Option(help="What guidance leads away from; default: the bare prefix.")
    ] = None,
    no_source: Annotated[
        str | None, typer.Option(help="With --source-guidance: what stands for no source, zeros or omit.")
    ] = None,
    lora: Annotated[
        list[str] | None, typer.Option(help="A LoRA file to merge in, FILE or FILE:SCALE; may be given again.")
    ] = None,
    overlap: Annotated[int | None, typer.Option(help="Frames that windows share at least; default a quarter.")] = None,
    max_frames: Annotated[int | None, typer.Option(help="Edit only the beginning.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1; default cuda where there is one.")] = None,
    offload: Annotated[
        bool, typer.Option("--offload", help="For small GPUs: one part of the model on it at a time.")
    ] = False,
    offload_blocks: Annotated[
        bool, typer.Option("--offload-blocks", help="For smaller ones: also the transformer's blocks one at a time.")
    ] = False,
) -> None:
    """Edit a clip or an image as an instruction says.

    Size, length, frame rate and sound stay. Beside OUT stand its .json (what was done) and .strip.png (source above
    edit).

    Example: sama edit clip.mp4 "Make the car red." --run runs/stage1 --out red.mp4
    """
    from pipelines.edit.load import Offload, load_pipeline
    from pipelines.edit.run import edit_clip, read_instructions, settings_for

    if (instruction is None) == (instructions is None):
        raise InputError("say what to change: an INSTRUCTION, or --instructions FILE, one of the two")
    if max_frames is not None and max_frames < 1:
        raise InputError(f"--max-frames must be at least 1, not {max_frames}")
    wanted = read_instructions(instructions) if instructions is not None else [str(instruction)]
    given = {
        "steps": steps, "shift": shift, "guidance": guidance, "source_guidance": source_guidance, "seed": seed,
        "frames_per_window": frames_per_window, "overlap": overlap, "negative_prompt": negative_prompt,
        "no_source": no_source,
    }  # fmt: skip
    # bad input is told before the weights are read, which can take minutes
    check_request(clip, wanted, out, given)
    kept: Offload | None = "blocks" if offload_blocks else "parts" if offload else None
    loaded = load_pipeline(run, weights, preset, step=step, device=device, offload=kept, loras=lora or ())
    edit_clip(loaded, clip, wanted, out, settings_for(loaded, given), max_frames=max_frames)


def check_request(clip: str, instructions: list[str], out: str, given: dict) -> None:
    """InputError for a clip, an instruction, an output or settings that cannot be."""
    from pipelines.edit.run import check_output, numbered, read_clip
    from sama.editing import EditSettings

    EditSettings(**{k: v for k, v in given.items() if v is not None})
    if any(not i.strip() for i in instructions):
        raise InputError("the instruction is empty")
    data = read_clip(clip)
    for name in numbered(out, len(instructions)):
        check_output(clip, data, name)


def export(
    run: Annotated[str, typer.Argument(help="A run folder.")],
    *,
    to: Annotated[
        str, typer.Option(help="official (one safetensors file), diffusers (a folder), or a LoRA run's lora file.")
    ],
    out: Annotated[str, typer.Option(help="A folder that does not exist yet.")],
    weights: Annotated[str, typer.Option(help="ema or raw.")] = "ema",
    step: Step = None,
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    components: Annotated[
        bool, typer.Option("--components", help="With diffusers: copy the frozen encoders into the folder too.")
    ] = False,
) -> None:
    """Write a run's weights in a public format, with a model card, the data's licences and checksums.

    Example: sama export runs/stage1 --to official --out my-sama
    """
    from pipelines.edit.export import export as write
    from pipelines.progress import say

    done = write(run, to, out, weights=weights, step=step, dtype=dtype, components=components)
    for name, size in done["files"].items():
        say(f"{size / 1e6:10.2f} MB  {name}")
    say(f"preset {done['preset']}, step {done['step']}: {done['out']}")
