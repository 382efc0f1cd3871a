"""What the page says about curation: every score with its threshold, borderline samples, failures, duplicates, cost."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import yaml
from pydantic import ValidationError

from pipelines.curate import by_digest
from pipelines.curate import reasons as why
from pipelines.curate.rules import KindRules, Rules
from pipelines.report import near_duplicates
from pipelines.report.near_duplicates import Near
from pipelines.samples import storage, tables
from pipelines.samples.index import rows_of, scan_index

LEVELS = 250  # a score is packed into one byte; 254: the rule does not apply, 255: not scored
SKIPS, NULL = 254, 255
PACKED = 200_000  # samples packed into the page at most; of more, evenly spaced ones speak for all
BORDERLINE = 5  # samples shown on each side of a threshold
SINGLE = {"min_structure_kept": "structure_kept", "min_motion_ratio": "motion_ratio", "max_blur": "blur_target",
          "max_black_border": "black_border", "max_shot_cuts": "shot_cuts", "max_text_similarity": "text_similarity",
          "aspect_tolerance": "aspect_error"}  # fmt: skip
REASONS = {"structure_kept": "structure_lost", "motion_ratio": "frozen_motion", "blur_target": "blurred",
           "black_border": "black_border", "shot_cuts": "shot_cut", "text_similarity": "text_unchanged",
           "aspect_error": "aspect_mismatch"}  # fmt: skip


@dataclass
class Score:
    """One score of one kind with its threshold. levels: (n,) uint8 over all packed samples, see LEVELS."""

    name: str
    kind: str
    threshold: float
    keep: str  # "min": the threshold and more is kept; "max": the threshold and less
    low: float
    high: float
    levels: np.ndarray
    reasons: frozenset[str] = frozenset()
    null_passes: bool = False


@dataclass
class Curation:
    """Everything of the sections on curation. rows: samples of the selection; packed: of them in the page."""

    rows: int = 0
    packed: int = 0
    datasets: list[str] = field(default_factory=list)
    dataset: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint8))
    other: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))  # left out for something without a slider
    scores: list[Score] = field(default_factory=list)
    borderline: list[dict[str, Any]] = field(default_factory=list)  # index rows with score, value, decision, reasons
    failures: list[tuple[str, str, str, int, str]] = field(default_factory=list)  # dataset, stage, type, count, example
    groups: list[tuple[int, int, list[str]]] = field(default_factory=list)  # source group, samples, some keys
    grouped: int = 0
    near: Near = field(default_factory=Near)
    cost: dict[str, dict[str, float]] = field(default_factory=dict)


def read(root: str, selection: str | None, chosen: pa.Table | None) -> Curation:
    """From the tables of a root. chosen: the selection's rows (key, decision, reasons, dataset, category)."""
    found = Curation(failures=_failures(root), cost=_cost(root))
    rules = _rules(root, selection)
    if chosen is None:
        return found
    found.groups, found.grouped = _groups(root, chosen)
    found.near = near_duplicates.read(root)
    found.rows = chosen.num_rows
    if rules is None or not storage.list_files(storage.join(root, "signals"), ".parquet", recursive=True):
        return found
    step = -(-chosen.num_rows // PACKED)
    shown = chosen.take(pa.array(np.arange(0, chosen.num_rows, step))) if step > 1 else chosen
    index, values = _values(root, shown, rules)
    _pack(found, shown, index, values, rules)
    _pick(found, root, shown, values)
    return found


def unsafe(root: str, keys: list[str], limit: float) -> set[str]:
    """Those of these keys whose nsfw_score is above the limit: galleries show them blurred."""
    rows = rows_of(root, keys)
    found: set[str] = set()
    for dataset in {r["dataset"] for r in rows.values()}:
        mine = {k: r["sample_digest"] for k, r in rows.items() if r["dataset"] == dataset}
        wanted = by_digest.keys_of(pa.chunked_array([pa.array(list(mine.values()), tables.DIGEST)]))
        seen = by_digest.signals(root, dataset, wanted, ["nsfw_score"])
        scores = seen.at(seen.places(wanted))["nsfw_score"]
        found |= {k for k, s in zip(mine, scores, strict=True) if s > limit}
    return found


def _rules(root: str, selection: str | None) -> Rules | None:
    uri = storage.join(root, "selections", selection or "", "selection.yaml")
    if selection is None or not storage.exists(uri):
        return None
    document = yaml.safe_load(storage.read_bytes(uri)) or {}
    try:
        return Rules.model_validate(document["rules"]) if "rules" in document else None
    except ValidationError:  # written under rules of another version
        return None


def _values(root: str, chosen: pa.Table, rules: Rules) -> tuple[pa.Table, why.Columns]:
    """Index columns and numbers of the chosen rows, in their order; a key that left the index has nulls."""
    names = sorted(set(chosen["dataset"].cast(pa.string()).to_pylist()))
    found, columns = [], []
    foreign = by_digest.joined(root, rules)
    for dataset in names:
        wanted = chosen.filter(pc.equal(chosen["dataset"].cast(pa.string()), dataset))["key"].combine_chunks()
        parts = [t.filter(pc.is_in(t["key"], value_set=wanted)) for t in scan_index(root, dataset, why.INDEX_COLUMNS)]
        if not sum(p.num_rows for p in parts):
            continue
        index = pa.concat_tables(parts)
        keys = by_digest.keys_of(index["sample_digest"])
        sources = [by_digest.signals(root, dataset, keys, why.named_columns(rules)), *foreign.values()]
        sources += [by_digest.scores(root, dataset, keys, rules.judge.judge_id)] if rules.judge else []
        row: why.Columns = {}
        for source in sources:
            row |= source.at(source.places(keys))
        columns.append(why.with_borders(row, index) | {"aspect_error": why.facts(index)["aspect_error"]})
        found.append(index)
    whole = pa.concat_tables(found).unify_dictionaries()
    values = {n: np.concatenate([c[n] for c in columns]) for n in columns[0]}
    place = pc.index_in(chosen["key"].combine_chunks(), value_set=whole["key"].combine_chunks())
    at = place.fill_null(-1).to_numpy()
    padded = {n: np.append(v, np.nan)[at] for n, v in values.items()}
    return whole.take(place), padded


def _pack(found: Curation, chosen: pa.Table, index: pa.Table, values: why.Columns, rules: Rules) -> None:
    codes, names = why.words(chosen["dataset"])
    found.packed, found.datasets, found.dataset = chosen.num_rows, [str(n) for n in names], codes.astype(np.uint8)
    kinds, kind_names = why.words(index["kind"])
    for kind in tables.KINDS:
        mine = kinds == (kind_names.index(kind) if kind in kind_names else -2)
        if mine.any():
            found.scores += _scores_of(kind, mine, getattr(rules, kind), rules, index, values)
    covered = frozenset().union(*(s.reasons for s in found.scores)) if found.scores else frozenset()
    lists = chosen["reasons"].combine_chunks()
    owner = np.repeat(np.arange(len(chosen)), np.diff(lists.offsets.to_numpy()))
    reason, reasons = why.words(pa.chunked_array([lists.flatten()], pa.string()))
    free = [i for i, r in enumerate(reasons) if r not in covered and r != "not_judged"]
    found.other = np.zeros(len(chosen), bool)
    found.other[owner[np.isin(reason, free)]] = True


def _scores_of(
    kind: str, mine: np.ndarray, limits: KindRules, rules: Rules, index: pa.Table, values: why.Columns
) -> list[Score]:
    roles = why.roles(index, limits)
    where = {"structure_kept": roles["local"], "text_similarity": roles["subtitle"],
             "motion_ratio": ~roles["exempt"] & ~(values["motion_target"] >= limits.frozen_motion)
             & ~(values["static"] == 1)}  # fmt: skip
    asked: list[tuple[str, float, str, frozenset[str], bool]] = []
    for setting, name in SINGLE.items():
        if (value := getattr(limits, setting)) is not None:
            keep = "min" if setting.startswith("min_") else "max"
            asked.append((name, float(value), keep, frozenset({REASONS[name]}), name == "text_similarity"))
    for name, bounds in (*limits.thresholds.items(), *limits.joined.items()):
        for keep, bound, word in (("min", bounds.min, "low"), ("max", bounds.max, "high")):
            if bound is not None:
                asked.append((name, bound, keep, frozenset({f"{name}_{word}", f"no_{name}"}), False))
    if rules.judge and kind != "text_to_video":
        limit_of = rules.judge.image if kind == "image_edit" else rules.judge.video
        asked += [(f"{s}_mean", v, "min", frozenset({f"{s}_low"}), False) for s, v in limit_of.items()]
    out = []
    for name, limit, keep, reasons, null_passes in asked:
        applies = mine & where.get(name, np.ones(len(mine), bool))
        if name not in values or not np.isfinite(values[name][applies]).any():
            continue
        data = values[name]
        real = data[applies & np.isfinite(data)]
        low, high = (1.0, 10.0) if name.endswith("_mean") else _span(real, limit)
        levels = np.full(len(mine), SKIPS, np.uint8)
        levels[applies] = NULL
        there = applies & np.isfinite(data)
        levels[there] = level(data[there], limit, keep, low, high)
        out.append(Score(name, kind, limit, keep, low, high, levels, reasons, null_passes))
    return out


def _span(values: np.ndarray, limit: float) -> tuple[float, float]:
    low, high = (float(v) for v in np.percentile(values, [0.5, 99.5]))
    low, high = min(low, limit), max(high, limit)
    pad = (high - low or 1.0) * 0.05
    return (low if low == 0 else low - pad), high + pad


def level(values: np.ndarray | float, limit: float, keep: str, low: float, high: float) -> np.ndarray:
    """Scores as steps 0 … LEVELS - 1 of [low, high], such that those on either side of the limit stay on theirs.

    The limit's own step is `threshold_level`: kept is level >= it (min) or level <= it (max).
    """
    data = np.asarray(values, np.float64)
    steps = np.clip(np.floor((data - low) / (high - low) * LEVELS), 0, LEVELS - 1).astype(int)
    edge = threshold_level(limit, low, high)
    if keep == "min":
        steps = np.where(data >= limit, np.maximum(steps, edge), np.minimum(steps, edge - 1))
    else:
        steps = np.where(data <= limit, np.minimum(steps, edge), np.maximum(steps, edge + 1))
    return np.clip(steps, 0, LEVELS - 1).astype(np.uint8)


def threshold_level(limit: float, low: float, high: float) -> int:
    """The step of a limit; never the first or the last, so that both sides have room."""
    return int(np.clip(np.floor((limit - low) / (high - low) * LEVELS), 1, LEVELS - 2))


def kept(found: Curation, changed: dict[int, int] | None = None) -> int:
    """How many packed samples all thresholds keep; changed: score number -> another level. What the page computes."""
    passes = ~found.other
    for i, score in enumerate(found.scores):
        edge = (changed or {}).get(i, threshold_level(score.threshold, score.low, score.high))
        good = score.levels >= edge if score.keep == "min" else score.levels <= edge
        good &= score.levels < SKIPS
        passes &= good | (score.levels == SKIPS) | ((score.levels == NULL) & score.null_passes)
    return int(passes.sum())


def _pick(found: Curation, root: str, chosen: pa.Table, values: why.Columns) -> None:
    """The samples nearest to each threshold: kept ones, and rejected ones that only it keeps out."""
    decision, names = why.words(chosen["decision"])
    reasons = chosen["reasons"].to_pylist()
    wanted: dict[str, dict[str, Any]] = {}
    for score in found.scores:
        data = values[score.name]
        nearest = np.argsort(np.abs(data - score.threshold))
        nearest = nearest[(score.levels[nearest] < SKIPS) & np.isfinite(data[nearest])]
        counts: Counter[str] = Counter()
        for i in nearest[:5000]:
            what, key = str(names[decision[i]]), chosen["key"][int(i)].as_py()
            alone = what == "rejected" and set(reasons[i]) <= score.reasons
            if key in wanted or counts[what] >= BORDERLINE or not (what == "kept" or alone):
                continue
            counts[what] += 1
            wanted[key] = {"decision": what, "reasons": reasons[i], "score": score.name, "value": float(data[i]),
                           "threshold": score.threshold}  # fmt: skip
    rows = rows_of(root, list(wanted))
    found.borderline = [{**rows[k], **w} for k, w in wanted.items() if k in rows]


def _failures(root: str) -> list[tuple[str, str, str, int, str]]:
    counts: Counter[tuple[str, str, str]] = Counter()
    examples: dict[tuple[str, str, str], str] = {}
    columns = ["status", "error_stage", "error_type", "error"]
    for uri, table in storage.each_part(storage.join(root, "signals"), tables.SIGNALS, columns):
        for row in table.filter(pc.equal(table["status"].cast(pa.string()), "failed")).to_pylist():
            name = (uri.rsplit("/", 2)[1], row["error_stage"] or "", row["error_type"] or "")
            counts[name] += 1
            examples.setdefault(name, row["error"] or "")
    return [(*name, n, examples[name]) for name, n in counts.most_common()]


def _groups(root: str, chosen: pa.Table) -> tuple[list[tuple[int, int, list[str]]], int]:
    """The largest groups of samples of the same footage, and how many samples share theirs with another."""
    parts = [t for d in sorted(set(chosen["dataset"].cast(pa.string()).to_pylist()))
             for t in scan_index(root, d, ["key", "source_group"])]  # fmt: skip
    table = pa.concat_tables(parts) if parts else None
    if table is None:
        return [], 0
    counted = table.group_by("source_group").aggregate([("key", "count"), ("key", "min"), ("key", "max")])
    shared = counted.filter(pc.greater(counted["key_count"], 1)).sort_by([("key_count", "descending")])
    rows = shared.slice(0, 12).to_pylist()
    total = int(pc.sum(shared["key_count"]).as_py() or 0)
    return [(r["source_group"], r["key_count"], sorted({r["key_min"], r["key_max"]})) for r in rows], total


def _cost(root: str) -> dict[str, dict[str, float]]:
    """Per stage: samples or answers, seconds of work, tokens."""
    out: dict[str, dict[str, float]] = {}
    seconds = storage.read_parts(storage.join(root, "signals"), tables.SIGNALS, ["seconds"])
    if seconds.num_rows:
        out["signals"] = {"rows": seconds.num_rows, "seconds": float(pc.sum(seconds["seconds"]).as_py() or 0)}
    for name, schema in (("judgements", tables.JUDGEMENTS), ("captions", tables.CAPTIONS)):
        columns = ["latency_s", "prompt_tokens", "completion_tokens"]
        table = storage.read_parts(storage.join(root, name), schema, columns)
        if table.num_rows:
            total = {c: float(pc.sum(table[c]).as_py() or 0) for c in columns}
            out[name] = {"rows": table.num_rows, "seconds": total.pop("latency_s"), **total}
    return out
