"""The rendered manifests: as they were agreed on, well formed, and full of commands that exist.

To accept a change of the templates: SAMA_UPDATE_GOLDEN=1 python -m pytest tests/cluster
"""

from __future__ import annotations

import ast
import importlib
import os
import re
import shlex
import stat
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer
import yaml

from pipelines import config
from pipelines.cli import VERBS
from sama.errors import InputError

REPOSITORY = Path(__file__).resolve().parents[2]
CLUSTER = REPOSITORY / "cluster"
GOLDEN = Path(__file__).parent / "golden"
NAMES = ("curate.rayjob.yaml", "train.rayjob.yaml", "mlflow.yaml", "Dockerfile", "curate.sbatch", "train.sbatch")


@pytest.fixture(scope="module")
def render() -> ModuleType:
    """cluster/render.py as a module, found as Python finds it when it is run as a script."""
    sys.path.insert(0, str(CLUSTER))
    try:
        return importlib.import_module("render")
    finally:
        sys.path.remove(str(CLUSTER))


@pytest.fixture(scope="module")
def files(render: ModuleType) -> dict[str, str]:
    return render.render(values(render))


def values(render: ModuleType, *overrides: str) -> Any:
    return config.load(render.Values, str(CLUSTER / "values.yaml"), overrides)


@pytest.mark.parametrize("name", NAMES)
def test_golden(files: dict[str, str], name: str) -> None:
    path = GOLDEN / name
    if os.environ.get("SAMA_UPDATE_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(files[name])
    assert files[name] == path.read_text(), f"{name} changed; see the head of this file"


def test_every_file_has_a_golden_one(files: dict[str, str]) -> None:
    assert set(files) == set(NAMES) == {p.name for p in GOLDEN.iterdir()}


@pytest.mark.parametrize("job", ["curate", "train"])
def test_ray_jobs_hold_together(files: dict[str, str], job: str) -> None:
    script, ray_job = yaml.safe_load_all(files[f"{job}.rayjob.yaml"])
    assert (ray_job["apiVersion"], ray_job["kind"]) == ("ray.io/v1", "RayJob")
    spec = ray_job["spec"]
    # one plain command: KubeRay gives the entrypoint to a shell of the submitter pod
    assert re.fullmatch(r"[\w ./-]+", spec["entrypoint"])
    cluster = spec["rayClusterSpec"]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert cluster["rayVersion"] == locked("ray")
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        pod = group["template"]["spec"]
        volumes = {v["name"]: v for v in pod["volumes"]}
        assert volumes["shm"]["emptyDir"]["medium"] == "Memory"
        assert pod["securityContext"]["runAsNonRoot"] is True
        (container,) = pod["containers"]
        assert {m["name"] for m in container["volumeMounts"]} == set(volumes)
        assert {m["name"]: m["mountPath"] for m in container["volumeMounts"]}["shm"] == "/dev/shm"
        assert {e["name"]: e["value"] for e in container["env"]}["RAY_USAGE_STATS_ENABLED"] == "0"
        assert all(isinstance(e["value"], str) for e in container["env"])
    head = cluster["headGroupSpec"]["template"]["spec"]
    mount = next(m["mountPath"] for m in head["containers"][0]["volumeMounts"] if m["name"] == "script")
    assert spec["entrypoint"] == f"bash {mount}/run.sh"
    volume = next(v for v in head["volumes"] if v["name"] == "script")
    assert volume["configMap"]["name"] == script["metadata"]["name"]
    assert "run.sh" in script["data"]


def test_training_pods_ask_for_their_gpus(files: dict[str, str]) -> None:
    _, job = yaml.safe_load_all(files["train.rayjob.yaml"])
    (group,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert group["replicas"] == group["minReplicas"] == group["maxReplicas"] == 4
    resources = group["template"]["spec"]["containers"][0]["resources"]
    assert resources["requests"] == resources["limits"]
    assert resources["limits"]["nvidia.com/gpu"] == 8


def test_optional_values_leave_no_empty_keys(render: ModuleType, files: dict[str, str]) -> None:
    assert "imagePullSecrets" not in files["train.rayjob.yaml"]
    assert "suspend" not in files["train.rayjob.yaml"]
    given = ("job.queue=gpus", "image.pull_secret=key", "job.deadline_hours=1.5", "slurm.account=vision", "env.A=b c")
    more = render.render(values(render, *given))
    _, job = yaml.safe_load_all(more["train.rayjob.yaml"])
    assert job["spec"]["suspend"] is True
    assert job["spec"]["activeDeadlineSeconds"] == 5400
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpus"
    pod = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    assert pod["imagePullSecrets"] == [{"name": "key"}]
    assert {"name": "A", "value": "b c"} in pod["containers"][0]["env"]
    assert "#SBATCH --account=vision\n" in more["train.sbatch"]
    assert "export A='b c'\n" in more["train.sbatch"]


def test_mlflow_is_one_server_with_one_volume(files: dict[str, str]) -> None:
    claim, deployment, service = yaml.safe_load_all(files["mlflow.yaml"])
    assert [d["kind"] for d in (claim, deployment, service)] == ["PersistentVolumeClaim", "Deployment", "Service"]
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"] == deployment["spec"]["selector"]["matchLabels"] == labels
    assert service["spec"]["type"] == "ClusterIP"
    pod = deployment["spec"]["template"]["spec"]
    assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    command = pod["containers"][0]["command"]
    assert f"{service['metadata']['name']}.sama.svc:5000" in next(c for c in command if c.startswith("--allowed-hosts"))


def test_the_image_is_built_from_the_lock(files: dict[str, str]) -> None:
    dockerfile = files["Dockerfile"]
    assert "--requirement requirements.lock" in dockerfile
    assert f'"ray[default]=={locked("ray")}"' in dockerfile
    copied = {w for line in re.findall(r"^COPY (.+)$", dockerfile, re.M) for w in line.split()[:-1]}
    assert copied == {"requirements.lock", "pyproject.toml", "README.md", "LICENSE", "sama", "pipelines"}
    assert all((REPOSITORY / name).exists() for name in copied)
    assert "\nUSER sama\n" in dockerfile


def commands_in(text: str) -> list[list[str]]:
    """Every `sama …` of a shell script, as words."""
    return [shlex.split(c) for c in re.findall(r"\bsama [a-z][^&\n]*?(?= &&|\n|$)", text)]


def scripts(files: dict[str, str]) -> list[list[str]]:
    found = []
    for job in ("curate", "train"):
        script, _ = yaml.safe_load_all(files[f"{job}.rayjob.yaml"])
        found += commands_in(script["data"]["run.sh"])
        batch = re.search(r"bash -c (.*) \|\| true", files[f"{job}.sbatch"])
        assert batch is not None
        found += commands_in(shlex.split(batch.group(1))[0])
    return found


def test_the_commands_are_verbs_with_arguments_that_they_take(files: dict[str, str]) -> None:
    found = scripts(files)
    assert [c[1] for c in found] == ["curate", "select", "curate", "select", "train", "train", "train", "train"]
    for _, verb, *arguments in found:
        app = typer.Typer()
        app.command()(getattr(importlib.import_module(VERBS[verb]), verb))
        typer.main.get_command(app).make_context(verb, list(arguments))  # parses, and raises on what it does not know


def test_the_settings_that_they_change_exist(files: dict[str, str]) -> None:
    for command in (c for c in scripts(files) if c[1] == "train"):
        overrides = [command[i + 1] for i, word in enumerate(command) if word == "--set"]
        settings = config.load(config.Settings, None, overrides, run="r", data="d", mixture="m")
        assert settings.train.workers == 32
        assert settings.train.gpus_per_worker == 1
        assert settings.train.precision == "bfloat16"


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("train.gpus_per_nod=3", "train.gpus_per_nod is not a setting; did you mean train.gpus_per_node?"),
        ("train.cpus_per_node=32", "take 32 of 32 CPUs, and none is left to decode clips"),
        ("curate.workers.min=99", "at least 99 and at most 16 workers cannot both hold"),
        ("train.nodes=0", "train.nodes"),
        ("name=Bad_Name", "name"),
        ("slurm.partition=a b", "slurm.partition"),
        ("image.repository=x; rm y", "image.repository"),
        ("head.memory=lots", "head.memory"),
        ('env={"A-B": "1"}', "'A-B' is not the name of an environment variable"),
    ],
)
def test_a_wrong_value_is_one_sentence(render: ModuleType, override: str, told: str) -> None:
    with pytest.raises(InputError) as error:
        values(render, override)
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_the_script_as_a_user_runs_it(tmp_path: Path, files: dict[str, str]) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(CLUSTER / "render.py"), *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, timeout=60)

    done = run("--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert {p.name: p.read_text() for p in (tmp_path / "out").iterdir()} == files
    failed = run("--values", str(tmp_path / "none.yaml"))
    assert failed.returncode == 2
    assert "none.yaml" in failed.stderr
    assert "Traceback" not in failed.stderr


def test_shell_words_are_quoted(render: ModuleType) -> None:
    files = render.render(values(render, "paths.data=/shared/it's here", "curate.datasets=['$(reboot)']"))
    curate = [c for c in scripts(files) if c[1] == "curate"]
    assert len(curate) == 2
    assert all(c == ["sama", "curate", "/shared/it's here", "--dataset", "$(reboot)"] for c in curate)


@pytest.mark.parametrize(
    ("sama", "ray", "code"),
    [
        ("exit 0", 'while [ "$1" != -- ]; do shift; done; shift; "$@"', 0),
        ("exit 3", 'while [ "$1" != -- ]; do shift; done; shift; "$@"', 1),
        ("exit 0", "exit 0", 1),  # Ray could not start: symmetric-run ends with 0 all the same
    ],
)
def test_a_batch_file_ends_with_0_only_when_its_verbs_did(
    tmp_path: Path, render: ModuleType, sama: str, ray: str, code: int
) -> None:
    log = tmp_path / "log"
    tools = {"sama": f'echo "$RAY_ADDRESS $*" >> {log}; {sama}', "ray": ray, "srun": 'shift; exec "$@"',
             "scontrol": "echo node-1; echo node-2"}  # fmt: skip
    for name, body in tools.items():
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/bash\n{body}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    script = tmp_path / "train.sbatch"
    script.write_text(render.render(values(render, "slurm.setup=[]"))["train.sbatch"])
    environment = {"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin", "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node-[1-2]",
                   "SLURM_JOB_NUM_NODES": "2", "SLURM_SUBMIT_DIR": str(tmp_path)}  # fmt: skip
    done = subprocess.run(["bash", str(script)], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == code, done.stderr
    if code == 0:
        ran = log.read_text().splitlines()
        assert [line.split()[:3] for line in ran] == [
            ["node-1:6379", "train", "/shared/config/stage0.yaml"],
            ["node-1:6379", "train", "/shared/config/stage1.yaml"],
        ]
    assert not list(tmp_path.glob(".sama-*"))


def test_nothing_imports_the_cluster_folder() -> None:
    for file in [*(REPOSITORY / "sama").rglob("*.py"), *(REPOSITORY / "pipelines").rglob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(n.split(".")[0] in ("cluster", "cluster_values", "render") for n in names), file


def locked(package: str) -> str:
    lines = (REPOSITORY / "requirements.lock").read_text().splitlines()
    return next(line.split("==")[1] for line in lines if line.startswith(f"{package}=="))
