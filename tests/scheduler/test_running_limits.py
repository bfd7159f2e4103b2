"""Limits at percentiles of a run that goes on are those of the summary, in whatever portions requests leave."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pimserve.loadgen.slo import PERCENTILE_OF, SloSpec
from pimserve.scheduler.histogram import DurationHistogram
from pimserve.scheduler.latencies import Latencies
from pimserve.scheduler.percentile_limits import at_percentiles
from pimserve.scheduler.running_limits import RunningLimits

from .test_latencies import END_PS, REQUESTS, table_of

KEYS = st.builds("{}_p{}_s".format, st.sampled_from(PERCENTILE_OF), st.sampled_from(["1", "50", "90", "99.9", "100"]))
SLOS = st.dictionaries(KEYS, st.floats(0.01, 5), min_size=1, max_size=4).map(SloSpec.model_validate)


def latencies_of(table, requests):
    return Latencies(table.columns, requests, frontend_ps=0, end_ps=END_PS)


@given(REQUESTS, SLOS, st.integers(1, 4), st.lists(st.integers(10**10, 10**16), max_size=5))
def test_they_are_those_of_all_requests_at_once(requests, slo, portions, gaps_fs):
    table, itl = table_of(requests), DurationHistogram()
    itl.add(np.array(gaps_fs, np.int64))
    running = RunningLimits(slo)
    for portion in np.array_split(np.arange(len(requests)), portions):
        running.add(latencies_of(table, portion))
    found, exact = running.so_far(itl), at_percentiles(slo, latencies_of(table, np.arange(len(requests))), itl)
    assert list(found) == list(exact)
    for key, limit in exact.items():
        mine = found[key]
        assert (mine.limit, mine.n, mine.passed, mine.enough_samples) == (
            limit.limit,
            limit.n,
            limit.passed,
            limit.enough_samples,
        )
        assert mine.measured == (
            None if limit.measured is None else pytest.approx(limit.measured, rel=2**-11, abs=2e-12)
        )
        if mine.margin is not None:
            assert (mine.margin >= 0) == mine.passed


@given(REQUESTS, SLOS)
def test_gaps_that_are_not_known_are_left_out(requests, slo):
    running = RunningLimits(slo)
    running.add(latencies_of(table_of(requests), np.arange(len(requests))))
    assert list(running.so_far(None)) == [limit.key for limit in slo.at_percentiles() if limit.latency != "itl"]


def test_a_sample_in_the_bin_of_the_limit_is_on_its_side():
    """Latencies of 1 s and of a millionth more fall in one bin, whose middle lies below both."""
    table = table_of([(0, 0, 10**12, 2 * 10**12, 1, 2), (0, 0, 10**12 + 10**6, 2 * 10**12, 1, 2)])
    running = RunningLimits(SloSpec.model_validate({"ttft_p50_s": 1, "ttft_p100_s": 1}))
    running.add(latencies_of(table, np.arange(2)))
    half, whole = running.so_far(None).values()
    assert half.passed is True
    assert 1 - 2**-11 < half.measured < 1
    assert whole.passed is False
    assert 1 < whole.measured < 1 + 2**-11
