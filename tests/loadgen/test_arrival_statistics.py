"""Every arrival process against its law, with fixed seeds: rate, CV, law of gaps, dispersion of counts."""

from dataclasses import dataclass, field
from functools import cache

import numpy as np
import pytest

from pimserve.loadgen.arrivals import ArrivalSpec, arrival_times
from pimserve.loadgen.spec import PS_PER_S
from pimserve.loadgen.streams import Streams
from tests.loadgen import laws

N = 100_000
RATE = 20.0
MEAN = 8.0  # of rates that move
SHAPE = 2.1013490946885414  # of a Weibull law of CV 0.5
KS_LEVEL = 1.63 / np.sqrt(N)  # passed by 99 of 100 samples of the law
BINS_S = [1.0, 10.0, 60.0]


@dataclass(frozen=True)
class Case:
    """A process: gaps of mean 1 after the transform, their CV and law, and the dispersion in BINS_S where it is known.

    `transform` takes seconds to the time in which gaps have that law; None: times the rate.
    """

    spec: dict
    cv: float
    law: laws.Law | None = None
    transform: laws.Law = lambda x: RATE * x
    dispersion: list[float] = field(default_factory=list)


def renewal(spec, law, moments):
    dispersion = [laws.renewal_dispersion(*moments, RATE * width) for width in BINS_S]
    return Case({"rate_per_s": RATE, **spec}, np.sqrt(moments[0] - 1), law, dispersion=dispersion)


def modulated(rates, dwells):
    cv, law = laws.mmpp_gaps(rates, dwells)
    dispersion = [laws.mmpp_dispersion(rates, dwells, width) for width in BINS_S]
    spec = {"process": "mmpp", "mmpp": {"rates_per_s": rates, "mean_dwell_s": dwells}}
    return Case(spec, cv, lambda x: law(x / RATE), dispersion=dispersion)


STEADY = {
    "constant": Case({"process": "constant", "rate_per_s": RATE}, 0.0, dispersion=[0.0] * 3),
    "poisson": renewal({"process": "poisson"}, laws.exponential, laws.gamma_moments(1.0)),
    "gamma bursty": renewal({"process": "gamma", "burstiness": 0.25}, laws.gamma(0.25), laws.gamma_moments(0.25)),
    "gamma by cv": renewal({"process": "gamma", "cv": 0.5}, laws.gamma(4.0), laws.gamma_moments(4.0)),
    "weibull bursty": renewal({"process": "weibull", "shape": 0.6}, laws.weibull(0.6), laws.weibull_moments(0.6)),
    "weibull by cv": renewal({"process": "weibull", "cv": 0.5}, laws.weibull(SHAPE), laws.weibull_moments(SHAPE)),
    "mmpp on/off": modulated([100, 0], [2, 8]),
    "mmpp of two rates": modulated([40, 10], [0.05, 0.1]),  # short stays: gaps hardly hang on each other,
}
SERIES = [[0, 2], [300, 14], [300, 5], [600, 5], [900, 2]]
STAGES = [{"rate_per_s": rate, "duration_s": 3000} for rate in (5, 10, 0, 25)]
STAGE_SERIES = [(0, 5), (3000, 5), (3000, 10), (6000, 10), (6000, 0), (9000, 0), (9000, 25), (12000, 25)]
MOVING = {
    "series": ({"rate_series": SERIES}, laws.series_integral(SERIES)),
    "stages": ({"stages": STAGES}, laws.series_integral(STAGE_SERIES)),
    "linear ramp": (
        {"ramp": {"strategy": "linear", "start_rate_per_s": 2, "end_rate_per_s": 12, "duration_s": 9000}},
        laws.ramp_integral(2, 12, 9000, exponential=False),
    ),
    "exponential ramp": (
        {"ramp": {"strategy": "exponential", "start_rate_per_s": 30, "end_rate_per_s": 4, "duration_s": 9000}},
        laws.ramp_integral(30, 4, 9000, exponential=True),
    ),
    "diurnal": (
        {"rate_per_s": MEAN, "diurnal": {"period_s": 1800, "amplitude": 0.8, "phase_s": 400}},
        laws.diurnal_integral(MEAN, 1800, 0.8, 400),
    ),
    "diurnal down to nothing": (
        {"rate_per_s": MEAN, "diurnal": {"period_s": 600, "amplitude": 1}},
        laws.diurnal_integral(MEAN, 600, 1.0, 0.0),
    ),
}
GAPS = {
    "nhpp": ({"process": "nhpp"}, 1.0, laws.exponential),
    "gamma": ({"process": "gamma", "burstiness": 0.25}, 2.0, laws.gamma(0.25)),
    "weibull": ({"process": "weibull", "cv": 0.5}, 0.5, laws.weibull(SHAPE)),
}
CASES = STEADY | {
    f"{gaps} of {rate}": Case({**spec, **moving}, cv, law, integral)
    for rate, (moving, integral) in MOVING.items()
    for gaps, (spec, cv, law) in GAPS.items()
}


def times_s(spec, seed=0, n=N):
    return arrival_times(ArrivalSpec.model_validate(spec), Streams(seed), n, None) / PS_PER_S


@cache
def gaps(name):
    found = np.diff(CASES[name].transform(times_s(CASES[name].spec)))
    found.flags.writeable = False
    return found


every = pytest.mark.parametrize("name", CASES)


@every
def test_mean_rate(name):
    case = CASES[name]
    assert gaps(name).mean() == pytest.approx(1, rel=max(4 / np.sqrt(N) * case.cv, 1e-9))


@every
def test_coefficient_of_variation(name):
    found = gaps(name)
    assert found.std() / found.mean() == pytest.approx(CASES[name].cv, rel=0.03, abs=1e-9)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.law is not None])
def test_gaps_follow_their_law(name):
    case = CASES[name]
    assert laws.ks(gaps(name), case.law) < KS_LEVEL


@pytest.mark.parametrize("place", range(3))
@pytest.mark.parametrize("name", STEADY)
def test_dispersion_of_counts(name, place):
    case, width = STEADY[name], BINS_S[place]
    counts = np.bincount((times_s(case.spec) / width).astype(int))[:-1]
    found, error = laws.dispersion(counts, np.full(len(counts), counts.mean()))
    assert found == pytest.approx(case.dispersion[place], abs=4 * error + 1e-9)


@pytest.mark.parametrize("width", BINS_S)
@pytest.mark.parametrize("name", MOVING)
def test_counts_of_a_moving_rate_are_poisson_around_it(name, width):
    moving, integral = MOVING[name]
    arrivals = times_s({"process": "nhpp", **moving})
    counts = np.bincount((arrivals / width).astype(int))[:-1]
    means = np.diff(integral(np.arange(len(counts) + 1) * width))
    found, error = laws.dispersion(counts, means)
    assert found == pytest.approx(1, abs=4 * error)
    # And around one mean of all, they vary as the rate does besides.
    assert counts.var() / counts.mean() == pytest.approx(1 + means.var() / means.mean(), rel=0.05 + 5 * error)


@every
def test_same_seed_same_bytes_other_seed_other_bytes(name):
    spec = CASES[name].spec
    first = times_s(spec, 3, 70_000).tobytes()
    assert first == times_s(spec, 3, 70_000).tobytes()
    assert (first == times_s(spec, 4, 70_000).tobytes()) == (name == "constant")


@every
def test_more_requests_extend_the_series(name):
    spec = CASES[name].spec
    np.testing.assert_array_equal(times_s(spec, n=500), times_s(spec, n=70_000)[:500])


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("process", ["poisson", "nhpp"])
def test_five_per_second_and_then_ten(process, seed):
    spec = {"process": process, "stages": [{"rate_per_s": rate, "duration_s": 600} for rate in (5, 10)]}
    arrivals = times_s(spec, seed, None)
    assert arrivals[-1] < 1200
    assert (arrivals < 600).sum() == pytest.approx(3000, abs=4 * 55)  # four standard deviations
    assert (arrivals >= 600).sum() == pytest.approx(6000, abs=4 * 77)


def test_stages_of_equal_gaps_have_exactly_their_requests():
    stages = [{"rate_per_s": rate, "duration_s": 600} for rate in (5, 0, 10)]
    arrivals = times_s({"process": "constant", "stages": stages}, n=None)
    assert [(arrivals < 600).sum(), ((arrivals >= 600) & (arrivals < 1200)).sum(), (arrivals >= 1200).sum()] == [
        3000,
        0,
        6000,
    ]


@pytest.mark.parametrize("name", ["poisson", "gamma bursty", "weibull by cv"])
def test_normalized_durations_end_with_the_nth_request_at_n_over_the_rate(name):
    spec = STEADY[name].spec
    plain, stretched = times_s(spec), times_s({**spec, "normalize_duration": True})
    assert stretched[-1] == pytest.approx(N / RATE, rel=1e-12)
    assert plain[-1] != pytest.approx(N / RATE, rel=1e-6)
    np.testing.assert_allclose(stretched * (plain[-1] / stretched[-1]), plain, rtol=1e-9)


def test_states_that_are_more_than_two_are_visited_alike_and_their_times_add_up():
    spec = {"process": "mmpp", "mmpp": {"rates_per_s": [30, 0, 6, 1], "mean_dwell_s": [1, 2, 3, 4]}}
    rate = (30 + 0 + 18 + 4) / 10
    arrivals = times_s(spec)
    counts = np.bincount((arrivals / 100).astype(int))[:-1]
    found, error = laws.dispersion(counts, np.full(len(counts), counts.mean()))
    assert N / arrivals[-1] == pytest.approx(rate, rel=4 / np.sqrt(N) * np.sqrt(found + 4 * error))
