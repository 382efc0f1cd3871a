"""What an operator may write in a values file, checked before anything is rendered."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, model_validator

from pipelines.config import Strict

NAME = r"^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$"  # room for suffixes: Kubernetes and KubeRay cut at 63 and 47
QUANTITY = r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$"
WORD = r"^[^\s\"'`$\\;&|<>]+$"  # one word that a shell and a Dockerfile read as it is
Toleration = dict[str, str | int]


class Image(Strict):
    repository: str = Field(pattern=WORD)
    tag: str = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$")
    pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    pull_secret: str | None = None
    base: str = Field(pattern=WORD)


class Storage(Strict):
    claim: str = Field(pattern=NAME)
    mount: str = Field(pattern=r"^/[^\s\"'`$\\;&|<>]*$")
    shm: str = Field(pattern=QUANTITY)


class Paths(Strict):
    data: str
    hub_cache: str


class Head(Strict):
    cpus: int = Field(gt=0)
    memory: str = Field(pattern=QUANTITY)


class Decoders(Strict):
    min: int = Field(ge=0)
    max: int = Field(gt=0)
    cpus: int = Field(gt=0)
    memory: str = Field(pattern=QUANTITY)

    @model_validator(mode="after")
    def _ordered(self) -> Decoders:
        if self.min > self.max:
            raise ValueError(f"at least {self.min} and at most {self.max} workers cannot both hold")
        return self


class Curate(Strict):
    datasets: tuple[str, ...] = ()
    selection: str
    rules: str
    workers: Decoders


class Train(Strict):
    settings: tuple[str, ...] = Field(min_length=1)
    overrides: tuple[str, ...] = ()
    nodes: int = Field(gt=0)
    gpus_per_node: int = Field(gt=0)
    cpus_per_node: int = Field(gt=0)
    cpus_per_worker: int = Field(gt=0)
    memory: str = Field(pattern=QUANTITY)
    gpu_resource: str = "nvidia.com/gpu"

    @model_validator(mode="after")
    def _cpus_left(self) -> Train:
        taken = self.gpus_per_node * self.cpus_per_worker
        if taken >= self.cpus_per_node:
            raise ValueError(
                f"{self.gpus_per_node} workers a node with {self.cpus_per_worker} CPUs each take {taken} of "
                f"{self.cpus_per_node} CPUs, and none is left to decode clips: lower cpus_per_worker"
            )
        return self


class Job(Strict):
    retries: int = Field(default=2, ge=0)
    deadline_hours: float | None = Field(default=None, gt=0)
    ttl_minutes: int = Field(default=60, ge=0)
    queue: str | None = None


class Nodes(Strict):
    cpu_selector: dict[str, str] = Field(default_factory=dict)
    gpu_selector: dict[str, str] = Field(default_factory=dict)
    gpu_tolerations: tuple[Toleration, ...] = ()


class Slurm(Strict):
    account: str | None = Field(default=None, pattern=WORD)
    partition: str | None = Field(default=None, pattern=WORD)
    time: str = Field(default="24:00:00", pattern=r"^[0-9:-]+$")
    curate_nodes: int = Field(default=1, gt=0)
    curate_cpus: int = Field(gt=0)
    wait_s: int = Field(default=600, gt=0)
    setup: tuple[str, ...] = ()
    mlflow_uri: str | None = None


class Mlflow(Strict):
    port: int = Field(default=5000, ge=1024, le=65535)
    storage: str = Field(pattern=QUANTITY)
    storage_class: str | None = None
    memory: str = Field(pattern=QUANTITY)
    allowed_hosts: tuple[str, ...] = ()


class Values(Strict):
    """Everything a cluster's operator decides."""

    name: str = Field(pattern=NAME)
    namespace: str = Field(pattern=NAME)
    image: Image
    ray_version: str = Field(pattern=r"^[0-9]+\.[0-9]+\.[0-9]+$")
    storage: Storage
    paths: Paths
    env: dict[str, str] = Field(default_factory=dict)
    head: Head
    curate: Curate
    train: Train
    job: Job = Job()
    nodes: Nodes = Nodes()
    slurm: Slurm
    mlflow: Mlflow

    @model_validator(mode="after")
    def _env_names(self) -> Values:
        for name in self.env:
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
                raise ValueError(f"env: {name!r} is not the name of an environment variable")
        return self
