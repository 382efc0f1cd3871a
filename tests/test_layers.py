"""Imports point one way: the method knows nothing of the pipelines, and each room only what lies below it."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

# from the bottom up; a module may import what stands on its own line or above it in this list
FLOORS: list[tuple[str, ...]] = [
    ("sama",),
    ("pipelines.config", "pipelines.samples", "pipelines.progress", "pipelines.recipes", "pipelines.cluster_session"),
    (
        "pipelines.judge",
        "pipelines.tracking",
        "pipelines.tracking_registry",
        "pipelines.tracking_stage",
        "pipelines.tracking_store",
        "pipelines.planner",
    ),
    ("pipelines.curate", "pipelines.ingest"),
    ("pipelines.mixture",),
    ("pipelines.loading",),
    ("pipelines.encode",),
    ("pipelines.train", "pipelines.evaluate"),
    ("pipelines.edit", "pipelines.report"),
    ("pipelines.demo", "pipelines.doctor"),
    ("pipelines.cli",),
]


def floor_of(module: str) -> int:
    for i, names in enumerate(FLOORS):
        if any(module == n or module.startswith(n + ".") for n in names):
            return i
    raise AssertionError(f"{module} stands on no floor: add it to FLOORS where it belongs")


def modules(package: str) -> list[tuple[str, Path]]:
    found = []
    for file in sorted((REPOSITORY / package).rglob("*.py")):
        name = ".".join(file.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")
        found.append((name, file))
    return found


def imports_of(file: Path) -> set[str]:
    """Every absolute import in a file, also those inside functions."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative imports hide the direction"
            base = node.module or ""
            found |= {f"{base}.{a.name}" for a in node.names} | {base}
    return found


ALL = [*modules("sama"), *modules("pipelines")]


def ours(name: str) -> bool:
    known = {m for m, _ in ALL}
    return name in known and name not in ("pipelines", "sama")


def test_no_module_imports_a_higher_floor() -> None:
    wrong = []
    for name, file in ALL:
        if name == "pipelines":
            continue
        here = floor_of(name)
        wrong += [f"{name} -> {i}" for i in imports_of(file) if ours(i) and floor_of(i) > here]
    assert not wrong, wrong


def test_the_method_knows_neither_ray_nor_mlflow_nor_the_pipelines() -> None:
    for name, file in modules("sama"):
        roots = {i.split(".")[0] for i in imports_of(file)}
        assert not roots & {"ray", "mlflow", "pipelines", "cluster", "tests"}, name


def test_nothing_imports_cluster() -> None:
    assert not [n for n, f in ALL if any(i.split(".")[0] == "cluster" for i in imports_of(f))]


def test_no_two_modules_import_each_other_in_a_circle() -> None:
    graph = {name: {i for i in top_level_imports(file) if ours(i) and i != name} for name, file in ALL}
    state: dict[str, int] = {}

    def visit(node: str, path: list[str]) -> None:
        if state.get(node) == 2:
            return
        assert state.get(node) != 1, f"circle: {' -> '.join([*path, node])}"
        state[node] = 1
        for other in graph[node]:
            visit(other, [*path, node])
        state[node] = 2

    for name in graph:
        visit(name, [])


def top_level_imports(file: Path) -> set[str]:
    tree = ast.parse(file.read_text())
    found: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{a.name}" for a in node.names} | {node.module or ""}
    return found


@pytest.mark.parametrize("module", ["pipelines.cli", "sama", "pipelines.samples.storage"])
def test_starting_is_light(module: str) -> None:
    """Ray starts many processes and a person waits for --help: neither pays for torch."""
    code = (
        f"import sys, {module}\n"
        "build = getattr(sys.modules['pipelines.cli'], 'build', None) if 'pipelines.cli' in sys.modules else None\n"
        "build and build()\n"
        "heavy = {'torch', 'ray', 'mlflow', 'diffusers', 'transformers'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY)
