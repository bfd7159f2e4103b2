"""Figures of arrivals: by hand, and as laws."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from pimserve.loadgen.arrival_figures import arrival_figures, bin_counts, dispersion
from pimserve.loadgen.length_figures import length_figures, rank_correlation
from pimserve.loadgen.spec import PS_PER_S

S = PS_PER_S
TIMES = st.lists(st.integers(0, 300), min_size=1, max_size=60).map(lambda times: np.array(sorted(times)) * S // 10)


def test_by_hand():
    figures = arrival_figures(np.array([5, 5, 6, 9]) * S)
    assert (figures.n, figures.span_s, figures.rate_per_s) == (4, 4, 0.75)
    assert figures.gap_mean_s == pytest.approx(4 / 3)
    assert figures.gap_max_s == 3
    assert figures.gap_zero_fraction == pytest.approx(1 / 3)
    assert figures.gap_cv == pytest.approx(np.std([0, 1, 3]) / (4 / 3))
    # 2, 1, 0 and 1 in the four whole bins; the last one has its end too
    assert figures.dispersion == {1: pytest.approx(0.5), 10: None, 60: None}


@pytest.mark.parametrize(("times", "mean"), [([7], None), ([7, 7, 7], 0)])
def test_without_a_span_there_is_neither_rate_nor_dispersion(times, mean):
    figures = arrival_figures(np.array(times) * S)
    assert (figures.rate_per_s, figures.gap_cv, figures.gap_mean_s) == (None, None, mean)
    assert set(figures.dispersion.values()) == {None}


@given(TIMES, st.sampled_from([0.1, 0.5, 1, 7]))
def test_bins_are_those_of_numpys_histogram(times, width_s):
    after = (times - times[0]) // (S // 10)
    width = round(width_s * 10)
    whole = int(after[-1] // width)
    expected = np.histogram(after, np.arange(whole + 1) * width)[0] if whole else np.zeros(0)
    np.testing.assert_array_equal(bin_counts(times, width_s), expected)
    if whole and expected.any():
        assert dispersion(times, width_s) == pytest.approx(expected.var() / expected.mean())
    else:
        assert dispersion(times, width_s) is None


@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.randoms())
def test_rank_correlation(lengths, shuffle):
    x = np.array(lengths)
    other = list(lengths)
    shuffle.shuffle(other)
    y = np.array(other)
    if len(set(lengths)) == 1:
        assert rank_correlation(x, y) is None
        return
    assert rank_correlation(x, y) == pytest.approx(float(spearmanr(x, y).statistic))
    assert rank_correlation(x, x**2) == pytest.approx(1)
    assert rank_correlation(x, 51 - x) == pytest.approx(-1)


def test_lengths():
    figures = length_figures(np.array([4, 1, 3, 2]))
    assert (figures.n, figures.sum, figures.mean, figures.min, figures.max) == (4, 10, 2.5, 1, 4)
    assert figures.percentiles[50] == 2.5
    assert figures.percentiles[99] == pytest.approx(3.97)
