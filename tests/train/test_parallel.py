"""Every combination of parallelism gives the gradients of one process: real processes, pairwise over all settings."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipelines.planner.layout import check_heads, check_layout
from pipelines.train.parallel_batch import divide
from pipelines.train.parallel_sequence import shares
from sama.errors import InputError
from tests.train import parallel_ranks
from tests.train.parallel_ranks import Case

EXACT = 1e-5  # float32: rounding of sums in another order
HALF = 0.02  # bfloat16 has 8 bits; of the whole gradient, as the L1 loss turns single signs when it is rounded


def spawn(ranks: int, module: str, *arguments: str) -> list[str]:
    """Run a module of these tests in several processes; their output."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", f"tests.train.{module}", *arguments]
    root = str(Path(__file__).parents[2])
    started = [
        subprocess.Popen(
            [*command, str(r), str(ranks), port], cwd=root, env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for r in range(ranks)
    ]  # fmt: skip
    outs = [p.communicate(timeout=500) for p in started]
    assert [p.returncode for p in started] == [0] * ranks, "\n".join(err[-3000:] for _, err in outs)
    return [out for out, _ in outs]


def relative(found: torch.Tensor, want: torch.Tensor) -> float:
    return float((found.double() - want.double()).norm() / want.double().norm().clamp_min(1e-30))


def flat(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([tensors[n].double().flatten() for n in sorted(tensors)])


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 4])
def test_every_combination_gives_the_gradients_of_one_process(ranks: int, tmp_path: Path) -> None:
    exact = [c for c in parallel_ranks.pairwise() if c.world == ranks]
    cases = exact + [dataclasses.replace(c, precision="bfloat16") for c in exact if not c.compiled]
    (tmp_path / "cases.json").write_text(json.dumps([dataclasses.asdict(c) for c in cases]))
    out = spawn(ranks, "parallel_ranks", str(tmp_path / "cases.json"), str(tmp_path))[0]
    rows = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    assert len(rows) == len(cases)
    wrong = []
    for number, (case, row) in enumerate(zip(cases, rows, strict=True)):
        half = case.precision == "bfloat16"
        loss, want = parallel_ranks.expected(case, torch.float64 if half else torch.float32)
        found = load_file(str(tmp_path / f"{ranks}-{number}.safetensors"))
        assert set(found) == set(want), case
        errors = {n: relative(found[n], want[n]) for n in want}
        whole, reference = flat(found), flat(want)
        errors = {"all": relative(whole, reference)} if half else errors
        errors |= {"loss": abs(row["loss"] / loss - 1), "norm": abs(row["norm"] / float(reference.norm()) - 1)}
        worst = max(errors, key=lambda n: errors[n])
        print(f"{errors[worst]:.1e} {worst}: {case}")
        if not errors[worst] <= (HALF if half else EXACT):
            wrong.append((case, worst, errors[worst]))
    assert not wrong, "\n".join(map(str, wrong))


def test_the_cases_hold_every_possible_pair() -> None:
    cases = parallel_ranks.pairwise()
    assert len(cases) < 40
    assert len(cases) == len(set(cases))
    held = {(a, b) for c in cases for a, b in parallel_ranks._pairs(c)}
    for sequence in (1, 2, 4):
        for recompute in ("none", "block", "selective"):
            assert (("sequence", sequence), ("recompute", recompute)) in held
    assert all(isinstance(c, Case) and c.possible for c in cases)


def test_a_sequence_group_reads_once_and_shares_the_encoding() -> None:
    """See sequence_ranks.py for what is checked on each process."""
    spawn(4, "sequence_ranks")


@pytest.mark.parametrize("heads", [12, 24, 40])
def test_a_degree_must_divide_the_heads(heads: int) -> None:
    for degree in range(1, heads + 2):
        if heads % degree:
            with pytest.raises(
                InputError, match=rf"= {degree} does not divide .* {heads} attention heads; possible are 1"
            ):
                check_heads(heads, degree)
        else:
            check_heads(heads, degree)


def test_workers_that_do_not_divide_are_refused_with_what_would() -> None:
    check_layout(8, 2, 2)
    with pytest.raises(InputError, match=r"6 training workers .* = 4; possible are 1, 2, 3, 6"):
        check_layout(6, 1, 4)
    with pytest.raises(
        InputError, match=r"hsdp_replicas = 4 does not divide the 6 data ranks; possible are 1, 2, 3, 6"
    ):
        check_layout(12, 4, 2)


def test_shares_are_even_and_complete() -> None:
    tokens = 65_585  # 480x832x81 with its source and one anchor
    for members in (1, 2, 3, 4, 8):
        found = shares(tokens, members)
        assert sum(found) == tokens
        assert max(found) - min(found) <= 1


def test_work_is_divided_by_cost() -> None:
    assert divide([(10.0, 1), (10.0, 1), (1.0, 1), (1.0, 1)], 2) == [[1], [0], [1], [0]]
    assert sorted(divide([(1.0, 4)], 4)[0]) == [0, 1, 2, 3]
