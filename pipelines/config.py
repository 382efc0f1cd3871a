"""One tree of typed settings, read from YAML with dotted overrides; an unknown key is an error that helps."""

from __future__ import annotations

import difflib
import importlib.resources
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from pipelines.samples import storage
from sama.errors import InputError


class Strict(BaseModel):
    """Base of everything a user may write: frozen, and no key that means nothing."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class RaySettings(Strict):
    """Where the work runs. Without an address a local Ray is started."""

    address: str | None = None
    num_cpus: int | None = Field(default=None, gt=0)  # local Ray only; logical, may exceed the machine's cores
    object_store_mb: int = Field(default=400, ge=80)  # local Ray only
    start_timeout_s: float = Field(default=300.0, gt=0)  # how long to wait for a worker group before giving up


class MicroBatch(Strict):
    image: int = Field(default=1, gt=0)
    video: int = Field(default=1, gt=0)


class LoraSettings(Strict):
    """Small trained matrices beside a frozen model (sama/lora.py)."""

    rank: int = Field(default=16, gt=0)
    alpha: float = Field(default=16.0, gt=0)
    targets: list[str] = ["to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2"]  # ends of module names
    # modules trained whole: what a text-to-video backbone lacks. [] when starting from a model that edits already
    whole: list[str] = ["segment_embedding", "siglip_feat_mlp", "semantic_head"]


class TrainSettings(Strict):
    """The training loop. Defaults are the paper's where the paper has one (method: section 6)."""

    workers: int | tuple[int, int] = 1  # or [least, most]: as many as the cluster has at each (re)start
    cpus_per_worker: float = Field(default=1.0, gt=0)
    gpus_per_worker: float = Field(default=0.0, ge=0)
    threads_per_worker: int = Field(default=1, gt=0)
    micro_batch: MicroBatch = MicroBatch()
    lr: float = Field(default=2e-5, gt=0)
    warmup_steps: int = Field(default=100, ge=0)
    schedule: Literal["constant", "linear", "cosine"] = "constant"  # after the warm-up; the others end at zero
    optimizer: Literal["adamw", "adamw8bit"] = "adamw"
    weight_decay: float = Field(default=0.01, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    grad_clip: float = Field(default=1.0, gt=0)
    spike_factor: float | None = Field(default=None, gt=1)  # skip steps above this multiple of the running median
    max_skipped: int = Field(default=10, ge=0)  # skipped steps in a row that are survived
    ema_decay: float = Field(default=0.9998, ge=0, lt=1)
    ema_device: Literal["device", "cpu"] = "device"  # where the average lies; cpu: in host memory
    semantic_weight: float = Field(default=0.1, ge=0)
    timesteps: Literal["wan_shifted", "uniform", "logit_normal"] = "wan_shifted"
    shift: float = Field(default=5.0, gt=0)
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    activation_checkpointing: Literal["none", "block", "selective"] = "block"
    compile: bool = False
    attention: str | None = None  # one of diffusers' attention backends (flash, _flash_3, sage, ...); null: torch's own
    cpu_offload: bool = False  # sharded weights, gradients and optimizer in host memory; needs an accelerator
    hsdp_replicas: int = Field(default=1, gt=0)  # copies of the sharded weights; 1: sharded over all workers
    sequence_parallel: int = Field(default=1, gt=0)  # workers that share one sequence; divides the attention heads
    lora: LoraSettings | None = None  # null: all weights are trained
    init_from: str | None = None  # a run folder: model and EMA start from its EMA weights
    checkpoint_every: int = Field(default=500, gt=0)
    checkpoint_minutes: float | None = Field(default=None, gt=0)  # also whenever the last one is this old
    checkpoint_async: bool = True  # written while training goes on; takes host memory for one copy of the state
    keep_last: int = Field(default=3, gt=0)
    keep_best: int = Field(default=1, ge=0)  # and so many with the lowest held-out loss
    max_restarts: int = Field(default=3, ge=0)
    heldout_every: int = Field(default=500, gt=0)
    heldout_samples: int = Field(default=8, gt=0)
    strip_every: int = Field(default=500, gt=0)
    strip_steps: int = Field(default=20, gt=0)

    @field_validator("workers")
    @classmethod
    def _range(cls, value: int | tuple[int, int]) -> int | tuple[int, int]:
        least, most = (value, value) if isinstance(value, int) else value
        if not 0 < least <= most:
            raise ValueError("at least 1 worker, or [least, most] with 1 <= least <= most")
        return value

    @property
    def most_workers(self) -> int:
        return self.workers if isinstance(self.workers, int) else self.workers[1]

    @property
    def least_workers(self) -> int:
        return self.workers if isinstance(self.workers, int) else self.workers[0]


class TextSettings(Strict):
    """Where text embeddings come from: `live` in the training worker, from a cache of `sama encode`, or from actors."""

    mode: Literal["live", "cached", "actors"] = "live"
    cache: str | None = None  # what `sama encode --out` wrote
    offload: bool = False  # live: the text encoder waits in host memory between uses
    sharded: bool = False  # live: its weights are spread over the workers
    actors: int = Field(default=1, gt=0)
    cpus_per_actor: float = Field(default=1.0, gt=0)
    gpus_per_actor: float = Field(default=0.0, ge=0)

    @model_validator(mode="after")
    def _fits(self) -> TextSettings:
        if self.mode == "cached" and self.cache is None:
            raise ValueError("mode cached needs text.cache, the folder that `sama encode --out` wrote")
        if self.mode != "live" and (self.offload or self.sharded):
            raise ValueError("offload and sharded belong to mode live")
        if self.offload and self.sharded:
            raise ValueError("offload and sharded exclude each other")
        return self


class LatentSettings(Strict):
    """Clean latents of `sama encode --latents`; what the cache does not hold is encoded live."""

    cache: str | None = None


class LoaderSettings(Strict):
    """The Ray Data side of training."""

    decode_cpus: float = Field(default=1.0, gt=0)  # logical CPUs of one decode task
    max_decoders: int = Field(default=4, gt=0)
    read_ahead_rows: int = Field(default=64, gt=0)  # plan rows (micro-batches) generated but not yet trained on
    stall_warning_s: float = Field(default=120.0, gt=0)


class TrackingSettings(Strict):
    enabled: bool = True
    uri: str | None = None  # default: sqlite in the run folder's parent
    experiment: str = "sama"
    parent_run: str | None = None
    register_as: str | None = None  # name of a registered model that gets the final and the best checkpoint as versions
    system_seconds: float = Field(default=30.0, gt=0)  # how often each node says how busy it is


class Settings(Strict):
    """All of `sama train`."""

    run: str  # the run folder
    data: str  # the data root
    mixture: str  # a mixture file
    preset: str = "wan2.1-t2v-14b"
    weights: str | None = None  # hub id or folder that overrides the preset's source of the backbone
    train: TrainSettings = TrainSettings()
    text: TextSettings = TextSettings()
    latents: LatentSettings = LatentSettings()
    loader: LoaderSettings = LoaderSettings()
    tracking: TrackingSettings = TrackingSettings()
    ray: RaySettings = RaySettings()


T = TypeVar("T", bound=BaseModel)


def recipe(name: str) -> str:
    """Path of a file that ships in pipelines/recipes, or `name` itself when that exists."""
    if storage.exists(name):
        return storage.absolute(name)
    shipped = importlib.resources.files("pipelines.recipes") / name
    if shipped.is_file():
        return str(shipped)
    raise InputError(f"{name} is neither a file nor one of the recipes {', '.join(shipped_recipes())}")


def shipped_recipes() -> list[str]:
    folder = importlib.resources.files("pipelines.recipes")
    return sorted(f.name for f in folder.iterdir() if f.name.endswith(".yaml"))


def load(
    cls: type[T], source: str | Path | None = None, overrides: list[str] | tuple[str, ...] = (), **given: Any
) -> T:
    """Read a YAML file into `cls`; `given` fills top-level keys, `overrides` are `a.b=value` and win."""
    text, name = "", "the settings"
    if source is not None:
        name = str(source)
        try:
            text = storage.read_bytes(name).decode()
        except (FileNotFoundError, IsADirectoryError, OSError, UnicodeDecodeError):
            raise InputError(f"{name} is not a readable text file") from None
    tree, lines = _parse(text, name)
    tree = {**tree, **{k: v for k, v in given.items() if v is not None}}
    for override in overrides:
        _apply(tree, override)
    return validate(cls, tree, name, lines)


def validate(cls: type[T], tree: dict, name: str, lines: dict[tuple, int] | None = None) -> T:
    """Build `cls` from a tree of plain values; the first mistake becomes one sentence with its place."""
    try:
        return cls.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        path = tuple(p for p in first["loc"])
        line = _line_of(path, lines or {})
        where = f"{name}, line {line}" if line else name
        dotted = ".".join(str(p) for p in path)
        if first["type"] == "extra_forbidden":
            known = _known_keys(cls, path[:-1])
            close = difflib.get_close_matches(str(path[-1]), known, n=1)
            parent = "".join(f"{p}." for p in path[:-1])
            hint = f"did you mean {parent}{close[0]}?" if close else f"there are {', '.join(known)}"
            raise InputError(f"{where}: {dotted} is not a setting; {hint}") from None
        if first["type"] == "missing":
            raise InputError(f"{where}: {dotted} is missing") from None
        reason = first["msg"].removeprefix("Value error, ")
        got = "" if isinstance(first["input"], dict) else f" (got {first['input']!r})"
        raise InputError(f"{where}: {dotted}: {reason}{got}") from None


def dump(settings: BaseModel) -> str:
    """The resolved settings as YAML."""
    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False)


def flatten(tree: dict, prefix: str = "") -> dict[str, Any]:
    """Nested settings as dotted names, as MLflow wants parameters."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _parse(text: str, name: str) -> tuple[dict, dict[tuple, int]]:
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        tree = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise InputError(f"{name}{line}: not valid YAML: {getattr(error, 'problem', error)}") from None
    if not isinstance(tree, dict):
        raise InputError(f"{name}: expected settings by name, found a {type(tree).__name__}")
    lines: dict[tuple, int] = {}
    _collect_lines(node, (), lines)
    return tree, lines


def _collect_lines(node: yaml.Node | None, path: tuple, lines: dict[tuple, int]) -> None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            lines[(*path, key.value)] = key.start_mark.line + 1
            _collect_lines(value, (*path, key.value), lines)
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            lines[(*path, i)] = value.start_mark.line + 1
            _collect_lines(value, (*path, i), lines)


def _line_of(path: tuple, lines: dict[tuple, int]) -> int | None:
    while path and path not in lines:
        path = path[:-1]
    return lines.get(path)


def _known_keys(cls: type[BaseModel], path: tuple) -> list[str]:
    current: Any = cls
    for part in path:
        annotation = (
            current.model_fields[part].annotation if isinstance(part, str) and part in current.model_fields else None
        )
        options = [
            a for a in (annotation, *_nested_args(annotation)) if isinstance(a, type) and issubclass(a, BaseModel)
        ]
        if options:
            current = options[0]
    return list(current.model_fields)


def _nested_args(annotation: Any) -> list[Any]:
    found: list[Any] = []
    for arg in get_args(annotation):
        found += [arg, *_nested_args(arg)]
    return found


def _apply(tree: dict, override: str) -> None:
    name, mark, value = override.partition("=")
    if not mark:
        raise InputError(f"--set {override}: write it as name=value")
    *parents, last = name.strip().split(".")
    node = tree
    for part in parents:
        child = node.get(part)
        if isinstance(child, list):
            raise InputError(f"--set {override}: {part} is a list; give the whole of it, as --set '{part}=[...]'")
        node[part] = child = dict(child) if isinstance(child, dict) else {}
        node = child
    try:
        node[last] = yaml.safe_load(value)
    except yaml.YAMLError:
        raise InputError(f"--set {override}: the value is not valid YAML") from None
