"""Whom a curation asks, about which samples, and what is known of them already."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.curate import select
from pipelines.curate.reasons import words
from pipelines.curate.rules import PAPER_IMAGE, PAPER_VIDEO, Rules
from pipelines.curate.verdicts import join
from pipelines.judge import protocol
from pipelines.judge.protocol import Known
from pipelines.judge.settings import JudgeSettings
from pipelines.samples import blocklist, storage, tables

EDITS = ("video_edit", "image_edit")


@dataclass(frozen=True)
class AskPlan:
    """What the workers need to know. `rules` decide on signals who is asked about at all; their judge's thresholds,
    or the paper's, decide when a judge has seen enough."""

    settings: JudgeSettings
    rules: Rules
    caption: bool = False

    @property
    def judges(self) -> list[JudgeSettings]:
        """The judges in order; captions are asked of the last, which is the large one of a cascade."""
        found = self.settings.judges()
        return found[-1:] if self.caption else found

    @property
    def table(self) -> str:
        """Where the answers go."""
        return "captions" if self.caption else "judgements"

    @property
    def ids(self) -> list[str]:
        return [protocol.judge_id(judge, self.caption) for judge in self.judges]

    def thresholds(self, kind: str) -> dict[str, float]:
        """The least mean score by name."""
        judge = self.rules.judge
        if kind == "image_edit":
            return dict(judge.image if judge else PAPER_IMAGE)
        return dict(judge.video if judge else PAPER_VIDEO)

    def survivors(self, index: pa.Table, signals: pa.Table) -> np.ndarray:
        """Rows that the rules' signal thresholds keep. signals: a row for each of `index`, null where there is none."""
        decided = select.decide_on(index, signals, signals_only(self.rules), tables.BLOCKLIST.empty_table())
        codes, names = words(decided["decision"])
        return codes == (names.index("kept") if "kept" in names else -2)

    def concerns(self, index: pa.Table) -> np.ndarray:
        """Rows that this asks about: edits for a judge, clips without a caption for a captioner."""
        codes, names = words(index["kind"])
        if not self.caption:
            return np.isin(codes, [i for i, n in enumerate(names) if n in EDITS])
        empty = pc.equal(pc.utf8_trim_whitespace(pc.fill_null(index["caption"], "")), "")
        return np.isin(codes, [i for i, n in enumerate(names) if n == "text_to_video"]) & np.asarray(empty)


def todo(root: str, index: pa.Table, signals: pa.Table, plan: AskPlan, retry: bool = True) -> pa.Table:
    """`index` with the columns ask (bool) and answered (string, the answers so far as JSON).

    signals: what is known, one row a digest. A row without signals is asked about if it survives them, which is seen
    when it is looked at. Rows that share a digest are asked about once, rows on the blocklist never.
    """
    key = "target_sha256" if plan.caption else "sample_digest"
    ask = plan.concerns(index) & ~select.blocked(index, blocklist.with_relatives(root))
    known = join(index["sample_digest"], signals)
    seen = known["status"].is_valid().to_numpy()
    ask &= ~seen | plan.survivors(index, known)
    answered: list[str | None] = [None] * index.num_rows
    if plan.caption:
        ask &= ~_captioned(root, index, plan.ids)
    else:
        places = _first(index, key, ask)
        kinds = index["kind"].cast(pa.string()).to_pylist() if places else []
        done = set()
        for digest, answers in _groups(root, plan.ids):
            place = places.get(digest)
            if place is None:
                continue
            if protocol.finished(kinds[place], plan.ids, plan.judges, plan.thresholds(kinds[place]), answers):
                done.add(digest)
            else:
                answered[place] = protocol.answers_to_json(answers)
        if done:
            ask &= ~np.asarray(pc.is_in(index[key], value_set=pa.array(sorted(done), tables.DIGEST)))
    once = np.zeros(index.num_rows, bool)
    once[list(_first(index, key, ask).values())] = True
    index = index.append_column("ask", pa.array(once))
    return index.append_column("answered", pa.array(answered, pa.string()))


def _first(index: pa.Table, key: str, mask: np.ndarray) -> dict[bytes, int]:
    """The place of the first row of each digest under the mask."""
    rows = np.flatnonzero(mask)[::-1]
    return dict(zip(index[key].take(pa.array(rows)).to_pylist(), rows.tolist(), strict=True))


def _captioned(root: str, index: pa.Table, ids: list[str]) -> np.ndarray:
    columns = ["target_sha256", "captioner_id", "status"]
    table = storage.read_parts(storage.join(root, "captions"), tables.CAPTIONS, columns)
    final = pc.is_in(table["status"].cast(pa.string()), value_set=pa.array(protocol.FINAL))
    mine = pc.is_in(table["captioner_id"].cast(pa.string()), value_set=pa.array(ids))
    done = table.filter(pc.and_(final, mine))["target_sha256"].combine_chunks()
    return np.asarray(pc.is_in(index["target_sha256"], value_set=done))


def _groups(root: str, ids: list[str]) -> Iterator[tuple[bytes, protocol.Answers]]:
    """(sample digest, answers of these judges) for every sample with a final answer or a recorded skip."""
    columns = ["sample_digest", "judge_id", "prompt_id", "turn", "status", *tables.SCORES]
    table = storage.read_parts(storage.join(root, "judgements"), tables.JUDGEMENTS, columns)
    stays = pc.is_in(table["status"].cast(pa.string()), value_set=pa.array([*protocol.FINAL, "skipped"]))
    mine = pc.is_in(table["judge_id"].cast(pa.string()), value_set=pa.array(ids))
    table = table.filter(pc.and_(stays, mine))
    table = table.take(pc.sort_indices(table, [("sample_digest", "ascending")]))
    digest, answers = b"", protocol.Answers()
    for batch in table.to_batches(max_chunksize=1 << 16):
        for row in batch.to_pylist():
            if row["sample_digest"] != digest:
                if answers:
                    yield digest, answers
                digest, answers = row["sample_digest"], {}
            place = (row["judge_id"], row["prompt_id"], row["turn"])
            if row["status"] == "skipped" and place in answers:
                continue  # asked after all, under other thresholds
            scores = {s: row[s] for s in tables.SCORES if row[s] is not None}
            answers[place] = Known(row["status"], scores)
    if answers:
        yield digest, answers


def chosen(index: pa.Table, count: int | None) -> pa.Table:
    """The rows of a first look: those with the `count` smallest digests, so always the same and spread like dice."""
    if count is None or count >= index.num_rows:
        return index
    digests = index["sample_digest"].combine_chunks()
    heads = np.asarray([int.from_bytes(d[:8], "big") for d in digests.to_pylist()], np.uint64)
    rows = np.sort(np.argsort(heads, kind="stable")[:count])
    return index.take(pa.array(rows))


def signals_only(rules: Rules) -> Rules:
    """The rules without thresholds on scores that a judge, or anybody else, has yet to give."""

    def plain(tree: dict[str, Any]) -> dict[str, Any]:
        known = {n: b for n, b in tree.get("thresholds", {}).items() if n in tables.SIGNALS.names}
        return {n: v for n, v in tree.items() if n not in ("joined", "thresholds")} | {"thresholds": known}

    changes: dict[str, Any] = {kind: plain(getattr(rules, kind).model_dump()) for kind in tables.KINDS}
    changes["datasets"] = {name: plain(tree) for name, tree in rules.datasets.items()}
    for name, tree in changes["datasets"].items():
        if "thresholds" not in rules.datasets[name]:
            del tree["thresholds"]
    return Rules.model_validate({**rules.model_dump(by_alias=True), **changes, "judge": None})


def settings_of(plan: AskPlan) -> dict[str, Any]:
    """For the provenance: everything but keys, which are not in the settings."""
    return {"judge": plan.settings.model_dump(mode="json"), "rules": plan.rules.model_dump(mode="json", by_alias=True)}
