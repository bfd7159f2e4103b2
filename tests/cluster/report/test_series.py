"""Long tables as short series: nothing is lost, and no peak is hidden."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pimserve.cluster.report.series import cdf, grid, level, rate, spans

times = st.integers(0, 10**6).map(lambda tick: tick / 10**4)


@st.composite
def intervals(draw):
    """(begin, end, values) of intervals that do not overlap, some of no length."""
    n = draw(st.integers(1, 12))
    ends = sorted(draw(st.lists(times, min_size=2 * n, max_size=2 * n)))
    values = draw(st.lists(st.integers(0, 9), min_size=n, max_size=n))
    return np.array(ends[::2]), np.array(ends[1::2]), np.array(values, float)


@given(intervals(), st.integers(1, 40))
def test_means_of_bins_add_up_to_the_integral(table, bins):
    begin, end, values = table
    found = spans(begin, end, values, grid(100.0, bins))
    assert (found.mean * np.diff(found.edges)).sum() == pytest.approx(((end - begin) * values).sum(), abs=1e-9)


@given(intervals(), st.integers(1, 40))
def test_bands_hold_every_value_and_the_mean(table, bins):
    begin, end, values = table
    found = spans(begin, end, values, grid(100.0, bins))
    assert (found.low <= found.mean).all()
    assert (found.mean <= found.high).all()
    assert found.high.max() == values.max()
    for first, last, value in zip(begin, end, values, strict=True):
        inside = (found.edges[1:] > first) & (found.edges[:-1] < last)
        assert (found.low[inside] <= value).all()
        assert (found.high[inside] >= value).all()


def test_what_holds_between_intervals_is_nothing():
    found = spans(np.array([1.0, 3.0]), np.array([2.0, 4.0]), np.array([5.0, 7.0]), np.array([0.0, 1, 2, 3, 4]))
    assert found.mean.tolist() == [0, 5, 0, 7]
    assert found.low.tolist() == [0, 5, 0, 7]


def test_without_intervals_there_is_nothing():
    found = spans(np.zeros(0), np.zeros(0), np.zeros(0), grid(10.0, 4))
    assert found.high.tolist() == [0, 0, 0, 0]


@given(st.lists(st.tuples(times, times), max_size=30), st.integers(1, 20))
def test_a_level_counts_who_is_there(stays, bins):
    stays = [(min(stay), max(stay)) for stay in stays]
    found = level([a for a, _ in stays], [b for _, b in stays], grid(100.0, bins))
    assert (found.mean * np.diff(found.edges)).sum() == pytest.approx(sum(b - a for a, b in stays), abs=1e-6)
    moments = sorted({moment for stay in stays for moment in stay})
    between = [(a + b) / 2 for a, b in pairwise(moments) if a < (a + b) / 2 < b]
    peak = max((sum(a <= moment < b for a, b in stays) for moment in between), default=0)
    assert found.high.max() == peak


def test_who_never_goes_stays_to_the_end():
    found = level([1.0, 2.0], [3.0], grid(4.0, 4))
    assert found.mean.tolist() == [0, 1, 2, 1]


def test_rates_count_all_events():
    assert rate([0.0, 0.5, 3.9, 4.0], grid(4.0, 2)).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("n", [1, 2, 800, 801, 5000, 100_000])
def test_a_distribution_keeps_both_ends_and_few_points(n):
    ordered = np.sort(np.random.default_rng(n).exponential(size=n))
    x, y = cdf(ordered)
    assert len(x) <= 802
    assert x[0] == ordered[0]
    assert x[-1] == ordered[-1]
    assert y[-1] == 1.0
    assert (np.diff(y) > 0).all()
    assert y == pytest.approx(np.searchsorted(ordered, x, side="right") / n)


def test_the_tail_of_a_distribution_keeps_its_single_samples():
    x, _ = cdf(np.arange(100_000.0))
    assert x[-10:].tolist() == list(np.arange(99_990.0, 100_000.0))
