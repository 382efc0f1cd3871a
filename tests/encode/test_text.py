"""Text sources give the same numbers, and say clearly what they miss."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.config import Settings, TextSettings
from pipelines.encode import prompts, store, text_job
from pipelines.encode.preflight import check
from pipelines.encode.text import Announcer, CachedText, LiveText, source_of
from pipelines.mixture import BatchPlan
from sama.encoders import Encoders
from sama.errors import InputError

TEXTS = ["[Video edit] Make the ring blue.", "", "  Remove   the square. ", "word " * 300]


@pytest.fixture
def filled(tmp_path: Path, tiny: Encoders) -> str:
    folder = str(tmp_path / "text")
    store.fix(folder, text_job.facts(tiny))
    keys = [prompts.text_key(t, tiny.digest_of("text")) for t in TEXTS]
    store.write(folder, "a", keys, text_job.encode_all(tiny, TEXTS))
    return str(tmp_path)


def test_cached_is_live_but_for_rounding(filled: str, tiny: Encoders) -> None:
    other = Encoders.from_preset("tiny")
    cached, live = CachedText(filled, other), LiveText(tiny)
    found, wanted = cached(TEXTS[::-1]), live(TEXTS[::-1])
    assert found.shape == wanted.shape
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, wanted, rtol=2**-8, atol=1e-5)
    assert torch.equal(found == 0, wanted == 0)
    assert "text_encoder" not in other.__dict__  # neither loaded nor its tokenizer
    assert "tokenizer" not in other.__dict__
    # each entry is exactly the live one, rounded; alone and in a batch differ by less
    alone = live(TEXTS[:1]).to(torch.bfloat16).float()
    torch.testing.assert_close(cached(TEXTS[:1]), alone, rtol=2**-8, atol=0)


def test_entries_have_their_own_length(filled: str, tiny: Encoders) -> None:
    held = store.Store(f"{filled}/text")
    assert held.nbytes == sum(tiny.text_lengths(TEXTS)) * tiny.preset.text_dim * 2
    assert tiny.text_lengths(TEXTS)[-1] == tiny.preset.text_max_length


def test_a_missing_prompt_is_named_with_the_command(filled: str, tiny: Encoders) -> None:
    with pytest.raises(InputError, match=r"no embeddings of the prompt 'Turn it' and 1 others: run `sama encode"):
        CachedText(filled, tiny)([TEXTS[0], "Turn it", "upside down"])


def test_another_encoder_is_refused(filled: str, tiny: Encoders, tmp_path: Path) -> None:
    tiny.tokenizer.save_pretrained(tmp_path / "changed")
    with pytest.raises(InputError, match="another text encoder"):
        CachedText(filled, Encoders.from_preset("tiny", sources={"tokenizer": str(tmp_path / "changed")}))
    tiny.vae.save_pretrained(tmp_path / "vae")  # another VAE is no other text encoder
    CachedText(filled, Encoders.from_preset("tiny", sources={"vae": str(tmp_path / "vae")}))
    with pytest.raises(InputError, match="holds no text embeddings: run"):
        CachedText(str(tmp_path / "none"), tiny)


def test_a_cache_may_be_of_another_precision_than_training(filled: str, tiny: Encoders) -> None:
    half = Encoders.from_preset("tiny", dtype=torch.bfloat16)
    found = CachedText(filled, half)(TEXTS[:2])
    assert found.dtype == torch.bfloat16
    assert torch.equal(found.float(), CachedText(filled, tiny)(TEXTS[:2]))


def test_what_is_announced_is_read_ahead_and_bounded(filled: str, tiny: Encoders) -> None:
    from concurrent.futures import ThreadPoolExecutor

    source = CachedText(filled, tiny)
    source._pool = ThreadPoolExecutor(1)  # as for an object store
    for i in range(30):
        source.announce([TEXTS[0]] * (i + 1))
    assert len(source._coming._waiting) == 8
    assert torch.equal(source([TEXTS[0]] * 3)[2], source([TEXTS[0]])[0])
    assert len(source._coming._waiting) == 6

    class Batch:
        prompts = TEXTS[:2]

    ahead = Announcer()
    assert [b.prompts for b in ahead.watch(iter([Batch()]))] == [TEXTS[:2]]  # before there is a source
    ahead.source = source
    list(ahead.watch(iter([Batch()])))
    assert tuple(TEXTS[:2]) in source._coming._waiting


def test_offload_and_sharding_change_nothing(tiny: Encoders) -> None:
    wanted = LiveText(tiny)(TEXTS)
    assert torch.equal(LiveText(Encoders.from_preset("tiny"), offload=True)(TEXTS), wanted)


def test_settings_that_do_not_fit() -> None:
    for wrong, why in (
        ({"mode": "cached"}, "needs text.cache"),
        ({"mode": "actors", "offload": True}, "belong to mode live"),
        ({"offload": True, "sharded": True}, "exclude each other"),
    ):
        with pytest.raises(ValueError, match=why):
            TextSettings.model_validate(wrong)
    with pytest.raises(InputError, match="works on Ray only"):
        source_of(TextSettings(mode="actors"), Encoders.from_preset("tiny"))


def test_the_check_before_training(
    filled: str, tiny: Encoders, small_plan: BatchPlan, encode_data: str, encode_mixture: str, tmp_path: Path
) -> None:
    told = {"run": "r", "data": encode_data, "mixture": encode_mixture, "preset": "tiny"}
    settings = Settings.model_validate({**told, "text": {"mode": "cached", "cache": filled}})
    with pytest.raises(InputError, match="no embeddings of the prompt"):
        check(settings, small_plan)
    wanted = prompts.collect(small_plan, tiny.digest_of("text"))
    texts = prompts.at(small_plan, wanted.rows, wanted.tasks)
    store.write(f"{filled}/text", "b", wanted.keys.tolist(), text_job.encode_all(tiny, texts))
    check(settings, small_plan)
    with pytest.raises(InputError, match="holds no latents: run"):
        check(
            settings.model_copy(update={"latents": settings.latents.model_copy(update={"cache": filled})}), small_plan
        )
    assert np.isin(wanted.keys, store.Store(f"{filled}/text").keys).all()
