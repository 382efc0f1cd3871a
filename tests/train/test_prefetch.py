"""Reading ahead: order, errors, bounds, and an end that leaves no thread behind."""

from __future__ import annotations

import threading
import time

import pytest

from pipelines.train.prefetch import Ahead


def test_order_and_end() -> None:
    ahead = Ahead(lambda: iter(range(5)))
    assert list(ahead) == [0, 1, 2, 3, 4]
    assert next(ahead, None) is None
    ahead.close()


def test_error_comes_where_the_item_was_due() -> None:
    def make():
        yield 1
        raise OSError("disk gone")

    ahead = Ahead(make)
    assert next(ahead) == 1
    for _ in range(2):
        with pytest.raises(OSError, match="disk gone"):
            next(ahead)
    ahead.close()


def test_starts_at_once_stays_bounded_and_closes() -> None:
    made: list[int] = []

    def make():
        for i in range(1000):
            made.append(i)
            yield i

    before = threading.active_count()
    ahead = Ahead(make, depth=2)
    time.sleep(0.3)
    assert made == [0, 1, 2]  # two wait, one is in hand
    ahead.close()
    assert threading.active_count() == before
