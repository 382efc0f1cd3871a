"""Whether a loader has room: what its rows hold at the most, against the object store that it would run in."""

from __future__ import annotations

from pipelines.config import LoaderSettings
from pipelines.config import MicroBatch as Sizes
from pipelines.mixture.mixture import Mixture
from pipelines.mixture.shapes import choices
from sama.errors import InputError


def least_ahead(ranks: int, decoders: int) -> int:
    """Rows that must be on the way: each rank prefetches two, the split holds back a round."""
    return 4 * ranks + 2 * decoders


def rows_ahead(ranks: int, settings: LoaderSettings) -> int:
    """Rows that are made ahead of the slowest rank at the most."""
    return max(settings.read_ahead_rows, least_ahead(ranks, settings.max_decoders))


def row_bytes(mixture: Mixture, micro_batch: Sizes) -> int:
    """Bytes of the pixels (source and target, uint8) of the largest micro-batch that the mixture allows."""
    return max(
        2 * 3 * b.frames * b.height * b.width * int(getattr(micro_batch, stream))
        for stream in mixture.active()
        for b in choices(mixture.buckets, stream)
    )


def check_room(
    mixture: Mixture, micro_batch: Sizes, ranks: int, settings: LoaderSettings, store: float, cpus: float
) -> None:
    """InputError with the numbers when the loader's rows or its decoders cannot fit.

    store: bytes of the cluster's object store; cpus: those that training workers leave.
    """
    if cpus < settings.decode_cpus:
        raise InputError(
            f"a decode task needs loader.decode_cpus = {settings.decode_cpus:g} CPUs, the training workers leave "
            f"{cpus:g}: lower loader.decode_cpus or train.cpus_per_worker"
        )
    each, rows = row_bytes(mixture, micro_batch), rows_ahead(ranks, settings)
    if rows * each <= store:
        return
    least, fit = least_ahead(ranks, settings.max_decoders), int(store // each)
    advice = (
        f"set loader.read_ahead_rows to {fit} or less"
        if fit >= least
        else f"{ranks} data ranks and {settings.max_decoders} decoders need {least} rows at the least: lower "
        "train.micro_batch or loader.max_decoders, or give Ray a larger object store (ray.object_store_mb)"
    )
    raise InputError(
        f"the loader holds up to {rows} rows of {each / 1e6:.0f} MB, together {rows * each / 1e9:.1f} GB, and the "
        f"object store has {store / 1e9:.1f} GB: {advice}"
    )
