"""The closed forms: exact shares, exact inverses, permutations."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.mixture.order import Interleave, epoch_keys, integer_weights, key_of, keys_of, permute, uniform

WEIGHTS = [[1], [1, 1], [1, 3], [1, 2, 3, 4], [7, 1, 1, 90, 13], [720087, 1015170, 768470, 3936]]


@pytest.mark.parametrize("weights", WEIGHTS)
def test_interleave_is_even_at_every_position(weights):
    deal = Interleave(weights)
    leaf, ordinal = deal.locate(np.arange(3000))
    for i, weight in enumerate(weights):
        taken = np.cumsum(leaf == i)
        assert np.abs(taken - np.arange(1, 3001) * weight / sum(weights)).max() < 2
        assert np.array_equal(ordinal[leaf == i], np.arange(taken[-1]))
        assert deal.count(i, 3000) == taken[-1]


@pytest.mark.parametrize("weights", WEIGHTS)
def test_interleave_has_an_inverse_far_out_too(weights):
    deal = Interleave(weights)
    for position in [*range(200), 10**6, 4 * 10**8 + 3]:
        leaf, ordinal = deal.locate(position)
        assert deal.position(int(leaf[0]), int(ordinal[0])) == position


@pytest.mark.parametrize("size", [1, 2, 3, 5, 16, 17, 1000, 70001])
def test_permute_is_a_bijection_with_an_inverse_and_another_one_per_epoch(size):
    positions = np.arange(size)
    first, second = (permute(positions, size, epoch_keys(key_of("x"), np.asarray([e]))) for e in (0, 1))
    assert np.array_equal(np.sort(first), positions)
    assert np.array_equal(permute(first, size, epoch_keys(key_of("x"), np.asarray([0])), inverse=True), positions)
    assert size < 16 or not np.array_equal(first, second)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 600), min_size=1, max_size=5), st.integers(0, 2**32))
def test_permute_of_many_sizes_at_once_is_that_of_each(sizes, seed):
    keys = epoch_keys(seed, np.arange(len(sizes)))
    which = np.repeat(np.arange(len(sizes)), sizes)
    positions = np.concatenate([np.arange(n) for n in sizes])
    together = permute(positions, np.asarray(sizes)[which], keys[which])
    for i, size in enumerate(sizes):
        alone = permute(np.arange(size), size, keys[i])
        assert np.array_equal(together[which == i], alone)
        assert np.array_equal(np.sort(alone), np.arange(size))
        assert np.array_equal(permute(alone, size, keys[i], inverse=True), np.arange(size))


def test_keys_of_a_run_are_the_keys_one_by_one():
    assert keys_of((3, 17), 12) == [key_of(3, 17, i) for i in range(12)]


def test_permute_mixes_well():
    """Neighbours of the order are not neighbours in the data."""
    order = permute(np.arange(4096), 4096, epoch_keys(7, np.asarray([0])))
    steps = np.abs(np.diff(order))
    assert 1200 < steps.mean() < 1530  # a random order: 4096 / 3
    assert abs(np.corrcoef(np.arange(4096), order)[0, 1]) < 0.06


def test_values_are_the_same_on_every_machine():
    """Frozen: a change here changes every plan, and needs a new build.VERSION."""
    assert key_of(0, 5, 3) == 5884870369876040121
    assert permute(np.arange(8), 8, epoch_keys(1, np.asarray([0]))).tolist() == [4, 2, 6, 1, 0, 7, 3, 5]
    assert Interleave([1, 3]).locate(np.arange(8))[0].tolist() == [1, 0, 1, 1, 1, 0, 1, 1]


def test_weights_become_integers():
    assert integer_weights([0.1, 0.3, 2]) == [1, 3, 20]
    assert integer_weights([Fraction(1, 3), Fraction(2, 3)]) == [1, 2]
    wild = integer_weights([0.123456789123, 0.7, 1e-12])
    assert min(wild) == 1
    assert abs(wild[0] / sum(wild) - 0.123456789123 / 0.823456789124) < 1e-7


def test_uniform_draws_are_uniform_and_apart():
    draws, other = uniform(np.arange(4000), "window"), uniform(np.arange(4000), "drop")
    assert 0 <= draws.min() < 0.01
    assert 0.99 < draws.max() < 1
    assert abs(draws.mean() - 0.5) < 0.02
    assert abs(np.corrcoef(draws, other)[0, 1]) < 0.05
