"""`sama curate --dry-run`: what a judge would be asked, per dataset and prompt, with nothing sent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.curate import ask_plan
from pipelines.curate.ask_plan import AskPlan
from pipelines.curate.curate import readable
from pipelines.curate.reasons import numbers, words
from pipelines.curate.stage import ASK_COLUMNS
from pipelines.curate.verdicts import signals_of
from pipelines.judge.cost import Cost, cost_of, hours_of, price_of
from pipelines.judge.prompts import caption_prompt
from pipelines.judge.protocol import PATCH, frame_size, prompts_for
from pipelines.judge.settings import JudgeSettings
from pipelines.samples.index import datasets_of, read_index


@dataclass(frozen=True)
class Line:
    """The cost of one prompt about one dataset for one judge."""

    dataset: str
    model: str
    cost: Cost
    hours: float | None
    price: float | None


def dry_run(
    root: str, plan: AskPlan, datasets: Sequence[str] | None = None, sample: int | None = None
) -> tuple[list[Line], int]:
    """The lines, and how many of the samples have no signals yet (they are counted as if they survived them).

    Samples with some of their answers count in full. Sends nothing, starts nothing, writes nothing.
    """
    index = ask_plan.chosen(read_index(root, list(datasets or datasets_of(root)), ASK_COLUMNS), sample)
    known = readable(signals_of(root))
    todo = ask_plan.todo(root, index, known, plan)
    todo = todo.filter(todo["ask"])
    seen = pc.is_in(todo["sample_digest"], value_set=known["sample_digest"].combine_chunks())
    lines = []
    codes, names = words(todo["dataset"])
    for code, name in sorted(enumerate(names), key=lambda pair: str(pair[1])):
        mine = todo.filter(pa.array(codes == code))
        for judge in plan.judges:
            for cost in _costs(mine, judge, plan.caption):
                lines.append(Line(str(name), judge.model, cost, hours_of(judge, cost), price_of(judge, cost)))
    return lines, todo.num_rows - int(pc.sum(seen).as_py() or 0)


def _costs(rows: pa.Table, judge: JudgeSettings, caption: bool) -> list[Cost]:
    kinds, names = words(rows["kind"])
    tokens, pictures = _pictures(rows, judge, [str(n) for n in names], kinds)
    letters = np.nan_to_num(numbers(pc.utf8_length(rows["instruction"])))
    if caption:
        prompt, everyone = caption_prompt(), rows.num_rows
        return [cost_of(judge, prompt, everyone, int(tokens.sum()), int(pictures.sum()), 0, False, turns=1)]
    found, orders = [], set()
    for prompt in prompts_for("video_edit"):  # images are asked some of them
        mine = np.isin(kinds, [i for i, n in enumerate(names) if n in prompt.kinds])
        if not mine.any():
            continue
        sums = (int(2 * tokens[mine].sum()), int(2 * pictures[mine].sum()), int(letters[mine].sum()))
        found.append(cost_of(judge, prompt, int(mine.sum()), *sums, prompt.order in orders))
        orders.add(prompt.order)
    return found


def _pictures(rows: pa.Table, judge: JudgeSettings, kinds: list[str], codes: np.ndarray) -> tuple[np.ndarray, ...]:
    """Visual tokens and pictures of one clip of each sample."""
    sizes = [numbers(rows[f"{s}_{d}"]) for s in ("source", "target") for d in ("height", "width")]
    height = np.where(np.isnan(sizes[0]), sizes[2], sizes[0])
    width = np.where(np.isnan(sizes[1]), sizes[3], sizes[1])
    skipped = np.nan_to_num(numbers(rows["skip_head"])) + np.nan_to_num(numbers(rows["skip_tail"]))
    left = np.fmin(numbers(rows["source_frames"]), numbers(rows["target_frames"])) - skipped
    still = np.isin(codes, [i for i, n in enumerate(kinds) if n == "image_edit"])
    frames = np.where(still, 1, np.clip(left, 1, judge.frames))
    pairs, which = np.unique(np.stack([height, width]), axis=1, return_inverse=True)
    each = [frame_size(int(h), int(w), judge.size) for h, w in pairs.T]
    tokens = np.asarray([(h // PATCH) * (w // PATCH) for h, w in each], np.int64)
    return tokens[which.reshape(-1)] * frames, frames


def table(lines: Sequence[Line], unseen: int, plan: AskPlan) -> str:
    """The lines as text, with a sum."""
    currency = plan.settings.price.currency
    rows = [["dataset", "model", "prompt", "samples", "requests", "answers", "image tokens", "text tokens", "cached",
             "output tokens", "hours", currency]]  # fmt: skip
    for line in lines:
        c = line.cost
        counts = (c.samples, c.requests, c.answers, c.image_tokens, c.text_tokens, c.cached, c.output_tokens)
        rows.append([line.dataset, line.model.split("/")[-1], c.prompt_id, *(f"{n:,}" for n in counts),
                     _number(line.hours), _number(line.price)])  # fmt: skip
    sums = [sum(getattr(line.cost, n) for line in lines) for n in (
        "requests", "answers", "image_tokens", "text_tokens", "cached", "output_tokens")]  # fmt: skip
    rows.append(["all", "", "", "", *(f"{n:,}" for n in sums), _number(_sum([line.hours for line in lines])),
                 _number(_sum([line.price for line in lines]))])  # fmt: skip
    widths = [max(len(r[i]) for r in rows) for i in range(len(rows[0]))]
    text = ["  ".join(c.ljust(w) if i < 3 else c.rjust(w) for i, (c, w) in enumerate(zip(r, widths, strict=True)))
            for r in rows]  # fmt: skip
    notes = ["at most: what stop_early and a cascade leave out is not known before; text tokens are estimated"]
    if plan.settings.price.requests_per_s is None:
        notes.append("hours: state judge.price.requests_per_s")
    if plan.settings.price.input_per_1k is None or plan.settings.price.output_per_1k is None:
        notes.append("price: state judge.price.input_per_1k and output_per_1k")
    if unseen:
        notes.append(f"{unseen} of these samples have no signals yet and are counted as if they survived them")
    return "\n".join([*text, *(f"({note})" for note in notes)])


def _sum(values: list[float | None]) -> float | None:
    return None if any(v is None for v in values) else sum(v for v in values if v is not None)


def _number(value: float | None) -> str:
    return "?" if value is None else f"{value:,.2f}"
