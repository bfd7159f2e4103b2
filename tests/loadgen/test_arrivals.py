"""Arrival processes against their laws: rate, CV, distribution of gaps, dispersion of counts."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pimserve.errors import InputError
from pimserve.loadgen import arrivals as module
from pimserve.loadgen.arrivals import ArrivalSpec, Stage, arrival_times, stages_of
from pimserve.loadgen.spec import PS_PER_S

N = 100_000
PROCESSES = {
    "constant": {"process": "constant", "rate_per_s": 8.0},
    "poisson": {"process": "poisson", "rate_per_s": 8.0},
    "gamma_bursty": {"process": "gamma", "rate_per_s": 8.0, "burstiness": 0.25},
    "gamma_cv": {"process": "gamma", "rate_per_s": 8.0, "cv": 0.5},
}
CV = {"constant": 0.0, "poisson": 1.0, "gamma_bursty": 2.0, "gamma_cv": 0.5}


def times(spec, n=N, duration=None, seed=0):
    return arrival_times(ArrivalSpec.model_validate(spec), np.random.default_rng(seed), n, duration)


def gaps_s(spec, n=N):
    return np.diff(times(spec, n)) / PS_PER_S


def ks(sample, cdf):
    """Kolmogorov-Smirnov distance of a sample from a law."""
    x = cdf(np.sort(sample))
    i = np.arange(len(x))
    return max(np.max(x - i / len(x)), np.max((i + 1) / len(x) - x))


@pytest.mark.parametrize("name", PROCESSES)
def test_mean_rate(name):
    rate = 1 / gaps_s(PROCESSES[name]).mean()
    assert rate == pytest.approx(8.0, rel=max(4 / math.sqrt(N) * CV[name], 1e-12))


@pytest.mark.parametrize("name", PROCESSES)
def test_coefficient_of_variation(name):
    gaps = gaps_s(PROCESSES[name])
    assert gaps.std() / gaps.mean() == pytest.approx(CV[name], rel=0.03, abs=1e-9)


def test_poisson_gaps_are_exponential():
    assert ks(gaps_s(PROCESSES["poisson"]), lambda x: 1 - np.exp(-8 * x)) < 1.63 / math.sqrt(N)


def test_gamma_gaps_follow_erlang_law():
    # Shape 4 (cv 0.5): the CDF is 1 - exp(-y) * sum of y^k / k! for k < 4, with y = shape * rate * x.
    def cdf(x):
        y = 4 * 8 * x
        return 1 - np.exp(-y) * (1 + y + y**2 / 2 + y**3 / 6)

    assert ks(gaps_s(PROCESSES["gamma_cv"]), cdf) < 1.63 / math.sqrt(N)


def test_bursty_gamma_gaps_follow_their_law():
    # Gamma of shape 1/4 has no elementary CDF; integrate u = y^(1/4), which takes the pole at 0 away.
    u = np.linspace(0, 3, 200_001)
    density = 4 * np.exp(-(u**4)) / math.gamma(0.25)
    mass = np.concatenate(([0], np.cumsum((density[1:] + density[:-1]) / 2 * np.diff(u))))
    gaps = gaps_s(PROCESSES["gamma_bursty"])
    assert ks(gaps, lambda x: np.interp((0.25 * 8 * x) ** 0.25, u, mass)) < 1.63 / math.sqrt(N)


@pytest.mark.parametrize("bin_s", [1, 10, 60])
def test_dispersion_of_poisson_counts_is_one(bin_s):
    counts = np.bincount(times(PROCESSES["poisson"]) // (bin_s * PS_PER_S))[:-1]
    assert counts.var() / counts.mean() == pytest.approx(1.0, abs=4 * math.sqrt(2 / len(counts)))


def test_dispersion_of_bursty_counts_tends_to_cv_squared():
    counts = np.bincount(times(PROCESSES["gamma_bursty"]) // (60 * PS_PER_S))[:-1]
    assert counts.var() / counts.mean() == pytest.approx(4.0, rel=4 * math.sqrt(2 / len(counts)))


@pytest.mark.parametrize("bin_s", [1, 10, 60])
def test_nhpp_dispersion_follows_the_rate(bin_s):
    # Counts of an NHPP: variance = mean of the bin means + variance of the bin means.
    series = [[0, 2], [300, 14], [600, 2]]
    arrivals = times({"process": "nhpp", "rate_series": series}, n=None, duration=12_000)
    counts = np.bincount(arrivals // (bin_s * PS_PER_S), minlength=12_000 // bin_s)
    t = (np.arange(600 // bin_s) + 0.5) * bin_s
    means = np.interp(t, [0, 300, 600], [2, 14, 2]) * bin_s
    expected = 1 + means.var() / means.mean()
    assert counts.var() / counts.mean() == pytest.approx(expected, rel=5 * math.sqrt(2 / len(counts)))


def test_nhpp_transformed_by_its_integral_is_poisson():
    arrivals = times({"process": "nhpp", "rate_series": [[0, 0], [10, 20], [30, 20], [40, 0]]}) / PS_PER_S
    cycle, t = np.divmod(arrivals, 40)
    integral = np.where(t < 10, t**2, np.where(t < 30, 100 + 20 * (t - 10), 600 - (40 - t) ** 2)) + 600 * cycle
    assert ks(np.diff(integral), lambda x: 1 - np.exp(-x)) < 1.63 / math.sqrt(N)


SERIES = [
    [[0, 5], [10, 5]],
    [[0, 0], [10, 20], [30, 20], [40, 0]],
    [[0, 3], [5, 3], [5, 40], [8, 0], [9, 0], [20, 7]],
]


@pytest.mark.parametrize("series", SERIES)
def test_the_rate_integrated_up_to_each_arrival_is_the_sum_of_its_exponential_gaps(series):
    """The inversion itself, without statistics: Cinlar's method turns the law's own draws into times."""
    arrivals = times({"process": "nhpp", "rate_series": series}, n=5000, seed=7) / PS_PER_S
    knots, rates = np.array(series, float).T
    areas = np.diff(knots) * (rates[1:] + rates[:-1]) / 2
    cycle, t = np.divmod(arrivals, knots[-1])
    integral = cycle * areas.sum()
    for begin, end, low, high in zip(knots, knots[1:], rates, rates[1:], strict=False):
        inside = np.clip(t - begin, 0, end - begin)
        integral += low * inside + (high - low) / max(end - begin, 1e-300) * inside**2 / 2
    gaps = np.random.default_rng(7).standard_exponential(5000)
    np.testing.assert_allclose(integral, np.cumsum(gaps), rtol=1e-9, atol=1e-9)


def test_nhpp_has_no_arrival_where_the_rate_is_zero():
    t = times({"process": "nhpp", "rate_series": [[0, 5], [10, 5], [10.001, 0], [20, 0], [20.001, 5], [30, 5]]})
    t = t / PS_PER_S % 30
    assert not np.any((t > 10.001) & (t < 20))


def test_constant_starts_at_zero_and_duration_is_half_open():
    np.testing.assert_array_equal(
        times({"process": "constant", "rate_per_s": 4}, n=None, duration=1), [0, 250 * 10**9, 500 * 10**9, 750 * 10**9]
    )


@pytest.mark.parametrize("name", PROCESSES)
def test_more_requests_extend_the_series(name):
    longer = times(PROCESSES[name], n=70_000)  # crosses a block of draws
    np.testing.assert_array_equal(times(PROCESSES[name], n=500), longer[:500])
    duration = float(longer[66_000] / PS_PER_S)
    np.testing.assert_array_equal(times(PROCESSES[name], n=None, duration=duration), longer[:66_000])


STEP = {"process": "nhpp", "rate_series": [[0, 5], [600, 5], [600, 10], [1200, 10]]}


@pytest.mark.parametrize("seed", range(5))
def test_two_points_at_one_time_are_a_step(seed):
    arrivals = times(STEP, n=None, duration=1200, seed=seed) / PS_PER_S
    low, high = (arrivals < 600).sum(), (arrivals >= 600).sum()
    assert low == pytest.approx(3000, abs=4 * 55)  # four standard deviations
    assert high == pytest.approx(6000, abs=4 * 77)


def test_a_step_is_sharp_and_poisson_on_both_sides():
    t = times(STEP) / PS_PER_S
    cycle, within = np.divmod(t, 1200)
    integral = np.where(within < 600, 5 * within, 3000 + 10 * (within - 600)) + 9000 * cycle
    assert ks(np.diff(integral), lambda x: 1 - np.exp(-x)) < 1.63 / math.sqrt(N)


def test_no_request_comes_where_a_step_sets_the_rate_to_zero():
    t = times({"process": "nhpp", "rate_series": [[0, 5], [10, 5], [10, 0], [20, 0], [20, 5], [30, 5]]}) / PS_PER_S
    assert not np.any((t % 30 > 10) & (t % 30 < 20))
    assert len(t) == pytest.approx(5 * 20 / 30 * t[-1], rel=0.02)


def test_stages_lie_between_steps_and_have_their_mean_rates():
    series = ((0, 2), (10, 4), (10, 0), (15, 0), (15, 8), (20, 8), (40, 0))
    found = stages_of(ArrivalSpec(process="nhpp", rate_series=series), 3, 100)
    assert found.stages == (Stage(0, 10, 3), Stage(10, 15, 0), Stage(15, 40, (5 * 8 + 20 * 4) / 25))
    assert found.end_s == 97
    assert stages_of(ArrivalSpec(process="nhpp", rate_series=((0, 1), (5, 9))), 0, 10) is None


@given(
    lengths=st.lists(st.floats(0.5, 50), min_size=2, max_size=5),
    first=st.floats(0, 300),
    stretch=st.tuples(st.floats(0, 300), st.floats(0, 300)).map(sorted),
)
def test_stages_share_all_time_between_them(lengths, first, stretch):
    ends = np.cumsum(lengths).tolist()
    series = [point for a, b in zip([0.0, *ends], ends, strict=False) for point in ((a, 1.0), (b, 1.0))]
    found = stages_of(ArrivalSpec(process="nhpp", rate_series=tuple(series)), first, first + 1000)
    begin, end = stretch
    times = found.times_s(begin, end)
    assert sum(times) == pytest.approx(end - begin, abs=1e-6)
    moments = np.linspace(begin, end, 4001)[:-1] + (end - begin) / 8000
    share = np.bincount(found.at(moments), minlength=len(lengths)) / len(moments)
    assert np.array(times) == pytest.approx(share * (end - begin), abs=0.01 * (end - begin) + 1e-6)


@settings(max_examples=60, deadline=None)
@given(
    points=st.lists(st.tuples(st.floats(0.01, 10), st.floats(0, 1e3), st.floats(0, 1e3)), min_size=2, max_size=6),
    stepped=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_any_rate_series_gives_sorted_times(points, stepped, seed):
    knots = np.cumsum([0.0] + [gap for gap, _, _ in points[1:]])
    series = [(float(t), rate) for t, (_, rate, _) in zip(knots, points, strict=True)]
    series[0] = (0.0, max(series[0][1], 0.5))
    if stepped:
        series = [
            point
            for (t, rate), (_, _, other) in zip(series, points, strict=True)
            for point in ([(t, rate), (t, other)] if 0 < t < knots[-1] else [(t, rate)])
        ]
    arrivals = times({"process": "nhpp", "rate_series": series}, n=300, seed=seed)
    assert len(arrivals) == 300
    assert arrivals[0] >= 0
    assert np.all(np.diff(arrivals) >= 0)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"process": "posson", "rate_per_s": 1}, "'constant', 'poisson', 'gamma', 'nhpp' or 'trace'"),
        ({"process": "poisson"}, "needs rate_per_s"),
        ({"process": "poisson", "rate_per_s": 1, "cv": 2}, "cv has no effect with process 'poisson'"),
        ({"process": "gamma", "rate_per_s": 1}, "exactly one of burstiness and cv"),
        ({"process": "gamma", "rate_per_s": 1, "cv": 1, "burstiness": 1}, "exactly one of burstiness and cv"),
        ({"process": "nhpp", "rate_per_s": 1}, "rate_per_s has no effect"),
        ({"process": "nhpp", "rate_series": [[0, 1]]}, "at least 2 items"),
        ({"process": "nhpp", "rate_series": [[1, 1], [2, 1]]}, "start at t_s = 0"),
        ({"process": "nhpp", "rate_series": [[0, 1], [5, 1], [4, 2]]}, "increase"),
        ({"process": "nhpp", "rate_series": [[0, 1], [0, 2], [5, 2]]}, "neither more nor at either end"),
        ({"process": "nhpp", "rate_series": [[0, 1], [5, 1], [5, 2]]}, "neither more nor at either end"),
        ({"process": "nhpp", "rate_series": [[0, 1], [5, 1], [5, 2], [5, 3], [6, 3]]}, "neither more nor at either"),
        ({"process": "nhpp", "rate_series": [[0, 0], [0, 1]]}, "neither more nor at either end"),
        ({"process": "nhpp", "rate_series": [[0, 0], [5, 0]]}, "a rate above 0 for some time"),
        ({"process": "nhpp", "rate_series": [[0, 0], [5, 0], [5, 0], [9, 0]]}, "a rate above 0 for some time"),
        ({"process": "nhpp", "rate_series": [[0, -1], [5, 1]]}, "greater than or equal to 0"),
        ({"process": "nhpp", "rate_series": [[0, 2e9], [5, 1]]}, "less than or equal to 1000000000"),
        ({"process": "nhpp", "rate_series": [[0, 1], [9_000_001, 1]]}, "less than or equal to 9000000"),
        ({"process": "poisson", "rate_per_s": 2e9}, "less than or equal to 1000000000"),
        ({"process": "gamma", "rate_per_s": 1, "cv": 101}, "less than or equal to 100"),
        ({"process": "gamma", "rate_per_s": 1, "cv": 1e-4}, "greater than or equal to 0.001"),
        ({"process": "gamma", "rate_per_s": 1, "burstiness": 1e-5}, "greater than or equal to 0.0001"),
        ({"process": "gamma", "rate_per_s": 1, "burstiness": 2e6}, "less than or equal to 1000000"),
        ({"process": "trace", "rate_per_s": 1}, "takes no other key"),
        ({"process": "poisson", "rate_per_s": 0}, "greater than 0"),
        ({"process": "poisson", "rate_per_s": math.nan}, "finite number"),
        ({"process": "poisson", "rate_per_s": math.inf}, "finite number"),
        ({"process": "poisson", "rate": 1}, "Extra inputs"),
    ],
)
def test_bad_spec_is_refused(spec, message):
    with pytest.raises(ValidationError, match=message):
        ArrivalSpec.model_validate(spec)


def test_arrivals_beyond_the_clock_are_refused():
    with pytest.raises(InputError, match="where the clock ends"):
        times({"process": "poisson", "rate_per_s": 1e-4}, n=5000)


def test_empty_duration_is_refused():
    with pytest.raises(InputError, match="no request arrives within"):
        times({"process": "poisson", "rate_per_s": 1}, n=None, duration=1e-9)


@pytest.mark.parametrize(("n", "refused"), [(500, False), (501, True)])
def test_more_requests_than_a_workload_holds_are_refused(monkeypatch, n, refused):
    monkeypatch.setattr(module, "MAX_REQUESTS", 500)
    constant = {"process": "constant", "rate_per_s": 1}
    if refused:
        with pytest.raises(InputError, match="more than 500 requests arrive"):
            times(constant, n=None, duration=n)
    else:
        assert len(times(constant, n=None, duration=n)) == n
