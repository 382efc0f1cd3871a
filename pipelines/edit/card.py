"""The model card of an export: the hub's front matter, then what a reader must know before using the weights."""

from __future__ import annotations

from dataclasses import dataclass

import yaml

from pipelines.edit.sources import Sources
from pipelines.mixture.licences import COMMERCIAL
from sama.presets import Preset

PAPER = "SAMA: Factorized Semantic Anchoring and Motion Alignment for Instruction-Guided Video Editing"


@dataclass(frozen=True)
class Facts:
    """What a card says."""

    preset: Preset
    step: int
    weights: str
    format: str
    dtype: str
    parameters: int
    sources: Sources
    complete: bool = False  # the frozen encoders are in the folder


def licence(facts: Facts) -> str:
    """The hub's licence field: the backbone's where every sample's licence lets commercial use, `other` otherwise."""
    backbone = facts.preset.components["transformer"].licence
    ids = {str(name).lower() for name in facts.sources.table["license"].to_pylist()}
    return backbone if ids and ids <= COMMERCIAL and not facts.sources.missing else "other"


def render(facts: Facts) -> str:
    """README.md as text."""
    matter: dict[str, object] = {"license": licence(facts)}
    if matter["license"] == "other":
        matter["license_name"] = "see-data-sources"
        matter["license_link"] = "README.md"
    base = facts.preset.components["transformer"].repo
    if base:
        matter["base_model"] = base
    matter |= {
        "library_name": "diffusers",
        "pipeline_tag": "video-to-video",
        "tags": ["video-editing", "instruction-guided-editing", "sama", "wan"],
    }
    return f"---\n{yaml.safe_dump(matter, sort_keys=False)}---\n\n{_body(facts)}"


_FORMATS = {  # place, names, how to edit with it
    "official": ("sama.safetensors", "the released SAMA checkpoint's key names", "--weights sama.safetensors"),
    "diffusers": ("transformer/", "diffusers' layout", "--weights ."),
    "lora": ("lora.safetensors", "the common LoRA names of Wan", "--weights WEIGHTS --lora lora.safetensors"),
}
_PYTHON = """
```python
from sama import SamaEditPipeline

pipe = SamaEditPipeline.from_pretrained(".")
edited = pipe(video=frames, prompt="Make the car red.").frames[0]  # (T, H, W, 3) uint8 in and out
```
"""


def _body(facts: Facts) -> str:
    averaged = "averaged (EMA)" if facts.weights == "ema" else "raw (not averaged)"
    base = facts.preset.components["transformer"]
    start = f"`{base.repo}` ({base.licence})" if base.repo else "random weights; a toy for trying the software"
    place, names, use = _FORMATS[facts.format]
    preset = facts.preset.name
    needed = f"VAE and text encoder of the backbone, tokenizer: see preset `{preset}`"
    if facts.format == "lora":
        needed = f"the weights that it was trained on; {needed}"
    elif facts.format == "diffusers" and facts.complete:
        needed = "nothing: the frozen encoders are in this folder"
    return f"""# SAMA, preset {facts.preset.name}

A video editor that follows instructions, trained after the paper *{PAPER}* (arXiv 2603.19228) with the open SAMA
pipelines. It is not the authors' checkpoint.

| | |
| --- | --- |
| weights | {averaged}, {facts.parameters:,} parameters, {facts.dtype}, {names}, in `{place}` |
| trained | {facts.step} steps |
| started from | {start} |
| also needed | {needed} |

## Use

```
sama edit CLIP.mp4 "Make the car red." {use} --preset {preset} --out edited.mp4
```
{_PYTHON if facts.format == "diffusers" else ""}
## Data

{_data(facts.sources)}

## Limits

Edits may flicker, drift in colour or change more than was asked, most of all on fast motion and on clips longer than
those seen in training. Whoever publishes edited footage of people needs their consent, and should say that it is
edited.

`provenance.json` says how these files were made; `sha256sum --check SHA256SUMS` verifies them.
"""


def _data(sources: Sources) -> str:
    lines = [
        "| stage | dataset | revision | licence | samples | times seen |",
        "| --- | --- | --- | --- | --- | --- |",
        *(
            f"| {row['stage']} | {row['dataset']} | {row['revision'] or 'not stated'} | {row['license']} "
            f"| {row['samples']:,} | {row['samples_seen']:,} |"
            for row in sources.table.to_pylist()
        ),
    ]
    text = "\n".join(lines) if sources.table.num_rows else ""
    if sources.missing:
        names = ", ".join(run.rsplit("/", 1)[-1] for run in sources.missing)
        text += f"\n\n**The data of {names} are not documented here:** no batch plan was at hand for it."
    return text.strip() + (
        "\n\nThe same table is in `data_sources.parquet`. A licence is what the dataset's publisher declared for it; "
        "`unknown` means that none was declared. Check that your use is allowed."
    )
