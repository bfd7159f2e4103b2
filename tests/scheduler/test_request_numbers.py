"""Numbers of requests hold for good, whatever is injected before them."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pimserve.scheduler.request_numbers import RequestNumbers

INSERTIONS = st.lists(
    st.tuples(st.floats(0, 1), st.integers(1, 4)), max_size=8
)  # where, of the table's length, and how many


@given(st.integers(1, 12), INSERTIONS)
def test_a_number_stays_with_its_request(workload: int, insertions: list[tuple[float, int]]) -> None:
    numbers, table = RequestNumbers.of_workload(workload), list(range(workload))
    for where, count in insertions:
        at, first = round(where * len(table)), numbers.end
        table[at:at] = range(first, first + count)  # the table holds what each request was told
        numbers = numbers.inserted(at, count, first)
        again = RequestNumbers.of_state(len(table), json.loads(json.dumps(numbers.state())))
        for each in (numbers, again):
            assert each.by_row().tolist() == table
            assert [table[each.row_of(number) or 0] for number in range(len(table))] == list(range(len(table)))
            assert each.end == len(table)


def test_numbers_that_were_told_are_not_given_again() -> None:
    numbers = RequestNumbers.of_workload(3).taken_to(5)  # 3 and 4 are to be injected again
    assert numbers.row_of(4) is None
    numbers = numbers.inserted(0, 1, numbers.end)
    assert numbers.by_row().tolist() == [5, 0, 1, 2]
    numbers = numbers.inserted(2, 2, 3)
    assert numbers.by_row().tolist() == [5, 0, 3, 4, 1, 2]
    assert (numbers.row_of(4), numbers.end) == (3, 6)


@pytest.mark.parametrize("number", [-1, 3])
def test_numbers_that_nobody_has(number: int) -> None:
    with pytest.raises(IndexError):
        RequestNumbers.of_workload(3).row_of(number)


def test_the_table_of_numbers_is_small() -> None:
    numbers = RequestNumbers.of_workload(10**6).inserted(5, 1000, 10**6)
    assert np.array_equal(np.sort(numbers.by_row()), np.arange(10**6 + 1000))
    assert len(json.dumps(numbers.state())) < 20_000
