"""Rates that move, and processes with two states, against those that the times were drawn with."""

import numpy as np
import pytest

from pimserve.loadgen.arrivals import ArrivalSpec, arrival_times
from pimserve.loadgen.fits.mmpp_fits import mmpp_proposals
from pimserve.loadgen.fits.rate_fits import fit_rate
from pimserve.loadgen.spec import PS_PER_S
from pimserve.loadgen.streams import Streams
from tests.loadgen.laws import mmpp_dispersion

SERIES = [[0, 4], [600, 16], [1200, 8], [1800, 4]]


def drawn(n, seed=0, **keys):
    return arrival_times(ArrivalSpec.model_validate(keys), Streams(seed), n, None)


def test_a_rate_series_is_found_again():
    times = drawn(15_300, process="nhpp", rate_series=SERIES)
    fitted = fit_rate(times, 30, 1.0)
    expected = np.interp(fitted.times_s + times[0] / PS_PER_S, *np.array(SERIES, float).T)
    assert np.abs(fitted.rates / expected - 1).mean() < 0.06  # 510 requests in a bin: 4.4 % each
    assert fitted.points[0][0] == 0
    ArrivalSpec(process="nhpp", rate_series=fitted.points)


def test_operational_time_is_the_rate_integrated():
    times = drawn(15_300, process="nhpp", rate_series=SERIES)
    fitted = fit_rate(times, 30, 1.0)
    after_s = (times - times[0]) / PS_PER_S
    operational = fitted.operational(after_s)
    assert (operational[0], operational[-1]) == (0, pytest.approx(len(times)))
    assert (np.diff(operational) >= 0).all()
    fine = np.linspace(0, after_s[-1], 200_001)
    rate = np.interp(fine, fitted.times_s, fitted.rates)
    summed = np.concatenate([[0], np.cumsum((rate[1:] + rate[:-1]) / 2 * np.diff(fine))])
    np.testing.assert_allclose(operational, np.interp(after_s, fine, summed), rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("keys", [{"process": "poisson"}, {"process": "gamma", "burstiness": 0.25}])
def test_a_rate_that_stands_still_is_none(keys):
    times = drawn(10_000, rate_per_s=10, **keys)
    noise = 1 / keys.get("burstiness", 1)
    assert fit_rate(times, 50, noise) is None


def test_two_states_have_the_dispersion_of_the_trace():
    rates, stays = [30.0, 2.0], [5.0, 15.0]
    times = drawn(400_000, process="mmpp", mmpp={"rates_per_s": rates, "mean_dwell_s": stays})
    proposals = list(mmpp_proposals(times))
    assert len(proposals) == 4
    for each in proposals:
        ArrivalSpec(process="mmpp", mmpp=each)
        for width_s in (1, 10, 60):
            expected = mmpp_dispersion(rates, stays, width_s)
            assert mmpp_dispersion(each["rates_per_s"], each["mean_dwell_s"], width_s) == pytest.approx(
                expected, rel=0.25
            )
    assert proposals[0]["rates_per_s"][1] == 0


def test_regular_or_few_times_have_no_states():
    assert list(mmpp_proposals(drawn(1000, process="constant", rate_per_s=2))) == []
    assert list(mmpp_proposals(np.array([0, 5, 9]) * PS_PER_S)) == []
