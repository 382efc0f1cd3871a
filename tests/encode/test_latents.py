"""Clean latents from a cache are those that training would encode."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.config import MicroBatch as Sizes
from pipelines.encode import latent_job, latents, store
from pipelines.encode.latents import Clean, LatentCache
from pipelines.loading import build_row
from pipelines.mixture import BatchPlan, Mixture
from pipelines.train.encode import BatchEncoder
from sama.encoders import Encoders
from sama.errors import InputError
from sama.video import Bucket

CPU = torch.device("cpu")


@pytest.fixture
def filled(tmp_path: Path, tiny: Encoders, small_plan: BatchPlan) -> str:
    """The entries of all rows of the plan but every fifth."""
    folder = str(tmp_path / "latents")
    store.fix(folder, latents.facts(tiny, 1))
    who = latents.identity(tiny, 1)
    rows = [r for r in range(sum(g.size for g in small_plan.groups)) if r % 5]
    batches = [latent_job.read_clean(small_plan, r) for r in rows]
    keys = latents.keys_of([b.windows[0] for b in batches], who)
    assert np.array_equal(keys, latents.keys_at(small_plan, np.asarray(rows), who))
    values = [latents.pack(latent_job.encode_clean(tiny, b, 1)) for b in batches]
    assert [len(v) for v in values] == latents.row_bytes(small_plan, tiny.preset, 1)[rows].tolist()
    store.write(folder, "a", keys.tolist(), values)
    return str(tmp_path)


def test_batches_are_the_same_but_for_rounding(filled: str, tiny: Encoders, small_plan: BatchPlan) -> None:
    live = BatchEncoder(tiny, 1, CPU)
    cached = BatchEncoder(tiny, 1, CPU, latents=LatentCache(filled, tiny, 1))
    calls: list[int] = []
    encode = tiny.encode_video
    seen: set[str] = set()
    for step in range(small_plan.steps):
        batch = build_row(small_plan, step, 0, 0, 1, Sizes(image=3, video=3))
        batch.drop_source[0] = step == 1
        seen |= set(batch.tasks)
        wanted = live(batch)
        tiny.encode_video = lambda frames: calls.append(len(frames)) or encode(frames)  # type: ignore[method-assign]
        try:
            found = cached(batch)
        finally:
            del tiny.encode_video  # type: ignore[method-assign]
        for name in ("latents", "source_latents", "semantic"):
            torch.testing.assert_close(getattr(found, name), getattr(wanted, name), rtol=2**-9, atol=2e-3)
        assert torch.equal(found.text_embeds, wanted.text_embeds)
    assert seen == {"edit", "none", "speed"}
    perturbed = sum(t == "speed" for s in range(small_plan.steps) for t in tasks(small_plan, s))
    assert perturbed <= sum(calls) < 3 * small_plan.steps  # perturbed sources are live, most of the rest is not


def tasks(plan: BatchPlan, step: int) -> list[str]:
    return [s.task for s in plan[step].slots]


def test_an_untouched_source_is_its_target(tiny: Encoders, small_plan: BatchPlan) -> None:
    batch = next(
        b
        for b in (build_row(small_plan, s, 0, 0, 1, Sizes(image=3, video=3)) for s in range(small_plan.steps))
        if "none" in b.tasks
    )
    encoded = BatchEncoder(tiny, 1, CPU)(batch)
    at = batch.tasks.index("none")
    assert encoded.source_latents is not None
    assert torch.equal(encoded.source_latents[at], encoded.latents[at])
    torch.testing.assert_close(encoded.source_latents[at], tiny.encode_video(batch.source)[at], rtol=1e-4, atol=1e-4)


def test_entries_come_back_as_they_were(tiny: Encoders) -> None:
    bucket, draw = Bucket(5, 32, 48), torch.Generator().manual_seed(0)
    shape = tiny.preset.latent_shape(5, 32, 48)
    for own in (False, True):
        made = Clean(
            torch.randn(shape, generator=draw),
            torch.randn(shape, generator=draw) if own else None,
            torch.randn(130, 48, generator=draw),
        )
        data = np.frombuffer(latents.pack(made), np.uint8)
        back = latents.unpack(data, tiny.preset, bucket, 2)
        assert (back.source is not None) == own
        for name in ("target", "semantic", *(["source"] if own else [])):
            torch.testing.assert_close(getattr(back, name), getattr(made, name), rtol=2**-10, atol=1e-6)
        with pytest.raises(ValueError, match="does not hold latents"):
            latents.unpack(data[:-2], tiny.preset, bucket, 2)


def test_other_encoders_and_other_windows_are_refused(filled: str, tiny: Encoders, small_plan: BatchPlan) -> None:
    with pytest.raises(InputError, match="was made with anchors 1, training has 2"):
        LatentCache(filled, tiny, 2)
    how = small_plan.mixture.model_dump()
    how["streams"]["video"]["window"] = "random"
    with pytest.raises(InputError, match="one window per sample"):
        latents.check(Mixture.model_validate(how))
    latents.check(small_plan.mixture)
    share = LatentCache(filled, tiny, 1).has_rows(small_plan, np.arange(10))
    assert share.tolist() == [bool(r % 5) for r in range(10)]
