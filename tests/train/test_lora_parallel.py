"""LoRA under sharding, sequence parallelism, recomputation and compilation: the gradients of one process."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from safetensors.torch import load_file

from sama.lora import is_adapter
from tests.train import lora_ranks, parallel_ranks
from tests.train.parallel_ranks import Case
from tests.train.test_parallel import EXACT, flat, relative, spawn

CASES = [
    Case(2, 2, 1, "none", False, source=True, semantic=True, slots=3, micro_batch=1),
    Case(2, 2, 1, "selective", True, source=True, semantic=True, slots=3, micro_batch=2),
    Case(2, 2, 1, "block", False, source=True, semantic=False, slots=2, micro_batch=2),
    Case(2, 1, 1, "block", False, source=False, semantic=True, slots=3, micro_batch=1),
    Case(2, 1, 2, "none", False, source=True, semantic=True, slots=3, micro_batch=1),
]


def test_adapters_get_the_gradients_of_one_process(tmp_path: Path) -> None:
    (tmp_path / "cases.json").write_text(json.dumps([dataclasses.asdict(c) for c in CASES]))
    out = spawn(2, "lora_ranks", str(tmp_path / "cases.json"), str(tmp_path))[0]
    rows = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    for number, (case, row) in enumerate(zip(CASES, rows, strict=True)):
        loss, want = lora_ranks.run(parallel_ranks.expected, case)
        found = load_file(str(tmp_path / f"2-{number}.safetensors"))
        assert set(found) == set(want), case
        assert any(is_adapter(n) for n in want)
        assert not any("base_layer" in n for n in want)  # the backbone stands still
        for name in want:
            assert want[name].any(), name
            assert relative(found[name], want[name]) < EXACT, (case, name)
        assert abs(row["loss"] / loss - 1) < EXACT
        assert abs(row["norm"] / float(flat(want).norm()) - 1) < EXACT
