"""Signals: cheap measurements of one sample, on the CPU. They are scores; verdicts come at selection.

Units: brightness and colour differences are 0..255, measured on cells (see `look`), so that grain and
codec noise average out. A signal that makes no sense for a sample is None: motion of a picture, a
difference without a source. Columns written here: mad, changed_area, motion_source, motion_target,
motion_ratio, flicker, blur_source, blur_target, blockiness, black_border_source, black_border_target,
shot_cuts_source, shot_cuts_target, static, instruction_words, instruction_language, and those of `agreement`:
changed_box, structure_kept, text_strokes_source, text_strokes_target, and of `prints`: prints_source,
prints_target. Columns of plug-ins (text by OCR,
nsfw_score, minor_risk_score, watermark_score, faces: see `plugins`) are null unless they are asked for.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pipelines.curate import prints
from pipelines.curate.agreement import changed_box, structure_kept, text_strokes
from pipelines.curate.look import Seen, to_cells
from pipelines.curate.words import language

SIGNALS_VERSION = 3  # raise it when a number changes its meaning or one is added: every sample is then looked at again

VISIBLE = 25.0  # a cell that differs by more than this is changed to the eye
STILL = 0.1  # mean neighbour difference of a clip that stands still; a filmed still life has 0.2 or more
BLACK = 24  # luma: limited-range black plus coding noise
PICTURE = 40  # luma that half of the line inside a bar must reach, else it is a dark scene and no bar
EDGES = 98  # percentile of neighbour steps from which on they count for blur
CUT_CELLS = 30  # a coarser grid for cuts: motion moves less, a new shot changes as much
CUT_WINDOW = 6  # frames on each side that say what is usual here
CUT_SCORE = 1.5  # jump over what is usual; known cuts reach 1.8 and more, flashes and jolts stay below 1.3
FADE_BLACK = 8.0  # mean luma of a frame that is black
FADE_DROP = 40.0  # luma that a fade must lose


def aligned(source: Seen, target: Seen, pairing: str, policy_fps: float | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Which frames of source and target show the same moment: two index arrays of one length.

    `index`: frame i with frame i. `time`: on the clock of the slower clip, or of `policy_fps` where that is
    slower still, over the common duration. The longer clip's rest is left out.
    """
    counts, rates = (len(source.cells), len(target.cells)), (source.fps, target.fps)
    if pairing == "index" or not all(rates):
        common = np.arange(min(counts))
        return common, common
    clock = min(*rates, policy_fps or max(rates))
    seconds = min(n / r for n, r in zip(counts, rates, strict=True))
    moments = np.arange(max(1, int(seconds * clock + 1e-6))) / clock
    mine, theirs = (np.minimum(np.round(moments * r).astype(int), n - 1) for n, r in zip(counts, rates, strict=True))
    return mine, theirs


def measure(
    source: Seen | None, target: Seen, *, pairing: str = "index", policy_fps: float | None = None,
    instruction: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """All signals of a sample: the columns named above. `source` is None for a captioned clip."""
    row: dict[str, Any] = {"instruction_words": None if instruction is None else len(instruction.split())}
    row["instruction_language"] = language(instruction)
    for side, seen in (("source", source), ("target", target)):
        if seen is None:
            row |= {f"motion_{side}": None, f"blur_{side}": None}
            row |= {f"black_border_{side}": None, f"shot_cuts_{side}": None, f"text_strokes_{side}": None}
            row[f"prints_{side}"] = None
            continue
        row[f"motion_{side}"] = motion(seen.cells)
        row[f"blur_{side}"] = blur(seen.luma)
        row[f"black_border_{side}"] = black_border(seen.brightest, seen.scale)
        row[f"shot_cuts_{side}"] = [seen.first + i for i in shot_cuts(seen.cells)]
        row[f"text_strokes_{side}"] = text_strokes(seen.detail)
        row[f"prints_{side}"] = prints.as_words(seen.prints)
    row |= dict.fromkeys(("mad", "changed_area", "changed_box", "structure_kept", "motion_ratio"))
    if source is not None:
        mine, theirs = aligned(source, target, pairing, policy_fps)
        one, two = source.cells[mine], target.cells[theirs]
        row |= difference(one, two)
        row["changed_box"], row["structure_kept"] = changed_box(one, two, VISIBLE), structure_kept(one, two)
        # on the shared clock, so that a clip at 24 fps is not calmer than the same one at 16
        row["motion_source"], row["motion_target"] = motion(one), motion(two)
        row["motion_ratio"] = motion_ratio(row["motion_source"], row["motion_target"])
    original = row["motion_source" if source is not None else "motion_target"]
    row["static"] = None if original is None else original < STILL
    row["flicker"] = flicker(target.cells)
    row["blockiness"] = blockiness(target.detail)
    return row


def difference(source: np.ndarray, target: np.ndarray) -> dict[str, float]:
    """How much the edit changed.

    in:  cells of the same moments, (T, h, w, 3) float32, same shape
    out: mad: mean absolute difference, 0..255
         changed_area: share of cells, over all moments, that differ visibly (by more than VISIBLE), 0..1
    """
    apart = np.abs(source - target).mean(axis=-1)
    return {"mad": float(apart.mean()), "changed_area": float((apart > VISIBLE).mean())}


def motion(cells: np.ndarray) -> float | None:
    """Mean absolute difference of neighbouring frames, 0..255; None for one frame."""
    return float(np.abs(np.diff(cells, axis=0)).mean()) if len(cells) > 1 else None


def motion_ratio(source: float | None, target: float | None) -> float | None:
    """Target motion over source motion; None where the source stands still.

    Not a verdict on removals: taking the moving thing away lowers the ratio of a good edit.
    """
    if source is None or target is None or source < STILL:
        return None
    return target / source


def flicker(cells: np.ndarray) -> float | None:
    """How much brightness jumps back and forth: mean absolute second difference in time on 8 cells a side.

    Steady change (a fade, a pan) cancels out. None for fewer than three frames.
    """
    if len(cells) < 3:
        return None
    coarse = to_cells(cells, 8).mean(axis=-1)
    return float(np.abs(coarse[:-2] - 2 * coarse[1:-1] + coarse[2:]).mean())


def blur(luma: np.ndarray) -> float | None:
    """How blurred the sharpest edges are, 0 (sharp) .. 1, mean over the frames given.

    in: (S, H, W) uint8. After Crete et al. 2007: the frame is blurred once more (9-pixel box), and where that
    takes little from a step between neighbours, it was blurred already. Unlike there only the strongest steps
    count (EDGES), so that a smooth sky, a gradient or a background out of focus is no fault while something is
    sharp. The worse of both directions counts. None for a picture without any structure.
    """
    values = []
    for frame in luma:
        found = [v for axis in (0, 1) if (v := _blur_along(frame, axis)) is not None]
        values += [max(found)] if found else []
    return float(np.mean(values)) if values else None


def _blur_along(frame: np.ndarray, axis: int) -> float | None:
    lines = np.moveaxis(frame.astype(np.float32), axis, 0)
    padded = np.pad(lines, ((5, 4), (0, 0)), mode="edge").cumsum(axis=0, dtype=np.float64)
    again = (padded[9:] - padded[:-9]) / 9
    steps = np.abs(np.diff(lines, axis=0))
    strong = steps >= max(2.0, float(np.percentile(steps, EDGES)))
    if not strong.any():
        return None
    lost = np.maximum(0, steps - np.abs(np.diff(again, axis=0)))
    return 1 - float(lost[strong].sum() / steps[strong].sum())


def blockiness(luma: np.ndarray) -> float | None:
    """Steps at the 8-pixel grid of block codecs over steps elsewhere; 1 without blocks, 2 is plain to see.

    in: (H, W) uint8 at the clip's own size (scaling would hide the grid). None below 64 pixels a side.
    """
    if min(luma.shape) < 64:
        return None
    frame, at, between = luma.astype(np.float32), 0.0, 0.0
    for lines in (frame, frame.T):
        steps = np.abs(np.diff(lines, axis=0)).mean(axis=1)
        grid = np.arange(len(steps)) % 8 == 7
        at, between = at + float(steps[grid].mean()), between + float(steps[~grid].mean())
    return at / max(between, 0.1)


def black_border(brightest: np.ndarray, scale: float = 1.0) -> list[int]:
    """Width of black bars in pixels of the clip: [top, bottom, left, right].

    in: (H, W) uint8, the highest luma that each pixel ever has; scale: own pixels per pixel here.
    A line belongs to a bar when nearly all of it always is black, and the picture begins abruptly behind
    it: a night sky is no bar. Bars thinner than one line here are not seen. An all-black clip is one bar.
    """
    height = brightest.shape[0]
    if np.percentile(brightest, 98) <= BLACK:
        return [round(height * scale), 0, 0, 0]
    found = []
    for lines in (brightest, brightest[::-1], brightest.T, brightest.T[::-1]):
        dark = np.percentile(lines, 98, axis=1) <= BLACK
        bar = int(np.argmin(dark))
        inside = lines[min(bar + 1, len(lines) - 1)]  # the line after the one that mixes bar and picture
        found.append(round(bar * scale) if bar and np.median(inside) >= PICTURE else 0)
    return found


def shot_cuts(cells: np.ndarray) -> list[int]:
    """Last frame before each cut, in order: hard cuts, and fades through black (at half brightness).

    in: (T, h, w, 3) cells. A hard cut is a jump far above what is usual around it after which the picture
    does not come back (a flash does). The first and last two frames are not looked at: a clip's opening
    jolt is not a shot.
    """
    if len(cells) < 6:
        return []
    coarse = to_cells(cells, CUT_CELLS)
    jumps = np.abs(np.diff(coarse, axis=0)).mean(axis=(1, 2, 3))
    hard = []
    for i in range(1, len(jumps) - 1):
        around = np.concatenate([jumps[max(0, i - CUT_WINDOW) : i], jumps[i + 1 : i + 1 + CUT_WINDOW]])
        usual = float(np.median(around))
        if (jumps[i] - usual) / (usual + 6.0) < CUT_SCORE:
            continue
        # a cut is over in one frame, or two where a frame blends both shots; a quick fade-in takes longer
        two_away = [jumps[j] for j in (i - 2, i + 2) if 0 <= j < len(jumps)]
        if jumps[i] < max(jumps[i - 1], jumps[i + 1], 1.8 * max(two_away)):
            continue
        if float(np.abs(coarse[i + 2] - coarse[i - 1]).mean()) > 0.6 * jumps[i]:
            hard.append(i)
    return sorted({*hard, *_fades(coarse.mean(axis=(1, 2, 3)))})


def _fades(luma: np.ndarray) -> list[int]:
    """The last frame of each fade to black that is half as bright as its start; none where nothing follows."""
    found, i = [], 1
    black = luma < FADE_BLACK
    while i < len(luma):
        if not black[i] or black[i - 1]:
            i += 1
            continue
        start = i
        while start > 0 and luma[start - 1] > luma[start] + 0.2:
            start -= 1
        end = i
        while end < len(luma) and black[end]:
            end += 1
        slow = luma[start] - luma[i] >= FADE_DROP and i - start >= 4
        if slow and end < len(luma):
            found.append(start + int(np.flatnonzero(luma[start:i] >= luma[start] / 2)[-1]))
        i = end
    return found
