"""The verb encode."""

from __future__ import annotations

from typing import Annotated

import typer


def encode(
    mixture: Annotated[str, typer.Argument(help="A mixture file, a shipped recipe, or a folder with a compiled plan.")],
    out: Annotated[str, typer.Option(help="The cache: a folder or a URI.")],
    data: Annotated[str | None, typer.Option(help="The data root: a folder or a URI.")] = None,
    text: Annotated[bool, typer.Option("--text", help="Text embeddings (the default).")] = False,
    latents: Annotated[
        bool, typer.Option("--latents", help="Clean latents and semantic features, one window per sample.")
    ] = False,
    preset: Annotated[str, typer.Option(help="Whose encoders.")] = "wan2.1-t2v-14b",
    weights: Annotated[str | None, typer.Option(help="Local backbone folder instead of the preset's source.")] = None,
    dtype: Annotated[
        str, typer.Option(help="What the encoders compute in: float32, bfloat16, or auto, as training on that device.")
    ] = "auto",
    actors: Annotated[int | None, typer.Option(min=1, help="Encoders at work; default: one for each GPU.")] = None,
    cpus_per_actor: Annotated[float, typer.Option(help="CPUs of one actor.")] = 1.0,
    gpus_per_actor: Annotated[
        float | None, typer.Option(help="GPUs of one actor; default: 1 if there are any.")
    ] = None,
    limit_gb: Annotated[float, typer.Option(help="Write no more than this without --yes.")] = 100.0,
    yes: Annotated[bool, typer.Option("--yes", help="Write whatever it takes.")] = False,
    address: Annotated[str | None, typer.Option(help="Ray cluster; without it a local Ray is started.")] = None,
    num_cpus: Annotated[int | None, typer.Option(help="Logical CPUs of a local Ray.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="A mixture setting, as steps=1000; may be repeated.")
    ] = None,
) -> None:
    """Encode once what training would encode at every step; run again, it does what is missing.

    Example: sama encode stage1-paper.yaml --data data/ --out cache/ --preset wan2.1-t2v-1.3b

    Says how many bytes and how long before it writes anything.
    """
    from pipelines import config
    from pipelines.cluster_session import connect
    from pipelines.encode import encode as job
    from pipelines.mixture import BatchPlan
    from pipelines.mixture.mixture import load_mixture
    from pipelines.progress import say
    from pipelines.samples import storage
    from sama.errors import InputError
    from sama.presets import get_preset

    if dtype not in ("auto", "float32", "bfloat16"):
        raise InputError(f"--dtype {dtype}: write auto, float32 or bfloat16")
    get_preset(preset)
    if storage.exists(storage.join(mixture, "plan.json")):
        if set_:
            raise InputError(f"{mixture} is a compiled plan: --set goes with a mixture file")
        plan = BatchPlan.open(mixture)
    else:
        if data is None:
            raise InputError("sama encode needs --data ROOT, the data root that the mixture draws from")
        plan = BatchPlan.from_mixture(load_mixture(mixture, set_ or []), data)
    connect(config.validate(config.RaySettings, {"address": address, "num_cpus": num_cpus}, "the options"))
    pool = job.pool(actors, cpus_per_actor, gpus_per_actor)
    pool.check()
    how = job.Encoding(out, preset, weights, job.default_dtype(pool.gpus) if dtype == "auto" else dtype)
    kinds = [name for name, wanted in (("text", text or not latents), ("latents", latents)) if wanted]
    job.encode(plan, how, pool, kinds, limit_gb, yes)
    use = {"text": f"text.mode=cached text.cache={out}", "latents": f"latents.cache={out}"}
    say(f"next: sama train with {' '.join(use[k] for k in kinds)}")
