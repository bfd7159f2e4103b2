"""Laws of lengths: simple where that is near, and near in any case."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pimserve.loadgen.fits.length_fits import fit_length, fit_lengths
from pimserve.loadgen.fits.trace_fit import ks_distance
from pimserve.loadgen.length_figures import rank_correlation
from pimserve.loadgen.length_pairs import LengthsSpec
from pimserve.loadgen.streams import Streams

N = 20_000
RNG = np.random.default_rng


def sampled(inputs, outputs, n=10 * N):
    spec = LengthsSpec.model_validate(fit_lengths(inputs, outputs))
    return spec.sample(Streams(1), n, None, None)


def test_the_simplest_law_is_taken():
    assert fit_length(np.full(9, 7)) == {"kind": "fixed", "tokens": 7}
    few = fit_length(np.array([1, 5, 5, 5]))
    assert few == {"kind": "empirical", "values": [1, 5], "weights": [1, 3]}
    lognormal = fit_length(np.rint(RNG(1).lognormal(6, 0.8, N)).astype(np.int64))
    assert lognormal["kind"] == "lognormal"
    assert lognormal["median"] == pytest.approx(np.exp(6), rel=0.02)
    assert lognormal["sigma"] == pytest.approx(0.8, rel=0.02)


def mixtures():
    spikes = np.repeat([418, 1020, 4085], [6000, 3000, 2000])
    yield np.concatenate([spikes, RNG(2).integers(1, 14_000, 9000)])
    yield np.concatenate([RNG(3).geometric(0.1, 15_000), RNG(4).integers(100, 2000, 5000)])
    yield np.rint(RNG(5).pareto(1.2, N) * 50 + 1).clip(1, 200_000).astype(np.int64)


@pytest.mark.parametrize("tokens", list(mixtures()), ids=["spikes", "small", "tail"])
def test_quantiles_are_near_everywhere(tokens):
    law = fit_length(tokens)
    assert law["kind"] == "quantiles"
    found, _ = sampled(tokens, np.full(len(tokens), 3))
    assert ks_distance(tokens, found) < 0.02
    for percent in (50, 90, 99):
        assert np.percentile(found, percent) == pytest.approx(np.percentile(tokens, percent), rel=0.12)
    assert (found.min() >= tokens.min(), found.max() <= tokens.max()) == (True, True)


@given(st.lists(st.one_of(st.integers(1, 60), st.integers(1, 10_000)), min_size=60, max_size=300))
def test_any_lengths_have_a_law(lengths):
    tokens = np.array(lengths)
    found, _ = sampled(tokens, np.full(len(tokens), 3), 2000)
    assert ks_distance(tokens, found) < 0.09  # 0.03 of it by the draw


def test_lengths_that_hang_together_are_drawn_together():
    inputs = np.rint(RNG(6).lognormal(6, 1, N)).astype(np.int64) + 1
    outputs = np.rint(200_000 / inputs * RNG(7).lognormal(0, 0.7, N)).astype(np.int64) + 1
    found = sampled(inputs, outputs)
    assert rank_correlation(*found) == pytest.approx(rank_correlation(inputs, outputs), abs=0.03)
    assert ks_distance(inputs, found[0]) < 0.02
    assert ks_distance(outputs, found[1]) < 0.02


def test_few_rows_that_hang_together_are_all_kept():
    inputs = np.arange(1, 101)
    joint = fit_lengths(inputs, 2 * inputs)["joint"]
    assert sorted(joint["pairs"]) == [[n, 2 * n] for n in range(1, 101)]
