"""Turn one values file into manifests: `python cluster/render.py [--values FILE] [--out DIR]`.

YAML templates are parsed first and filled node by node, so that no value can change a manifest's structure:
a scalar that is exactly `${a.b}` becomes the value with its type, and a key whose value is nothing goes away.
"""

from __future__ import annotations

import argparse
import re
import shlex
import string
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from cluster_values import Values

from pipelines.config import load
from pipelines.samples import storage
from sama.errors import InputError

HERE = Path(__file__).resolve().parent


def curate_commands(values: Values) -> list[list[str]]:
    """The verbs of the curation job, in order."""
    datasets = [word for d in values.curate.datasets for word in ("--dataset", d)]
    return [
        ["sama", "curate", values.paths.data, *datasets],
        ["sama", "select", values.paths.data, "--name", values.curate.selection, "--rules", values.curate.rules],
    ]


def train_commands(values: Values, tracking_uri: str | None) -> list[list[str]]:
    """One `sama train` per settings file, sized for the cluster."""
    sizes = [
        f"train.workers={values.train.nodes * values.train.gpus_per_node}",
        "train.gpus_per_worker=1",
        f"train.cpus_per_worker={values.train.cpus_per_worker}",
    ]
    tracking = [f"tracking.uri={tracking_uri}"] if tracking_uri else []
    overrides = [word for o in [*sizes, *tracking, *values.train.overrides] for word in ("--set", o)]
    return [["sama", "train", settings, *overrides] for settings in values.train.settings]


def render(values: Values) -> dict[str, str]:
    """File name -> text of every manifest."""
    facts = {**values.model_dump(mode="json"), "run": _derived(values)}
    head = "# Made by cluster/render.py; change the values file and render again.\n"
    out = {}
    for name in ("curate.rayjob.yaml", "train.rayjob.yaml", "mlflow.yaml"):
        out[name] = head + _fill_yaml((HERE / "templates" / name).read_text(), facts)
    out["Dockerfile"] = head + _fill_text((HERE / "templates" / "Dockerfile").read_text(), facts)
    sbatch = (HERE / "templates" / "sbatch").read_text()
    for job in ("curate", "train"):
        out[f"{job}.sbatch"] = _fill_text(sbatch, {**facts, "run": {**facts["run"], **_slurm(values, job)}})
    return out


def _derived(values: Values) -> dict[str, Any]:
    mlflow = f"{values.name}-mlflow"
    service = f"{mlflow}.{values.namespace}.svc"
    uri = f"http://{service}:{values.mlflow.port}"
    hosts = [
        f"{h}:{values.mlflow.port}" for h in (mlflow, service, f"{service}.cluster.local", "localhost", "127.0.0.1")
    ]
    queue = {"kueue.x-k8s.io/queue-name": values.job.queue} if values.job.queue else {}
    hours = values.job.deadline_hours
    return {
        "image": f"{values.image.repository}:{values.image.tag}",
        "pull_secrets": [{"name": values.image.pull_secret}] if values.image.pull_secret else None,
        "env": [{"name": k, "value": v} for k, v in _environment(values).items()],
        "curate_script": _script(curate_commands(values)),
        "train_script": _script(train_commands(values, uri)),
        "curate_name": f"{values.name}-curate",
        "train_name": f"{values.name}-train",
        "curate_labels": {**_labels(values, "curate"), **queue},
        "train_labels": {**_labels(values, "train"), **queue},
        "suspend": True if values.job.queue else None,
        "ttl_seconds": values.job.ttl_minutes * 60,
        "deadline_seconds": int(hours * 3600) if hours else None,
        "mlflow_name": mlflow,
        "mlflow_labels": _labels(values, "mlflow"),
        "mlflow_hosts": ",".join([*hosts, *values.mlflow.allowed_hosts]),
    }


def _slurm(values: Values, job: str) -> dict[str, Any]:
    train = job == "train"
    commands = train_commands(values, values.slurm.mlflow_uri) if train else curate_commands(values)
    cpus = values.train.cpus_per_node if train else values.slurm.curate_cpus
    lines = [f"#SBATCH --gpus-per-node={values.train.gpus_per_node}"] if train else []
    lines += [f"#SBATCH --account={values.slurm.account}"] if values.slurm.account else []
    lines += [f"#SBATCH --partition={values.slurm.partition}"] if values.slurm.partition else []
    # the entry command runs on the first node only; RAY_ADDRESS makes it join what symmetric-run started
    script = f'export RAY_ADDRESS="$SAMA_RAY"; {" && ".join(shlex.join(c) for c in commands)} && touch "$SAMA_DONE"'
    return {
        "slurm_name": f"{values.name}-{job}",
        "slurm_nodes": values.train.nodes if train else values.slurm.curate_nodes,
        "slurm_cpus": cpus,
        "slurm_lines": "\n".join(lines),
        "slurm_setup": "\n".join(values.slurm.setup),
        "slurm_env": "\n".join(f"export {k}={shlex.quote(v)}" for k, v in _environment(values).items()),
        "slurm_ray": f"--num-cpus {cpus}" + (f" --num-gpus {values.train.gpus_per_node}" if train else ""),
        "slurm_script": shlex.quote(script),
    }


def _environment(values: Values) -> dict[str, str]:
    """Telemetry stays off unless the operator turns it on in `env`."""
    return {
        "RAY_USAGE_STATS_ENABLED": "0",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_CACHE": values.paths.hub_cache,
        **values.env,
    }


def _labels(values: Values, part: str) -> dict[str, str]:
    return {"app.kubernetes.io/name": values.name, "app.kubernetes.io/component": part}


def _script(commands: list[list[str]]) -> str:
    return "\n".join(["#!/bin/bash", "set -euo pipefail", *(shlex.join(c) for c in commands)]) + "\n"


class _Template(string.Template):
    idpattern = r"(?!)"  # a shell's $name stays as it is
    braceidpattern = r"[a-z][a-z0-9_]*(?:\.[a-z][a-z0-9_]*)*"


class _Lookup(dict):
    def __missing__(self, name: str) -> Any:
        node: Any = self["."]
        for part in name.split("."):
            node = node[part]  # a template that names an unknown value is our mistake: KeyError
        return node


def _fill_text(template: str, facts: dict) -> str:
    # safe_substitute leaves "$(…)" and "$NAME" of shell alone; a `${a.b}` must be known
    missing = [n for n in re.findall(r"\$\{([a-z][a-z0-9_.]*)\}", template) if not _known(n, facts)]
    if missing:
        raise KeyError(missing[0])
    text = _Template(template).safe_substitute(_Lookup({".": facts}))
    return re.sub(r"\n{3,}", "\n\n", text)


def _known(name: str, facts: dict) -> bool:
    node: Any = facts
    for part in name.split("."):
        if not isinstance(node, dict) or part not in node:
            return False
        node = node[part]
    return True


def _fill_yaml(template: str, facts: dict) -> str:
    lookup = _Lookup({".": facts})
    documents = [_fill(d, lookup) for d in yaml.safe_load_all(template)]
    comment = "".join(line + "\n" for line in template.splitlines() if line.startswith("# "))
    body = yaml.dump_all(documents, Dumper=_Plain, sort_keys=False, width=110, default_flow_style=False)
    return comment + body


def _fill(node: Any, lookup: _Lookup) -> Any:
    if isinstance(node, dict):
        filled = {_fill(k, lookup): (v, _fill(v, lookup)) for k, v in node.items()}
        # an optional value that is not set leaves no key behind; what the template itself leaves empty stays
        return {k: new for k, (old, new) in filled.items() if new or new == 0 or old == new}
    if isinstance(node, list):
        return [_fill(v, lookup) for v in node]
    if not isinstance(node, str):
        return node
    whole = re.fullmatch(r"\$\{([a-z0-9_.]+)\}", node)
    return lookup[whole.group(1)] if whole else _Template(node).substitute(lookup)


class _Plain(yaml.SafeDumper):
    """No aliases, and scripts as readable blocks."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: _Plain, value: str) -> yaml.Node:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


_Plain.add_representer(str, _text)


def write(values: Values, folder: str) -> list[str]:
    """Render into a folder; the files written."""
    written = []
    for name, text in render(values).items():
        uri = storage.join(folder, name)
        storage.write_bytes(uri, text)
        written.append(uri)
    return written


def main(arguments: list[str] | None = None, say: Callable[[str], None] = print) -> int:
    parser = argparse.ArgumentParser(prog="cluster/render.py", description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--values", default=str(HERE / "values.yaml"), help="default: cluster/values.yaml")
    parser.add_argument("--out", default=str(HERE / "rendered"), help="default: cluster/rendered")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="change one value")
    given = parser.parse_args(arguments)
    try:
        for uri in write(load(Values, given.values, given.set), given.out):
            say(uri)
    except InputError as error:
        print(f"cluster/render.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
