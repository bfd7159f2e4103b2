"""Arrival processes: the inversion itself, steps and stages, refusals. Their statistics: test_arrival_statistics.py."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pimserve.errors import InputError
from pimserve.loadgen import arrivals as module
from pimserve.loadgen.arrivals import ArrivalSpec, arrival_times, stages_of
from pimserve.loadgen.rate_stages import Stage
from pimserve.loadgen.spec import PS_PER_S
from pimserve.loadgen.streams import Streams
from tests.examples import examples

N = 100_000
PROCESSES = {
    "constant": {"process": "constant", "rate_per_s": 8.0},
    "poisson": {"process": "poisson", "rate_per_s": 8.0},
    "gamma_bursty": {"process": "gamma", "rate_per_s": 8.0, "burstiness": 0.25},
    "gamma_cv": {"process": "gamma", "rate_per_s": 8.0, "cv": 0.5},
}


def times(spec, n=N, duration=None, seed=0):
    return arrival_times(ArrivalSpec.model_validate(spec), Streams(seed), n, duration)


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
    gaps = Streams(7).rng("arrivals").standard_exponential(5000)
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


def test_the_stages_of_stages_are_theirs_also_where_rates_are_equal():
    spec = ArrivalSpec.model_validate({"stages": [{"rate_per_s": r, "duration_s": 60} for r in (5, 5, 0, 10)]})
    found = stages_of(spec, 2, 240)
    assert found.stages == (Stage(0, 60, 5), Stage(60, 120, 5), Stage(120, 180, 0), Stage(180, 240, 10))
    assert found.times_s(0, 238) == [58, 60, 60, 60]


_RATE = st.floats(0.01, 1e3)
_LONG = st.floats(0.1, 1e3)
_MOVING = st.one_of(
    st.fixed_dictionaries({"rate_per_s": _RATE}),
    st.fixed_dictionaries(
        {
            "rate_per_s": _RATE,
            "diurnal": st.fixed_dictionaries(
                {"period_s": _LONG, "amplitude": st.floats(0.01, 1), "phase_s": st.floats(-1e4, 1e4)}
            ),
        }
    ),
    st.builds(
        lambda strategy, a, b, long: {
            "ramp": {"strategy": strategy, "start_rate_per_s": a, "end_rate_per_s": b, "duration_s": long}
        },
        st.sampled_from(["linear", "exponential"]),
        _RATE,
        _RATE,
        _LONG,
    ),
    st.lists(st.fixed_dictionaries({"rate_per_s": _RATE, "duration_s": _LONG}), min_size=1, max_size=4).map(
        lambda stages: {"stages": [*stages, {"rate_per_s": 1e3, "duration_s": 10}]}
    ),
)
_GAPS = st.one_of(
    st.sampled_from([{"process": "constant"}, {"process": "poisson"}]),
    st.floats(0.2, 20).map(lambda burstiness: {"process": "gamma", "burstiness": burstiness}),
    st.floats(0.2, 5).map(lambda cv: {"process": "weibull", "cv": cv}),
)
_MMPP = st.lists(st.tuples(_RATE, _LONG), min_size=2, max_size=5).map(
    lambda states: {
        "process": "mmpp",
        "mmpp": {"rates_per_s": [1.0, *(r for r, _ in states)], "mean_dwell_s": [9.0, *(d for _, d in states)]},
    }
)


@examples(150)
@given(
    spec=st.one_of(st.builds(lambda gaps, moving: gaps | moving, _GAPS, _MOVING), _MMPP),
    n=st.integers(1, 200),
    seed=st.integers(0, 2**32),
)
def test_any_process_with_any_rate_gives_times_that_ascend_and_extend(spec, n, seed):
    arrivals = times(spec, n=n, seed=seed)
    assert arrivals[0] >= 0
    assert np.all(np.diff(arrivals) >= 0)
    assert len(arrivals) == n
    np.testing.assert_array_equal(times(spec, n=n + 50, seed=seed)[:n], arrivals)


@examples(60)
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
        ({"process": "posson", "rate_per_s": 1}, "one of constant, poisson, gamma, weibull, mmpp, nhpp, trace"),
        ({"process": "poisson"}, "needs exactly one of rate_per_s, rate_series, stages and ramp"),
        ({"process": "poisson", "rate_per_s": 1, "cv": 2}, "cv has no effect with process 'poisson'"),
        ({"process": "gamma", "rate_per_s": 1}, "exactly one of burstiness and cv"),
        ({"process": "gamma", "rate_per_s": 1, "cv": 1, "burstiness": 1}, "exactly one of burstiness and cv"),
        ({"process": "nhpp", "rate_per_s": 1}, "rate_per_s has no effect with process 'nhpp' unless diurnal moves it"),
        ({"process": "nhpp", "rate_series": [[0, 1]]}, "at least 2 items"),
        ({"process": "nhpp", "rate_series": [[1, 1], [2, 1]]}, "start at t_s = 0"),
        ({"process": "nhpp", "rate_series": [[0, 1], [5, 1], [4, 2]]}, "not decrease"),
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
        ({"process": "weibull", "rate_per_s": 1}, "exactly one of shape and cv"),
        (
            {"process": "weibull", "rate_per_s": 1, "burstiness": 1},
            "takes rate_per_s or rate_series or stages or ramp, shape",
        ),
        ({"process": "weibull", "rate_per_s": 1, "shape": 0.01}, "greater than or equal to 0.1"),
        ({"process": "nhpp", "rate_per_s": 1, "stages": [{"rate_per_s": 1, "duration_s": 1}]}, "needs exactly one of"),
        ({"stages": []}, "at least 1 item"),
        ({"stages": [{"rate_per_s": 0, "duration_s": 60}]}, "a rate above 0 for some time"),
        ({"stages": [{"rate_per_s": 1, "duration_s": 0}]}, "greater than 0"),
        ({"stages": [{"rate_per_s": 1, "duration_s": 5e6}] * 2}, "must end before 9e"),
        ({"ramp": {"start_rate_per_s": 1, "end_rate_per_s": 0, "duration_s": 9}}, "greater than 0"),
        (
            {"ramp": {"strategy": "exponential", "start_rate_per_s": 0, "end_rate_per_s": 9, "duration_s": 9}},
            "rates above 0, within a factor of 1e",
        ),
        ({"diurnal": {"amplitude": 0.5}, "rate_series": [[0, 1], [5, 1]]}, "diurnal goes with rate_per_s"),
        ({"diurnal": {"amplitude": 1.5}, "rate_per_s": 1}, "less than or equal to 1"),
        ({"process": "mmpp"}, "needs mmpp"),
        (
            {"process": "mmpp", "rate_per_s": 3, "mmpp": {"rates_per_s": [1, 2], "mean_dwell_s": [1, 1]}},
            "rate_per_s has no",
        ),
        ({"process": "poisson", "mmpp": {"rates_per_s": [1, 2], "mean_dwell_s": [1, 1]}}, "mmpp has no effect"),
        ({"process": "mmpp", "mmpp": {"rates_per_s": [1], "mean_dwell_s": [1]}}, "at least 2 items"),
        ({"process": "mmpp", "mmpp": {"rates_per_s": [1, 2], "mean_dwell_s": [1]}}, "needs 2 values"),
        ({"process": "mmpp", "mmpp": {"rates_per_s": [0, 0], "mean_dwell_s": [1, 1]}}, "at least 0.01 must"),
        ({"process": "constant", "rate_per_s": 1, "normalize_duration": True}, "gaps that vary around a rate_per_s"),
        ({"stages": [{"rate_per_s": 1, "duration_s": 1}], "normalize_duration": True}, "gaps that vary around a"),
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


@pytest.mark.parametrize(("duration", "where"), [(None, "arrival.stages"), (2, "arrival.stages"), (0.5, "duration_s")])
def test_no_arrivals_are_told_of_what_ends_them(duration, where):
    stages = [{"rate_per_s": 1e-9, "duration_s": 1}]
    with pytest.raises(InputError, match=f"workload.{where}: no request arrives within"):
        times({"process": "poisson", "stages": stages}, n=None, duration=duration)


@pytest.mark.parametrize(("n", "refused"), [(500, False), (501, True)])
def test_more_requests_than_a_workload_holds_are_refused(monkeypatch, n, refused):
    monkeypatch.setattr(module, "MAX_REQUESTS", 500)
    constant = {"process": "constant", "rate_per_s": 1}
    if refused:
        with pytest.raises(InputError, match="more than 500 requests arrive"):
            times(constant, n=None, duration=n)
    else:
        assert len(times(constant, n=None, duration=n)) == n
