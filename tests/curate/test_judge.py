"""A judge in the pipeline: real clips on disk, a real server that looks at them, Ray killed in the middle."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipelines import config
from pipelines.curate import ask_command, ask_plan, dry_run, look
from pipelines.curate.ask_plan import AskPlan
from pipelines.curate.curate import curate
from pipelines.curate.frames import taps
from pipelines.curate.rules import JudgeRules, Rules
from pipelines.curate.select import read_selection, select
from pipelines.curate.stage import ASK_COLUMNS, score_chunk
from pipelines.curate.verdicts import signals_of
from pipelines.judge.settings import JudgeFile
from pipelines.samples import storage, tables
from pipelines.samples.index import read_index
from sama import video
from sama.errors import InputError
from tests.conftest import REPOSITORY
from tests.curate.samples import write_media_root
from tests.curate.test_curate import pair
from tests.judge.server import JudgeServer


def clips() -> dict[str, tuple[np.ndarray | None, np.ndarray]]:
    good, second = pair(1, "recolour"), pair(2, "replace")
    framed = second[1].copy()
    framed[:, :12] = 0
    lone = pair(9, "add")[0]
    return {
        "good": good,
        "second": second,
        "twin": (good[0], good[0]),
        "framed": (second[0], framed),
        "other": (good[0], 255 - second[1]),  # nothing of the source is left
        "lone": (None, lone),
    }


@pytest.fixture
def root(tmp_path: Path) -> str:
    return write_media_root(tmp_path / "root", clips())


LOOSE = dict.fromkeys(("min_motion_ratio", "min_structure_kept", "max_blur", "max_shot_cuts"))


def plan_for(*urls: str, caption: bool = False, **values: Any) -> AskPlan:
    tree = {"backend": "http", "model": "m", "endpoints": list(urls) or ["http://127.0.0.1:9/v1"], "frames": 4}
    judge = config.validate(JudgeFile, {"judge": {**tree, "turns": 2, "size": 96, "backoff_s": 0.05, **values}}, "t")
    rules = Rules.model_validate({"video_edit": LOOSE, "text_to_video": {"max_blur": None, "max_shot_cuts": None}})
    return AskPlan(judge.judge, rules, caption)


def judgements(root: str) -> list[dict[str, Any]]:
    return storage.read_parts(storage.join(root, "judgements"), tables.JUDGEMENTS).to_pylist()


def rows_of(root: str, plan: AskPlan) -> pa.Table:
    return ask_plan.todo(root, read_index(root, None, ASK_COLUMNS), signals_of(root), plan)


def test_the_judges_frames_come_from_the_decoding_for_the_signals(root: str, monkeypatch: pytest.MonkeyPatch):
    decoded: list[int] = []
    original = video.decode

    def counted(data: bytes, indices: Any = None, size: Any = None) -> np.ndarray:
        decoded.append(len(data))
        return original(data, indices, size)

    monkeypatch.setattr(video, "decode", counted)
    row = next(r for r in read_index(root, None, ASK_COLUMNS).to_pylist() if r["key"] == "toys-good")
    found, size = taps(row, 4, 96)
    facts = {n: row[f"target_{n}"] for n in ("height", "width", "fps", "frames")}
    from pipelines.samples.index import media_of

    data = media_of(row, "target")
    look.look(data, **facts, decode=found["target"])
    before = len(decoded)
    files = found["target"].jpegs(b"", size)
    assert len(decoded) == before  # nothing was read again
    late = taps(row, 4, 96)[0]["target"].jpegs(data, size)
    assert len(decoded) == before + 1
    assert len(files) == len(late) == 4
    for one, two in zip(files, late, strict=True):
        pictures = [original(f)[0].astype(float) for f in (one, two)]
        assert pictures[0].shape == (*size, 3)
        assert np.abs(pictures[0] - pictures[1]).mean() < 3
    assert found["target"].numbers == [0, 7, 13, 20]


def test_only_survivors_are_shown(root: str):
    plan = plan_for()
    todo = rows_of(root, plan).append_column("look", pa.array([True] * 6))
    block = score_chunk(todo, root, "run", plan).to_pylist()
    assert (block[0]["ok"], block[0]["failed"]) == (6, 0)
    assert [r["key"] for r in block[1:]] == ["toys-good", "toys-second", "toys-other"]
    assert all(len(r["source"]) == len(r["target"]) == 4 for r in block[1:])
    # looked at before: the same are asked about, without another look
    again = rows_of(root, plan)
    assert [k for k, a in zip(again["key"].to_pylist(), again["ask"].to_pylist(), strict=True) if a] == [
        "toys-good", "toys-second", "toys-other",
    ]  # fmt: skip
    again = again.filter(again["ask"]).append_column("look", pa.array([False] * 3))
    second = score_chunk(again, root, "run2", plan).to_pylist()
    assert second[0]["ok"] == 0
    assert [r["key"] for r in second[1:]] == ["toys-good", "toys-second", "toys-other"]
    captions = plan_for(caption=True)
    empty = read_index(root, None, ASK_COLUMNS)
    assert not captions.concerns(empty).any()  # the only clip has a caption
    caption = empty.column_names.index("caption")
    bare = empty.set_column(caption, "caption", pa.array([""] * 6))
    assert captions.concerns(bare).tolist() == [False] * 5 + [True]


def test_scores_yet_to_be_given_decide_nothing_here(root: str):
    tree = {"thresholds": {"visual_quality_mean": {"min": 9}, "changed_area": {"max": 0.0}}}
    rules = Rules.model_validate({"video_edit": {**LOOSE, **tree}, "judge": {"judge_id": "x"}, "datasets": {
        "toys": {"max_blur": None, "joined": {"human_score": {"min": 3}}}}})  # fmt: skip
    score_chunk(read_index(root, None, ASK_COLUMNS), root, "run")
    plan = AskPlan(plan_for().settings, rules)
    assert not any(rows_of(root, plan)["ask"].to_pylist())  # something changed in all of them
    assert ask_plan.signals_only(rules).video_edit.thresholds.keys() == {"changed_area"}
    some = AskPlan(plan.settings, rules.model_copy(update={"video_edit": plan_for().rules.video_edit}))
    assert sum(rows_of(root, some)["ask"].to_pylist()) == 3


def test_a_first_look_is_always_the_same(root: str):
    index = read_index(root, None, ASK_COLUMNS)
    few = ask_plan.chosen(index, 3)
    backwards = index.take(list(range(5, -1, -1)))
    assert few.num_rows == 3
    assert set(few["key"].to_pylist()) == set(ask_plan.chosen(backwards, 3)["key"].to_pylist())
    assert set(ask_plan.chosen(index, 2)["key"].to_pylist()) < set(few["key"].to_pylist())
    assert ask_plan.chosen(index, 99).num_rows == 6


def test_a_dry_run_counts_what_a_run_sends(root: str):
    prices = {"input_per_1k": 1.0, "output_per_1k": 10.0, "requests_per_s": 0.5, "output_tokens": 100}
    plan = plan_for(stop_early=False, price=prices)
    lines, unseen = dry_run.dry_run(root, plan)
    assert unseen == 5
    assert [(x.cost.prompt_id, x.cost.samples, x.cost.requests, x.cost.answers) for x in lines] == [
        (p, 5, 5, 10) for p in ("quality", "preservation", "motion")
    ]
    # 96 x 128 pixels become 84 x 140: 3 x 5 tokens, 4 frames of each of 2 clips, and 2 tokens around each
    assert lines[0].cost.image_tokens == 5 * 8 * (15 + 2)
    assert [x.cost.cached for x in lines] == [0, 5 * 8 * 17, 0]
    assert lines[0].price == pytest.approx(lines[0].cost.input_tokens / 1000 + 10 * 100 * 10 / 1000)
    assert lines[0].hours == pytest.approx(10 / 3600)
    text = dry_run.table(lines, unseen, plan)
    assert "5 of these samples have no signals yet" in text
    one_each = dry_run.dry_run(root, plan_for(n=False))[0]
    assert one_each[0].cost.requests == 10
    assert one_each[0].price is None
    with pytest.raises(InputError, match="needs a judge"):
        ask_command.dry_run(root, None, None, None)
    with pytest.raises(InputError, match="NO_SUCH_KEY"):
        ask_command.reachable(plan_for(api_key_env="NO_SUCH_KEY"))


def check_ledger(root: str, plan: AskPlan, turns: int = 2) -> Counter[str]:
    """Every sample that was asked about has one final row for each judge, prompt and turn."""
    final = [r for r in judgements(root) if r["status"] in ("ok", "unparseable", "refused", "skipped")]
    places = Counter((r["key"], r["judge_id"], r["prompt_id"], r["turn"]) for r in final)
    assert set(places.values()) == {1}
    assert len(places) == len({r["key"] for r in final}) * 3 * turns * len(plan.ids)
    return Counter(r["status"] for r in final)


def test_curate_asks_select_decides(root: str, ray_session: None):
    with JudgeServer(lambda number: "500" if number % 4 == 0 else "") as server:
        plan = plan_for(server.url, cascade=[{"model": "small"}, {"model": "large"}])
        counts = curate(root, chunk_rows=2, plan=plan)["toys"]
        sent = Counter(p["model"] for p in server.payloads)
        assert (counts["looked"], counts["ok"], counts["asked"]) == (6, 6, 3)
        states = check_ledger(root, plan)
        assert counts["answers"] == dict(states)
        assert sum(states.values()) == 3 * 3 * 2 * 2
        # good and second pass the small judge, other fails its first prompt and is seen by nobody after it
        assert sent == {"small": 7, "large": 6}
        assert states == {"ok": 2 * (7 + 6), "skipped": 2 * (2 + 3)}
        number = server.number
        again = curate(root, chunk_rows=2, plan=plan)["toys"]
        assert (again["looked"], again["asked"], server.number) == (0, 0, number)
        # a lower threshold asks on where the judge had stopped
        lower = JudgeRules(judge_id="x", video={"visual_quality": 1.0})
        eager = AskPlan(plan.settings, plan.rules.model_copy(update={"judge": lower}))
        assert curate(root, plan=eager)["toys"]["asked"] == 1
    small, _large = plan.ids
    chosen = plan.rules.model_copy(update={"judge": JudgeRules(judge_id=small)})
    summary = select(root, "judged", chosen)
    assert sum(summary["decisions"].values()) == 6
    decided = {
        r["key"].split("-")[1]: (r["decision"], r["reasons"]) for r in read_selection(root, "judged").to_pylist()
    }
    assert decided["good"] == ("kept", [])
    assert decided["other"][0] == "rejected"
    assert "visual_quality_low" in decided["other"][1]


def test_errors_are_asked_again_and_captions_are_kept(root: str, ray_session: None):
    with JudgeServer(lambda number: "500") as server:
        plan = plan_for(server.url, retries=0)
        assert curate(root, plan=plan)["toys"]["answers"] == {"http_error": 6}
        server.faults = lambda number: ""
        again = curate(root, plan=plan)["toys"]
        assert (again["asked"], again["looked"]) == (3, 0)
        assert "http_error" not in again["answers"]
        check_ledger(root, plan)


@pytest.mark.slow
def test_killed_in_the_middle_and_run_again(tmp_path: Path, ray_session: None):
    base = clips()
    many = {f"{n}{i}": base[n] for i in range(4) for n in ("good", "second", "other")}
    # equal pairs have equal digests: make each its own
    many = {n: (s, np.roll(t, 1 + i, axis=2)) for i, (n, (s, t)) in enumerate(many.items())}
    root = write_media_root(tmp_path / "root", many)
    with JudgeServer(latency_s=0.3, width=2) as server:
        plan = plan_for(server.url)
        code = (
            "import sys\n"
            "from pathlib import Path\n"
            "from pipelines.cluster_session import connect\n"
            "from pipelines.config import RaySettings\n"
            "connect(RaySettings(num_cpus=4, object_store_mb=200))\n"
            "from tests.curate.test_judge import curate, plan_for\n"
            "curate(sys.argv[1], chunk_rows=2, plan=plan_for(sys.argv[2]))\n"
        )
        child = subprocess.Popen(
            [sys.executable, "-c", code, root, server.url], cwd=REPOSITORY, start_new_session=True,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        )  # fmt: skip
        try:
            deadline = time.monotonic() + 180
            while not storage.list_files(storage.join(root, "judgements"), ".parquet", recursive=True):
                assert child.poll() is None, "it ended before it could be killed"
                assert time.monotonic() < deadline
                time.sleep(0.1)
        finally:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        time.sleep(1.0)  # workers of a killed driver finish what they were sent
        before = {(r["key"], r["prompt_id"], r["turn"]) for r in judgements(root)}
        assert 0 < len(before) < 12 * 3 * 2
        server.latency_s = 0.0
        counts = curate(root, chunk_rows=2, plan=plan)["toys"]
        assert counts["asked"] < 12
        states = check_ledger(root, plan)
    assert sum(states.values()) == 12 * 3 * 2
