"""What killed a worker group, in one sentence, and whether it makes sense to try again. No Ray and no torch here."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

# what the same input will do again, whatever the step: tried once more, in case a mount was away
LASTING = {"InputError", "StorageError", "TrainingDivergedError"}
USURPED = "SupersededError"  # another job works here now: trying again would be a fight
DEATHS = {
    "RayActorError", "WorkerCrashedError", "NodeDiedError", "WorkerHealthCheckFailedError",
    "WorkerHealthCheckTimeoutError", "LocalRayletDiedError", "OwnerDiedError",
}  # fmt: skip
MEMORY = "out of memory"
WRAPPED = ("Traceback", "\x1b", "ray::")  # an error that is a traceback as text


class GivenUpError(Exception):
    """The same thing has failed before: another restart would only cost time."""


@dataclass
class Failures:
    """The failures of one job so far."""

    seen: Counter = field(default_factory=Counter)

    def judge(self, errors: Mapping[int, BaseException], step: int) -> tuple[str, bool]:
        """(what happened, whether another try makes sense). errors: by rank; step: where training was, if an error
        does not say it itself.

        A process or a machine that died is always worth another try. An error of the code is not when it has come
        before at the same step; nor is one that has nothing to do with the step when it comes twice.
        """
        rank, error = real_error(errors)
        message, key = f"rank {rank}: {sentence(error)}", _key(error, step)
        if key is None:
            return message, True
        self.seen[key] += 1
        return message, key != (USURPED,) and self.seen[key] < 2


def real_error(errors: Mapping[int, BaseException]) -> tuple[int, BaseException]:
    """The first rank's error that is more than another rank's death."""
    ordered = sorted(errors.items())
    own = [(rank, e) for rank, e in ordered if not _is_consequence(root(e))]
    told = [(rank, e) for rank, e in own if not _is_death(root(e))]
    return (told or own or ordered)[0]


def first_error(error: BaseException) -> str:
    """The sentence behind a training that Ray gave up."""
    failures = getattr(error, "worker_failures", None)
    if failures:
        rank, found = real_error(failures)
        return f"rank {rank}: {sentence(found)}"
    return sentence(getattr(error, "controller_failure", None) or error)


def sentence(error: BaseException) -> str:
    """One line: the kind of error and what it says."""
    named = _lasting(error)
    if named is not None:
        return f"{named[0]}: {named[1]}"
    found = root(error)
    name = type(found).__name__.removeprefix("RayTaskError(").removesuffix(")")
    if isinstance(found, GivenUpError):
        return str(found)
    lines = [line for line in str(found).splitlines() if line.strip()]
    # a traceback as text has its error in the last line
    text = lines[-1] if lines and lines[0].startswith(WRAPPED) else (lines or [name])[0]
    return text if name in text else f"{name}: {text}"


def root(error: BaseException) -> BaseException:
    """What a worker raised, without what Ray wrapped it in."""
    while True:
        inner = getattr(error, "_base_exc", None) or getattr(error, "cause", None)
        if not isinstance(inner, BaseException) or inner is error:
            return error
        error = inner


def _key(error: BaseException, step: int) -> tuple | None:
    """What counts as the same failure; None for a death that says nothing of its reason."""
    found = root(error)
    names = {cls.__name__ for cls in type(found).__mro__}
    named = _lasting(error)
    if named is not None:
        return (named[0],)
    if MEMORY in str(found).lower() or "OutOfMemoryError" in names:
        return (MEMORY, getattr(found, "training_step", step))
    if USURPED in names:
        return (USURPED,)
    if names & DEATHS or _is_consequence(found):
        return None
    return (type(found).__name__, getattr(found, "training_step", step))


def _lasting(error: BaseException) -> tuple[str, str] | None:
    """(kind, what it says) of an error of a kind in LASTING. Ray Data may wrap one in its own, and tell it only in the
    traceback."""
    found = root(error)
    kinds = [cls.__name__ for cls in type(found).__mro__ if cls.__name__ in LASTING]
    if kinds and not str(found).startswith(WRAPPED):
        return kinds[0], (str(found).splitlines() or [""])[0]
    told = re.findall(rf"^(?:[\w.]+\.)?({'|'.join(sorted(LASTING))}): (.*)$", f"{error}\n{found}", re.MULTILINE)
    return told[-1] if told else None


def _is_death(error: BaseException) -> bool:
    return bool({cls.__name__ for cls in type(error).__mro__} & DEATHS)


def _is_consequence(error: BaseException) -> bool:
    """A rank that only noticed that another one is gone."""
    text = str(error).lower()
    signs = ("connection closed by peer", "connection reset", "broken pipe", "gloo", "nccl communicator was aborted")
    return any(sign in text for sign in signs)
