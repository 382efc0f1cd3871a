"""Samples that do not decode: each is an event of the run, and too many are its end."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipelines.loading import StorageError, read, rows
from pipelines.mixture import BatchPlan, load_mixture
from pipelines.train import parallel
from pipelines.train.callbacks import Book, Checkpoints, Substitutes
from pipelines.train.local import train_here
from pipelines.train.loop import train
from pipelines.train.records import read_events
from tests.mixture.roots import write_media_root
from tests.train import runs, toy_ranks


def events(run: object) -> list[tuple[int, str]]:
    return [(e["step"], e["message"]) for e in read_events(str(run)) if e["kind"] == "substitute"]


def test_every_substitute_is_an_event(tmp_path: Path) -> None:
    counts = {"pictures": ("image_edit", 8), "clips": ("text_to_video", 8)}
    data = write_media_root(tmp_path / "data", counts, 8, (runs.SIDE, runs.SIDE), broken=["clips-1", "clips-2"])
    mixture = runs.mixture(tmp_path, "broken", 6)
    settings = runs.settings(tmp_path, "run", mixture, data)
    train_here(settings)
    plan = BatchPlan.from_mixture(load_mixture(mixture), data)
    expected = [(b.step, line) for b in read(plan, 0, 1, settings.train.micro_batch, 0, 6) for line in b.substituted]
    assert expected
    assert events(settings.run) == expected


def test_more_than_one_in_a_thousand_over_all_ranks_end_the_run(tmp_path: Path, monkeypatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(rows, "FATAL_FLOOR", 2)
    world = parallel.join(torch.device("cpu"))
    parts = toy_ranks.assemble(str(tmp_path), world, 8, checkpoint_every=1)
    book = Book(parts.run, 0, None, False)
    checkpoints = Checkpoints(book, {"preset": "toy"}, None, parts)
    broken = (
        replace(b, substituted=[f"{b.step} {b.seeds[0]}"] if b.micro == 0 and b.step % 2 == 0 else [])
        for b in toy_ranks.batches(world, 0, 8)
    )
    with pytest.raises(StorageError, match="3 of 25 samples did not decode"):
        train(parts, broken, [book, Substitutes(parts), checkpoints])
    checkpoints.close()
    assert [step for step, _ in events(tmp_path)] == [0, 2, 4]
    saved = {int(p.name.removeprefix("step-")) for p in (tmp_path / "checkpoints").iterdir()}
    assert max(saved) == 4  # nothing is saved of the step that was too much
