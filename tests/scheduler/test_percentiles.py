"""Percentiles by nearest rank: names, exact ranks, how many samples they need, and any list of them in a summary."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pimserve.scheduler.distributions import distribution, of_histogram
from pimserve.scheduler.histogram import DurationHistogram
from pimserve.scheduler.percentiles import has_enough, nearest_place, percentile_name, short_of_samples

PERCENT = st.decimals(min_value="0.001", max_value=100, places=3).map(float)


@pytest.mark.parametrize(
    ("percent", "name"), [(50, "p50"), (99.0, "p99"), (99.9, "p99.9"), (99.99999999, "p99.99999999")]
)
def test_they_are_called_by_their_per_cent(percent, name):
    assert percentile_name(percent) == name
    assert float(name[1:]) == percent


@given(st.integers(1, 10**9), PERCENT)
def test_ranks_are_exact(n, percent):
    below = Fraction(str(percent)) * n / 100
    place = nearest_place(n, percent)
    assert 0 <= place < n
    assert place < below <= place + 1  # the smallest rank with that share at or below it


def test_of_a_thousand_samples_the_last_but_one_is_p999():
    assert nearest_place(1000, 99.9) == 998  # 99.9 / 100 * 1000 is more than 999 in floating point
    histogram = DurationHistogram()
    histogram.add(np.array([10**9, 10**12]), np.array([999, 1]))
    assert histogram.percentile_s(99.9) == pytest.approx(1e-6, rel=2**-11)


@pytest.mark.parametrize(
    ("percent", "least"), [(50, 20), (90, 100), (99, 1000), (99.9, 10_000), (99.99, 100_000), (1, 1000)]
)
def test_ten_samples_lie_beyond_one_that_has_enough(percent, least):
    assert has_enough(least, percent)
    assert not has_enough(least - 1, percent)
    assert not has_enough(10**12, 100)  # the largest sample says nothing of larger ones


def test_short_ones_are_named():
    assert short_of_samples(500, [50, 90, 99, 99.9]) == ["p99", "p99.9"]
    assert short_of_samples(0, [50]) == []


@given(st.lists(PERCENT, min_size=1, max_size=5, unique=True), st.integers(1, 300))
def test_a_summary_has_those_that_were_asked_for(percentiles, n):
    values = np.random.default_rng(n).random(n)
    histogram = DurationHistogram()
    histogram.add((values * 1e15).astype(np.int64))
    for found, near in ((distribution(values, percentiles), 1e-12), (of_histogram(histogram, percentiles), 2**-11)):
        assert list(found.percentiles) == [percentile_name(percent) for percent in percentiles]
        for percent in (50, 90, 99, *percentiles):
            exact = np.sort(values)[nearest_place(n, percent)]
            assert found.percentile(percentile_name(percent)) == pytest.approx(exact, rel=near)
        assert found.p99 == found.percentile("p99")
        assert (
            found.few_samples == short_of_samples(n, sorted({50.0, 90.0, 99.0, *percentiles})) or not found.few_samples
        )
