"""Sums beyond 64 bit are those of Python's integers, of few values and of many."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pimserve.scheduler.exact import exact_dot, exact_sum

VALUES = st.lists(st.integers(-(2**63), 2**63 - 1), max_size=6)


@pytest.mark.parametrize("times", [1, 10, 11, 100])
@given(VALUES)
def test_a_sum_is_exact(times: int, values: list[int]) -> None:
    assert exact_sum(np.array(values * times, np.int64)) == sum(values) * times


@pytest.mark.parametrize("times", [1, 10, 11, 100])
@given(st.lists(st.tuples(st.integers(0, 2**62), st.integers(0, 2**31)), max_size=6))
def test_a_sum_of_products_is_exact(times: int, pairs: list[tuple[int, int]]) -> None:
    values, weights = (np.array(column * times, np.int64) for column in ([a for a, _ in pairs], [b for _, b in pairs]))
    assert exact_dot(values, weights) == sum(a * b for a, b in pairs) * times
