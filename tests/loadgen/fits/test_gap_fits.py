"""Shapes that make gaps most likely, against those that the gaps were drawn with, and against another way."""

import math

import numpy as np
import pytest
from scipy import stats

from pimserve.loadgen.fits.gap_fits import gamma_shape, weibull_shape_of

N = 50_000


@pytest.mark.parametrize("shape", [0.05, 0.25, 1.0, 4.0, 100.0])
def test_gamma(shape):
    gaps = np.random.default_rng(1).gamma(shape, 3 / shape, N)
    found = gamma_shape(gaps)
    assert found == pytest.approx(shape, rel=4 * 1.5 / math.sqrt(N))
    assert found == pytest.approx(stats.gamma.fit(gaps[:2000], floc=0)[0], rel=0.1)
    assert gamma_shape(gaps[:2000]) == pytest.approx(stats.gamma.fit(gaps[:2000], floc=0)[0], rel=1e-3)


@pytest.mark.parametrize("shape", [0.3, 0.6, 1.0, 3.0, 50.0])
def test_weibull(shape):
    gaps = 7 * np.random.default_rng(2).weibull(shape, N)
    assert weibull_shape_of(gaps) == pytest.approx(shape, rel=4 * 0.8 / math.sqrt(N))
    few = gaps[:2000]
    assert weibull_shape_of(few) == pytest.approx(stats.weibull_min.fit(few, floc=0)[0], rel=1e-3)


def test_gaps_of_zero_are_left_out():
    gaps = np.random.default_rng(3).exponential(2, 1000)
    with_zeros = np.concatenate([gaps, np.zeros(500)])
    assert gamma_shape(with_zeros) == gamma_shape(gaps)
    assert weibull_shape_of(with_zeros) == weibull_shape_of(gaps)


def test_gaps_that_are_all_alike_have_the_largest_shape():
    assert gamma_shape(np.full(10, 3.0)) == pytest.approx(1e6, rel=1e-6)
    assert weibull_shape_of(np.full(10, 3.0)) == pytest.approx(2000, rel=1e-6)
