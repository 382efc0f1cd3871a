"""Which steps are not worth taking: gradients that are not finite, and sudden spikes of the loss or the gradient norm.

A step that is skipped changes neither weights nor optimizer nor average, as if its batch were not in the plan. What
is decided follows from sums over all ranks, which have the same bits everywhere, so all ranks decide alike; and the
history it follows from is part of the checkpoint, so a resumed run decides like one that never stopped.
"""

from __future__ import annotations

import math
import statistics

from pipelines.config import TrainSettings

WINDOW = 64  # steps of one stream that the running median looks back on
LEAST = 16  # a median of fewer says little: until then nothing is a spike
History = dict[str, list[list[float]]]


class TrainingDivergedError(RuntimeError):
    """Too many steps in a row were skipped. The same run would meet the same steps again: restarting does not help."""


def objection(how: TrainSettings, history: History, stream: str, loss: float, norm: float) -> str | None:
    """Why a step should be skipped, None where it should not. history: [loss, norm] of recent steps, by stream."""
    if not math.isfinite(norm):
        return f"the gradient norm is {norm}"
    if not math.isfinite(loss):
        return f"the loss is {loss}"
    seen = history.get(stream, [])
    if how.spike_factor is None or len(seen) < LEAST:
        return None
    for index, (what, value) in enumerate((("loss", loss), ("gradient norm", norm))):
        usual = statistics.median(s[index] for s in seen)
        if value > how.spike_factor * usual:
            return f"the {what} is {value:.4g}, {value / usual:.1f} times the median of the last {len(seen)} steps"
    return None


def remember(how: TrainSettings, history: History, stream: str, loss: float, norm: float) -> None:
    """Note a step that was taken."""
    if how.spike_factor is not None:
        seen = history.setdefault(stream, [])
        seen.append([loss, norm])
        del seen[:-WINDOW]
