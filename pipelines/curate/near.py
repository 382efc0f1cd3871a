"""Finds footage that is the same although its bytes differ, from the fingerprints among the signals (see `prints`).

Clips are sorted by each frame's hash, from four starting bits in turn, and each is compared with the next few in that
order: near-duplicates differ in few bits, so that in some order they stand side by side. No step is quadratic.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.curate import by_digest, prints
from pipelines.curate import reasons as why
from pipelines.curate.signals import SIGNALS_VERSION
from pipelines.samples import near, storage, tables
from pipelines.samples.index import datasets_of, scan_index

# another encoding or size changes 1 to 5 bits of 64 on average and up to 7; other footage has 18 and more
MEAN_BITS, WORST_BITS = 6.0, 12
COMMON = 2  # frames that both clips must have
TURNS = (0, 16, 32, 48)  # bits that the sort begins with
NEXT = 6  # clips compared in each order
HUB = 256  # footages in which the same clip may appear; one in more of them is a placard, and says nothing of footage
INDEX = ["sample_digest", "source_sha256", "target_sha256", "source_group", "split"]

Edges = tuple[np.ndarray, np.ndarray, np.ndarray]  # clips a < b, mean bits between them


def refresh(root: str) -> dict[str, int]:
    """Write ROOT/near_duplicates.parquet anew where index or signals have changed since.

    {"groups": near-duplicate groups, "footages": source groups in them, "samples", "largest": footages of the
    largest group, "beside_heldout": samples that no plan trains on, because a near-duplicate is held out}
    """
    names = [n for t in ("index", "signals") for n in storage.list_files(storage.join(root, t), ".parquet", True)]
    short = sorted(n.removeprefix(storage.absolute(root)) for n in names)
    rule = [SIGNALS_VERSION, MEAN_BITS, WORST_BITS, COMMON, TURNS, NEXT, HUB]
    state = hashlib.sha256("\n".join([str(rule), *short]).encode()).hexdigest()
    if near.made_from(root) != state:
        near.write(root, find(root), state)
    return summary(near.read(root))


def summary(table: pa.Table) -> dict[str, int]:
    """The counts of `refresh`."""
    sizes = np.unique(table["near_group"].to_numpy(), return_counts=True)[1]
    leaks = np.isin(table["source_group"].to_numpy(), near.beside_heldout(table).to_numpy(zero_copy_only=False))
    return {
        "groups": len(sizes), "footages": table.num_rows, "samples": int(table["samples"].to_numpy().sum()),
        "largest": int(sizes.max(initial=0)), "beside_heldout": int(table["samples"].to_numpy()[leaks].sum()),
    }  # fmt: skip


def find(root: str) -> pa.Table:
    """The near-duplicates of a root, tables.NEAR."""
    known, words = _prints(root)
    clips, groups, hashes = (
        [np.zeros(0, np.uint64)],
        [np.zeros(0, np.int64)],
        [np.zeros((0, prints.POSITIONS), np.uint64)],
    )
    every, held = [np.zeros(0, np.int64)], [np.zeros(0, bool)]
    for dataset in datasets_of(root):
        for table in scan_index(root, dataset, INDEX):
            table = table.filter(table["source_group"].is_valid())
            at = known.places(by_digest.keys_of(table["sample_digest"]))
            group = table["source_group"].to_numpy()
            splits, names = why.words(table["split"])
            every.append(group)
            held.append(splits == (names.index("heldout") if "heldout" in names else -2))
            for side, name in enumerate(("source_sha256", "target_sha256")):
                there = np.flatnonzero((at >= 0) & np.asarray(table[name].is_valid()))
                mine = words[known.at(at[there])["row"].astype(np.int64), side]
                seen = mine.any(axis=1)
                clips.append(by_digest.keys_of(table[name].take(pa.array(there[seen])))[:, 0])
                groups.append(group[there[seen]])
                hashes.append(mine[seen])
    distinct, place, samples = np.unique(np.concatenate(every), return_inverse=True, return_counts=True)
    heldout = np.zeros(len(distinct), bool)
    heldout[place[np.concatenate(held)]] = True
    return groups_of(np.concatenate(clips), np.concatenate(groups), np.concatenate(hashes), distinct, samples, heldout)


def groups_of(
    clips: np.ndarray, groups: np.ndarray, hashes: np.ndarray, known: np.ndarray, samples: np.ndarray,
    heldout: np.ndarray,
) -> pa.Table:  # fmt: skip
    """tables.NEAR from appearances of clips in samples.

    clips: (N,) uint64, a clip's name; groups: (N,) int64, the source group of the sample in which it appears;
    hashes: (N, POSITIONS) uint64; known, samples, heldout: (G,), every source group in ascending order, its index
    rows, and whether it is held out
    """
    _, first, clip = np.unique(clips, return_index=True, return_inverse=True)
    a, b, bits = neighbours(hashes[first])
    cluster = components(len(first), a, b)[clip]
    order = np.lexsort((groups, cluster))
    cluster, group = cluster[order], np.searchsorted(known, groups[order])
    new = np.ones(len(order), bool)
    new[1:] = (cluster[1:] != cluster[:-1]) | (group[1:] != group[:-1])
    cluster, group = cluster[new], group[new]  # each footage of a cluster once
    linked = (cluster[1:] == cluster[:-1]) & (np.bincount(cluster, minlength=1)[cluster[1:]] <= HUB)
    one, two = group[:-1][linked], group[1:][linked]
    label = components(len(known), one, two)
    size = np.bincount(label, minlength=len(known))
    inside = np.flatnonzero(size[label] > 1)
    nearest = _nearest(len(known), np.searchsorted(known, groups), clip, a, b, bits)
    return pa.table(
        {"source_group": known[inside], "near_group": known[label[inside]], "bits": nearest[inside],
         "samples": samples[inside], "heldout": heldout[inside]}
    ).cast(tables.NEAR)  # fmt: skip


def neighbours(hashes: np.ndarray) -> Edges:
    """Pairs of clips that show the same, each once. hashes: (M, POSITIONS) uint64, prints.NONE where there is none."""
    count, found = np.uint64(len(hashes)), [np.zeros(0, np.uint64)]
    for place in range(hashes.shape[1]):
        there = np.flatnonzero(hashes[:, place] != prints.NONE)
        words, pairs = hashes[there, place], [np.zeros(0, np.uint64)]
        for turn in TURNS:
            turned = (words << np.uint64(turn)) | (words >> np.uint64(64 - turn)) if turn else words
            order = np.argsort(turned, kind="stable")
            ranked, clips = words[order], there[order].astype(np.uint64)
            for step in range(1, min(NEXT, len(order) - 1) + 1):
                at = np.flatnonzero(np.bitwise_count(ranked[step:] ^ ranked[:-step]) <= WORST_BITS)
                low, high = np.minimum(clips[at], clips[at + step]), np.maximum(clips[at], clips[at + step])
                pairs.append(low * count + high)
        codes = np.unique(np.concatenate(pairs))
        found.append(codes[distances(hashes[codes // count], hashes[codes % count]) <= MEAN_BITS])
    codes = np.unique(np.concatenate(found))
    one, two = (codes // max(count, np.uint64(1))).astype(np.int64), (codes % max(count, np.uint64(1))).astype(np.int64)
    return one, two, distances(hashes[one], hashes[two])


def distances(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """Mean bits that differ over the frames that both have; inf where too few are common or one differs too much.

    in: (N, POSITIONS) uint64 each. out: (N,) float32
    """
    common = (one != prints.NONE) & (two != prints.NONE)
    apart = np.where(common, np.bitwise_count(one ^ two), 0)
    count = common.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = (apart.sum(axis=1) / count).astype(np.float32)
    return np.where((count >= COMMON) & (apart.max(axis=1, initial=0) <= WORST_BITS), mean, np.float32(np.inf))


def components(count: int, one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """The smallest node that each of `count` nodes is connected with, over edges one[i] - two[i] (int64)."""
    label = np.arange(count)
    while len(one):
        low = np.minimum(label[one], label[two])
        for end in (one, two):
            np.minimum.at(label, label[end], low)  # the root itself moves, so whole trees join at once
        while (jumped := label[label]).tobytes() != label.tobytes():
            label = jumped
        apart = label[one] != label[two]
        one, two = one[apart], two[apart]
    return label


def _nearest(
    count: int, group: np.ndarray, clip: np.ndarray, a: np.ndarray, b: np.ndarray, bits: np.ndarray
) -> np.ndarray:
    """Per source group the bits to the nearest clip of another one, 0 for the same bytes; (count,) float32.

    group, clip: (N,) appearances; a, b, bits: the edges between clips.
    """
    nearest = np.full(count, np.inf, np.float32)
    total = int(clip.max(initial=-1)) + 1
    low, high = np.full(total, count), np.full(total, -1)
    np.minimum.at(low, clip, group)
    np.maximum.at(high, clip, group)
    np.minimum.at(nearest, group[low[clip] != high[clip]], 0)  # the very same file in two footages
    foreign = (low[a] != low[b]) | (high[a] != high[b])  # an edit that resembles its own source is no news
    best = np.full(total, np.inf, np.float32)
    for end in (a, b):
        np.minimum.at(best, end[foreign], bits[foreign])
    np.minimum.at(nearest, group, best[clip])
    return nearest


def _prints(root: str) -> tuple[by_digest.ByDigest, np.ndarray]:
    """The newest row of each sample digest (column row), and all rows: (n, 2, POSITIONS) uint64, source and target."""
    columns = ["sample_digest", "signals_version", "created_at", "prints_source", "prints_target"]
    parts: list[by_digest.Part] = []
    words, count = [np.zeros((0, 2, prints.POSITIONS), np.uint64)], 0
    for _, table in storage.each_part(storage.join(root, "signals"), tables.SIGNALS, columns):
        table = table.filter(pc.equal(table["signals_version"], pa.scalar(SIGNALS_VERSION, pa.int16())))
        time = np.asarray(table["created_at"].cast(pa.int64()).fill_null(0))
        row = np.arange(count, count + table.num_rows)
        parts.append((by_digest.keys_of(table["sample_digest"]), {"row": row, "created_at": time}))
        words.append(np.stack([_words(table[f"prints_{s}"]) for s in ("source", "target")], axis=1))
        count += table.num_rows
    return by_digest.newest(parts, ["row"]), np.concatenate(words)


def _words(column: pa.ChunkedArray) -> np.ndarray:
    """(n, POSITIONS) uint64; null is NONE at every place."""
    found = np.zeros((len(column), prints.POSITIONS), np.uint64)
    flat = column.combine_chunks().flatten().to_numpy(zero_copy_only=False).view(np.uint64)
    there = column.is_valid().to_numpy()
    found[there] = flat.reshape(-1, prints.POSITIONS)
    return found


def told(counts: dict[str, Any]) -> str:
    """The counts in a line."""
    text = f"near-duplicates: {counts['groups']} groups of {counts['footages']} footages, {counts['samples']} samples"
    left = counts["beside_heldout"]
    return f"{text}; not trained on, because they resemble held-out footage: {left}" if left else text
