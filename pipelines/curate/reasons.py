"""Rules applied to rows, column by column in numpy: which reasons does each row have to be left out?"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.curate.rules import JudgeRules, KindRules, Rules, SafetyRules
from pipelines.curate.words import ERASES

INDEX_COLUMNS = [
    "key", "sample_digest", "dataset", "kind", "category", "source_group", "motion_preserving",
    "source_sha256", "source_width", "source_height", "source_fps", "source_frames",
    "target_sha256", "target_width", "target_height", "target_fps", "target_frames",
    "skip_head", "skip_tail", "pairing", "policy_fps", "instruction", "source_url",
]  # fmt: skip
SIGNAL_COLUMNS = [
    "status", "error_stage", "mad", "changed_area", "motion_source", "motion_target", "motion_ratio",
    "structure_kept", "text_strokes_source", "text_strokes_target", "text_similarity",
    "blur_source", "blur_target", "black_border_source", "black_border_target",
    "shot_cuts_source", "shot_cuts_target", "static",
]  # fmt: skip

LISTS = ("black_border_source", "black_border_target", "shot_cuts_source", "shot_cuts_target")
WORST = ("shot_cuts", "bars_source_0", "bars_source_1", "bars_target_0", "bars_target_1")
NUMBERS = [n for n in SIGNAL_COLUMNS if n not in (*LISTS, "status", "error_stage")]

Columns = dict[str, np.ndarray]
Put = Callable[[str, np.ndarray], None]  # takes a reason and the mask of rows that have it


def numbers(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """A numeric or boolean column as float64; null is nan."""
    return np.asarray(pc.cast(column, pa.float64()).to_numpy(zero_copy_only=False))


def words(column: pa.ChunkedArray) -> tuple[np.ndarray, list[str | None]]:
    """A column of few distinct strings as codes and the strings; null is the code -1."""
    if pa.types.is_dictionary(column.type):
        plain = column.unify_dictionaries().combine_chunks()
    else:
        plain = column.cast(pa.string()).combine_chunks().dictionary_encode()
    if isinstance(plain, pa.ChunkedArray):  # a column without rows
        return np.zeros(0, np.int32), []
    return np.asarray(plain.indices.fill_null(-1).to_numpy()), plain.dictionary.to_pylist()


def facts(index: pa.Table) -> Columns:
    """What the index alone says of each pair: agreement of size, aspect ratio, rate and length.

    in:  INDEX_COLUMNS. out, float64 unless said: short_side, aspect_error (larger over smaller ratio - 1),
    size_differs, fps_error, by_index bool, unequal bool, usable (frames left on both sides after the policy),
    overlap (common over longer duration), same_bytes, no_instruction, erases bool. nan where there is no pair.
    """
    get = {n: numbers(index[n]) for n in INDEX_COLUMNS if n.split("_")[-1] in ("width", "height", "fps", "frames")}
    skipped = np.nan_to_num(numbers(index["skip_head"])) + np.nan_to_num(numbers(index["skip_tail"]))
    pairing, names = words(index["pairing"])
    by_index = pairing != (names.index("time") if "time" in names else -2)
    source, target = (get[f"{s}_frames"] - skipped for s in ("source", "target"))
    fps_s, fps_t, policy = get["source_fps"], get["target_fps"], get["policy_fps"]
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = (get["source_width"] / get["source_height"]) / (get["target_width"] / get["target_height"])
        rates = fps_s / fps_t
        together = np.fmin(source / fps_s, target / fps_t)
        overlap = together / np.fmax(source / fps_s, target / fps_t)
        by_time = np.floor(together * np.fmin(np.fmin(fps_s, fps_t), policy) + 1e-6)
        # a policy that asks for a lower rate leaves fewer frames of the same clip
        in_order = np.floor(np.fmin(source, target) * np.fmin(1.0, policy / fps_t) + 1e-6)
        errors = [np.fmax(r, 1 / r) - 1 for r in (ratio, rates)]
    sides = [get[f"{s}_{d}"] for s in ("source", "target") for d in ("width", "height")]
    text = pc.fill_null(pc.utf8_trim_whitespace(index["instruction"]), "")
    return {
        "short_side": np.fmin.reduce(sides),
        "aspect_error": errors[0],
        "size_differs": (sides[0] != sides[2]) | (sides[1] != sides[3]),
        "fps_error": errors[1],
        "by_index": by_index,
        "unequal": source != target,
        "usable": np.where(by_index | np.isnan(source), in_order, by_time),
        "overlap": overlap,
        "same_bytes": _filled(pc.equal(index["source_sha256"], index["target_sha256"])),
        "no_instruction": _filled(pc.equal(text, "")),
        "erases": _erases(index, text),
    }  # fmt: skip


def roles(index: pa.Table, rules: KindRules) -> Columns:
    """What the category makes of a row: exempt (no motion threshold), local (leaves the rest alone), subtitle; bool.

    An edit that is to change the motion is exempt and, since everything then moves, not local.
    """
    codes, names = words(index["category"])
    keeps = np.asarray(pc.fill_null(index["motion_preserving"], True).to_numpy(zero_copy_only=False)).astype(bool)

    def among(categories: tuple[str, ...]) -> np.ndarray:
        return np.isin(codes, [i for i, n in enumerate(names) if n in categories])

    local = among(rules.structure_categories) & keeps
    return {"exempt": among(rules.motion_exempt) | ~keeps, "local": local, "subtitle": among(("text",))}


def index_reasons(rules: KindRules, rows: Columns, put: Put) -> None:
    """Reasons that need no look at the media. `rows` as from `facts`."""
    if rules.require_instruction:
        put("no_instruction", rows["no_instruction"])
    if rules.min_frames is not None:
        put("too_short", ~(rows["usable"] >= rules.min_frames))
    if rules.min_short_side is not None:
        put("too_small", ~(rows["short_side"] >= rules.min_short_side))
    if rules.same_size:
        put("size_mismatch", rows["size_differs"])
    if rules.aspect_tolerance is not None:
        put("aspect_mismatch", ~(rows["aspect_error"] <= rules.aspect_tolerance))
    if rules.equal_frames:
        put("unequal_frames", rows["by_index"] & rows["unequal"])
    if rules.fps_tolerance is not None:
        put("fps_mismatch", rows["by_index"] & ~(rows["fps_error"] <= rules.fps_tolerance))
    if rules.min_overlap is not None:
        put("short_overlap", ~rows["by_index"] & ~(rows["overlap"] >= rules.min_overlap))
    if rules.identical_mad is not None:
        put("identical", rows["same_bytes"])


def signal_columns(verdicts: pa.Table, index: pa.Table, rules: Rules) -> Columns:
    """The signals that rules may ask for, as float64 with nan for null; lists become their worst value.

    out: SIGNAL_COLUMNS but the lists and words; shot_cuts: the larger count; black_border: the widest bar as
    a share of its direction; every column named in a threshold; <score>_mean of the judge.
    """
    columns = {n: numbers(verdicts[n]) for n in NUMBERS} | worst_of_lists(verdicts)
    for name in verdicts.column_names:
        if name not in columns and name in named_columns(rules):
            columns[name] = numbers(verdicts[name])
    return with_borders(columns, index)


def worst_of_lists(verdicts: pa.Table) -> Columns:
    """The columns WORST: the larger count of cuts; the widest bar in pixels, of the height (0) and the width (1)."""
    cuts = [numbers(pc.list_value_length(verdicts[f"shot_cuts_{s}"])) for s in ("source", "target")]
    columns = {"shot_cuts": np.fmax(*cuts)}
    for side in ("source", "target"):
        bars = [numbers(pc.list_element(verdicts[f"black_border_{side}"], i)) for i in range(4)]
        columns |= {f"bars_{side}_0": np.fmax(bars[0], bars[1]), f"bars_{side}_1": np.fmax(bars[2], bars[3])}
    return columns


def with_borders(columns: Columns, index: pa.Table) -> Columns:
    """Adds black_border, the widest bar as a share of its direction. columns: with those of `worst_of_lists`."""
    shares = []
    for side in ("source", "target"):
        with np.errstate(invalid="ignore"):
            for i, direction in enumerate(("height", "width")):
                shares.append(columns[f"bars_{side}_{i}"] / numbers(index[f"{side}_{direction}"]))
    return columns | {"black_border": np.fmax.reduce(shares)}


def named_columns(rules: Rules) -> list[str]:
    """Columns that thresholds or the judge's rules name, beyond the usual ones."""
    sets = [rules.of(k, d) for k in ("video_edit", "image_edit", "text_to_video") for d in ("", *rules.datasets)]
    names = {n for r in sets for n in (*r.thresholds, *r.joined)} | {*rules.safety.require, *rules.safety.limits}
    if rules.judge:
        names |= {f"{s}_mean" for s in (*rules.judge.video, *rules.judge.image)}
    return sorted(names)


def signal_reasons(rules: KindRules, rows: Columns, put: Put) -> None:
    """Reasons that rest on signals.

    rows: as from `signal_columns`, with bool columns: exempt (from motion), local (the edit leaves the rest alone),
    subtitle (a text edit), erases (as from `facts`).
    """
    if rules.identical_mad is not None:
        same = (rows["mad"] < rules.identical_mad) & (rows["changed_area"] < rules.identical_area)
        put("identical", same | np.isnan(rows["mad"]))
    if rules.min_structure_kept is not None:
        put("structure_lost", ~(rows["structure_kept"] >= rules.min_structure_kept) & rows["local"])
    if rules.caption_strokes is not None:
        had = rows["text_strokes_source"] >= rules.caption_strokes
        gone = ~(rows["text_strokes_target"] >= rules.caption_strokes / 2)
        put("text_gone", had & gone & rows["subtitle"] & ~rows["erases"])
    if rules.max_text_similarity is not None:
        put("text_unchanged", (rows["text_similarity"] > rules.max_text_similarity) & rows["subtitle"])
    static = rows["static"] == 1
    if rules.reject_static:
        put("static", ~(rows["static"] == 0))
    if rules.min_motion_ratio is not None:
        frozen = ~(rows["motion_ratio"] >= rules.min_motion_ratio) & ~(rows["motion_target"] >= rules.frozen_motion)
        put("frozen_motion", frozen & ~static & ~rows["exempt"])
    if rules.max_shot_cuts is not None:
        put("shot_cut", ~(rows["shot_cuts"] <= rules.max_shot_cuts))
    if rules.max_black_border is not None:
        put("black_border", ~(rows["black_border"] <= rules.max_black_border))
    if rules.max_blur is not None:
        put("blurred", ~(rows["blur_target"] <= rules.max_blur))
    if rules.max_blur_gain is not None:
        put("blurred", rows["blur_target"] - rows["blur_source"] > rules.max_blur_gain)
    for name, bounds in (*rules.thresholds.items(), *rules.joined.items()):
        value = rows[name]
        put(f"no_{name}", np.isnan(value))
        if bounds.min is not None:
            put(f"{name}_low", value < bounds.min)
        if bounds.max is not None:
            put(f"{name}_high", value > bounds.max)


def safety_reasons(rules: SafetyRules, rows: Columns, put: Put) -> None:
    """Reasons that rest on optional plug-ins. rows: the columns that the rules name, nan for not scored."""
    for name in rules.require:
        put(f"no_{name}", np.isnan(rows[name]))
    for name, limit in rules.limits.items():
        put(f"{name}_high", rows[name] > limit)


def judge_reasons(rules: JudgeRules, kind: str, rows: Columns, put: Put) -> np.ndarray:
    """Reasons that rest on a judge's mean scores; the result tells which rows lack an answer."""
    lacking = np.zeros(len(rows["mad"]), bool)
    for score, least in (rules.image if kind == "image_edit" else rules.video).items():
        value = rows[f"{score}_mean"]
        lacking |= np.isnan(value)
        put(f"{score}_low", value < least)
    return lacking


def _erases(index: pa.Table, text: pa.ChunkedArray) -> np.ndarray:
    """Only text edits are searched for the words: the others are not asked."""
    codes, names = words(index["category"])
    found = np.zeros(index.num_rows, bool)
    mine = np.flatnonzero(codes == (names.index("text") if "text" in names else -2))
    found[mine] = _filled(pc.match_substring_regex(text.take(pa.array(mine)), ERASES))
    return found


def _filled(mask: pa.ChunkedArray) -> np.ndarray:
    return np.asarray(pc.fill_null(mask, False).to_numpy(zero_copy_only=False)).astype(bool)
