"""Closed forms behind the plan: who comes at position n, and in which order, without state or tables.

Everything is integer arithmetic on int64 / uint64, so every machine computes the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

MAX_WEIGHT = 1 << 28  # weights sum to at most this ...
MAX_POSITION = 1 << 33  # ... so that 2 * position * weight stays below 2**63


def key_of(*parts: object) -> int:
    """A 63-bit integer from anything that prints the same everywhere (sha256)."""
    text = "\x1f".join(str(p) for p in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def keys_of(parts: tuple[object, ...], count: int) -> list[int]:
    """`key_of(*parts, i)` for i in 0..count-1."""
    start = hashlib.sha256(("\x1f".join(str(p) for p in parts) + "\x1f").encode())
    found = []
    for i in range(count):
        state = start.copy()
        state.update(b"%d" % i)
        found.append(int.from_bytes(state.digest()[:8], "big") >> 1)
    return found


def integer_weights(weights: Sequence[float | Fraction]) -> list[int]:
    """Positive weights as integers, exact where their common denominator is small, else to 1 part in 2**28."""
    exact = [Fraction(w).limit_denominator(1 << 40) if isinstance(w, Fraction) else Fraction(str(w)) for w in weights]
    total = sum(exact)
    common = 1
    for share in exact:
        ratio = share / total
        common = common * ratio.denominator // _gcd(common, ratio.denominator)
        if common > MAX_WEIGHT:
            return [max(1, round(w / total * (MAX_WEIGHT - len(exact)))) for w in exact]
    return [int(w / total * common) for w in exact]


def _gcd(a: int, b: int) -> int:
    while b:
        a, b = b, a % b
    return a


class Interleave:
    """Deal positions 0, 1, 2, ... to leaves in proportion to integer weights, as evenly as possible.

    A balanced tree of two-way splits; at each split the left side has taken round(n * left / all) of the
    first n. The count of every leaf so stays within about two of its exact share, at any n.
    """

    def __init__(self, weights: Sequence[int]) -> None:
        if not weights or min(weights) < 1 or sum(weights) > MAX_WEIGHT:
            raise ValueError(f"weights must be positive integers with a sum up to {MAX_WEIGHT}")
        self.weights = [int(w) for w in weights]
        self._before = np.concatenate([[0], np.cumsum(self.weights)]).tolist()

    def locate(self, positions: np.ndarray | int) -> tuple[np.ndarray, np.ndarray]:
        """For each position: its leaf, and how many earlier positions went to that leaf."""
        n = np.atleast_1d(np.asarray(positions, np.int64))
        if n.size and (n.min() < 0 or n.max() >= MAX_POSITION):
            raise ValueError(f"positions must lie in 0..{MAX_POSITION - 1}")
        leaf, ordinal = np.zeros(n.shape, np.int64), np.zeros(n.shape, np.int64)
        self._descend(0, len(self.weights), n, np.arange(n.size), leaf, ordinal)
        return leaf, ordinal

    def count(self, leaf: int, n: int) -> int:
        """How many of the first n positions go to the leaf."""
        lo, hi = 0, len(self.weights)
        while hi - lo > 1:
            mid = (lo + hi) // 2
            left = self._left(lo, mid, hi, n)
            lo, hi, n = (lo, mid, left) if leaf < mid else (mid, hi, n - left)
        return n

    def position(self, leaf: int, ordinal: int) -> int:
        """The inverse of `locate`: where the leaf's ordinal-th position is."""
        path, lo, hi = [], 0, len(self.weights)
        while hi - lo > 1:
            mid = (lo + hi) // 2
            path.append((lo, mid, hi, leaf < mid))
            lo, hi = (lo, mid) if leaf < mid else (mid, hi)
        for lo, mid, hi, is_left in reversed(path):
            left, whole = self._before[mid] - self._before[lo], self._before[hi] - self._before[lo]
            if is_left:
                ordinal = -(-whole * (2 * ordinal + 1) // (2 * left)) - 1
            else:
                ordinal = whole * (2 * ordinal + 1) // (2 * (whole - left))
        return ordinal

    def _left(self, lo: int, mid: int, hi: int, n: int) -> int:
        left, whole = self._before[mid] - self._before[lo], self._before[hi] - self._before[lo]
        return (2 * n * left + whole) // (2 * whole)

    def _descend(
        self, lo: int, hi: int, n: np.ndarray, where: np.ndarray, leaf: np.ndarray, ordinal: np.ndarray
    ) -> None:
        if not n.size:
            return
        if hi - lo == 1:
            leaf[where], ordinal[where] = lo, n
            return
        mid = (lo + hi) // 2
        left, whole = self._before[mid] - self._before[lo], self._before[hi] - self._before[lo]
        taken = (2 * n * left + whole) // (2 * whole)
        goes = (2 * (n + 1) * left + whole) // (2 * whole) > taken
        self._descend(lo, mid, taken[goes], where[goes], leaf, ordinal)
        self._descend(mid, hi, (n - taken)[~goes], where[~goes], leaf, ordinal)


def mix(values: np.ndarray) -> np.ndarray:
    """A bijective scrambling of an array of 64-bit words (the finaliser of splitmix64)."""
    x = np.asarray(values, np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def uniform(seeds: np.ndarray, purpose: str) -> np.ndarray:
    """A number in [0, 1) that belongs to (seed, purpose), for each seed (float64)."""
    words = mix(mix(np.asarray(seeds, np.uint64)) ^ np.uint64(key_of(purpose)))
    return (words >> np.uint64(11)).astype(np.float64) / float(1 << 53)


def permute(positions: np.ndarray, size: int | np.ndarray, keys: np.ndarray, inverse: bool = False) -> np.ndarray:
    """Where each position of 0..size-1 goes in the permutation that its key names (int64).

    size: one for all, or one for each position. A four-round Feistel network on the smallest number of bits that
    holds `size`, walked until it falls inside: less than twice on average.
    """
    value = np.array(positions, np.uint64, copy=True, ndmin=1)
    keys, sizes = (np.broadcast_to(np.asarray(a, np.uint64), value.shape) for a in (keys, size))
    bits = np.broadcast_to(_bits(np.asarray(size, np.int64)), value.shape)
    pending = np.flatnonzero(sizes > 1)
    while pending.size:
        value[pending] = _feistel(value[pending], keys[pending], bits[pending], inverse)
        pending = pending[value[pending] >= sizes[pending]]
    return value.astype(np.int64)


def _bits(size: np.ndarray) -> np.ndarray:
    """The smallest number of bits, at least one, that holds 0..size-1 (uint64)."""
    return np.frexp(np.maximum(size - 1, 1).astype(np.float64))[1].astype(np.uint64)  # exact below 2**53


def _feistel(value: np.ndarray, keys: np.ndarray, bits: np.ndarray, inverse: bool) -> np.ndarray:
    """Left and right halves differ by a bit in length where `bits` is odd, and change places in every round."""
    one = np.uint64(1)
    short = bits >> one
    masks = (one << (bits - short)) - one, (one << short) - one
    left, right = value >> short, value & masks[1]
    for turn in range(4):
        number = 3 - turn if inverse else turn
        scramble, mask = keys ^ np.uint64(number << 60), masks[number & 1]
        if inverse:
            left, right = right ^ (mix(scramble ^ left) & mask), left
        else:
            left, right = right, left ^ (mix(scramble ^ right) & mask)
    return (left << short) | right


def epoch_keys(base: int | np.ndarray, epochs: np.ndarray) -> np.ndarray:
    """One permutation key per epoch of a group (uint64). base: of the group, or one for each epoch."""
    return mix(np.asarray(base, np.uint64) ^ mix(np.atleast_1d(np.asarray(epochs, np.uint64))))
