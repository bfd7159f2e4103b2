"""Length laws: moments, ranges, refusals."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from pimserve.loadgen.lengths import LengthSpec

N = 100_000
adapter = TypeAdapter(LengthSpec)


def draw(spec, n=N, seed=0):
    return adapter.validate_python(spec).sample(np.random.default_rng(seed), n)


def test_fixed():
    assert set(draw({"kind": "fixed", "tokens": 7}, 50)) == {7}


def test_uniform_covers_both_ends_evenly():
    counts = np.bincount(draw({"kind": "uniform", "low": 3, "high": 12}), minlength=13)
    assert counts[:3].sum() == 0
    assert counts[3:].max() < N / 10 + 5 * math.sqrt(N * 0.09)
    assert counts[3:].min() > N / 10 - 5 * math.sqrt(N * 0.09)


def test_normal_far_from_its_ends():
    sample = draw({"kind": "normal", "mean": 1000, "std": 100})
    assert sample.mean() == pytest.approx(1000, abs=4 * 100 / math.sqrt(N))
    assert sample.std() == pytest.approx(100, rel=0.02)


def test_truncated_normal_is_redrawn_not_clipped():
    # Half-normal: everything below the mean is cut, so the mean moves up by std * sqrt(2 / pi).
    sample = draw({"kind": "normal", "mean": 1000, "std": 200, "min": 1000, "max": 5000})
    assert sample.min() == 1000
    assert sample.mean() == pytest.approx(1000 + 200 * math.sqrt(2 / math.pi), abs=3)
    assert np.mean(sample == 1000) < 0.01


def test_half_of_a_law_near_an_end_is_enough():
    assert draw({"kind": "normal", "mean": 100, "std": 1, "max": 100}, 200).max() == 100
    assert draw({"kind": "lognormal", "median": 1, "sigma": 10}, 200).min() == 1
    assert draw({"kind": "normal", "mean": 0.8, "std": 1, "max": 5}, 200).min() == 1


def test_lognormal_median_and_sigma():
    sample = draw({"kind": "lognormal", "median": 500, "sigma": 0.8})
    assert np.median(sample) == pytest.approx(500, rel=0.02)
    assert np.log(sample).std() == pytest.approx(0.8, rel=0.02)


@pytest.mark.parametrize("mean", [1, 1.5, 200])
def test_geometric_mean_and_support(mean):
    sample = draw({"kind": "geometric", "mean": mean})
    assert sample.min() == 1
    assert sample.mean() == pytest.approx(mean, abs=4 * math.sqrt(mean * (mean - 1) / N))
    assert sample.std() == pytest.approx(math.sqrt(mean * (mean - 1)), rel=0.03)


def test_quantiles_pass_through_the_knots():
    sample = draw({"kind": "quantiles", "knots": [[0, 10], [0.5, 100], [0.9, 200], [1, 1000]]})
    assert np.percentile(sample, [50, 90]) == pytest.approx([100, 200], rel=0.02)
    assert sample.mean() == pytest.approx(0.5 * 55 + 0.4 * 150 + 0.1 * 600, rel=0.02)
    assert sample.min() >= 10
    assert sample.max() <= 1000


@pytest.mark.parametrize(("theta", "low", "high"), [(0, 5, 24), (0.6, 1, 400), (1, 1, 50), (2.5, 100, 300)])
def test_zipf_weighs_each_length_by_a_power(theta, low, high):
    sample = draw({"kind": "zipf", "theta": theta, "min": low, "max": high})
    lengths = np.arange(low, high + 1, dtype=float)
    expected = lengths**-theta / (lengths**-theta).sum()
    found = np.bincount(sample, minlength=high + 1)[low:] / N
    assert np.all(np.abs(found - expected) <= 5 * np.sqrt(expected / N))
    assert sample.mean() == pytest.approx((lengths * expected).sum(), rel=0.02)


@pytest.mark.parametrize("weights", [None, [1, 2, 0, 5]])
def test_empirical_lengths_are_as_frequent_as_their_weights(weights):
    sample = draw({"kind": "empirical", "values": [7, 300, 8, 7], "weights": weights})
    shares = np.array(weights or [1, 1, 1, 1]) / sum(weights or [1, 1, 1, 1])
    expected = {7: shares[0] + shares[3], 300: shares[1], 8: shares[2]}
    for length, share in expected.items():
        assert np.mean(sample == length) == pytest.approx(share, abs=4 * math.sqrt(0.25 / N))
    assert set(sample) == {length for length, share in expected.items() if share}


SPECS = [
    {"kind": "zipf", "theta": 0.8, "min": 3, "max": 90},
    {"kind": "empirical", "values": [4, 90, 2], "weights": [1, 0, 2.5]},
    {"kind": "uniform", "low": 1, "high": 9},
    {"kind": "normal", "mean": 20, "std": 15, "min": 5, "max": 60},
    {"kind": "lognormal", "median": 3, "sigma": 1.5, "max": 40},
    {"kind": "geometric", "mean": 4},
    {"kind": "quantiles", "knots": [[0, 1], [0.3, 1], [1, 30]]},
]


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec["kind"])
@given(n=st.integers(0, 400), seed=st.integers(0, 2**40))
def test_lengths_are_positive_and_a_longer_draw_extends_a_shorter(spec, n, seed):
    sample = draw(spec, n, seed)
    assert sample.dtype == np.int64
    assert len(sample) == n
    assert np.all(sample >= spec.get("min", 1))
    assert np.all(sample <= spec.get("max", spec.get("high", 10**7)))
    np.testing.assert_array_equal(draw(spec, n + 50, seed)[:n], sample)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            {"kind": "pareto"},
            "'fixed', 'uniform', 'normal', 'lognormal', 'geometric', 'quantiles', 'zipf', 'empirical'",
        ),
        ({"kind": "fixed", "tokens": 0}, "greater than or equal to 1"),
        ({"kind": "fixed", "tokens": 10_000_001}, "less than or equal to 10000000"),
        ({"kind": "fixed", "tokens": 1.5}, "integer"),
        ({"kind": "uniform", "low": 5, "high": 4}, "must be at least low"),
        ({"kind": "normal", "mean": math.nan, "std": 1}, "finite number"),
        ({"kind": "normal", "mean": 10, "std": 1, "min": 50, "max": 60}, "at least 0.01 must"),
        ({"kind": "normal", "mean": 10, "std": 1, "min": 60, "max": 50}, "must be at least min"),
        ({"kind": "lognormal", "median": 1, "sigma": 0.1, "min": 900}, "at least 0.01 must"),
        ({"kind": "geometric", "mean": 0.5}, "greater than or equal to 1"),
        ({"kind": "quantiles", "knots": [[0, 1]]}, "at least 2 items"),
        ({"kind": "quantiles", "knots": [[0.1, 1], [1, 2]]}, "from 0"),
        ({"kind": "quantiles", "knots": [[0, 1], [0.5, 2]]}, "to 1"),
        ({"kind": "quantiles", "knots": [[0, 5], [1, 2]]}, "must not decrease"),
        ({"kind": "fixed", "tokens": 5, "mean": 2}, "Extra inputs"),
        ({"kind": "zipf", "theta": 1, "min": 5, "max": 4}, "must be at least min"),
        ({"kind": "zipf", "theta": 1}, "Field required"),
        ({"kind": "zipf", "theta": -1, "max": 4}, "greater than or equal to 0"),
        ({"kind": "empirical", "values": []}, "at least 1 item"),
        ({"kind": "empirical", "values": [0]}, "greater than or equal to 1"),
        ({"kind": "empirical", "values": [1, 2], "weights": [1]}, "weights needs 2 numbers, one for each of values"),
        ({"kind": "empirical", "values": [1, 2], "weights": [0, 0]}, "one above 0"),
        ({"kind": "empirical", "values": [1], "file": "x.csv"}, "give values"),
        ({"kind": "empirical", "values": [1], "column": "x"}, "a column has no effect without file"),
    ],
)
def test_bad_spec_is_refused(spec, message):
    with pytest.raises(ValidationError, match=message):
        adapter.validate_python(spec)
