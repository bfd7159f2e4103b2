"""Limits at percentiles: pass or fail is a share of requests, never served ones included, and margins add up."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pimserve.loadgen.slo import PERCENTILE_OF, SloSpec
from pimserve.scheduler.histogram import DurationHistogram
from pimserve.scheduler.latencies import Latencies
from pimserve.scheduler.outcomes import MET, MISSED, judged
from pimserve.scheduler.percentile_limits import at_percentiles

from .test_latencies import END_PS, REQUESTS, table_of

NO_GAPS = DurationHistogram()


def found(requests: list[tuple[int, ...]], key: str, limit_s: float):
    latencies = Latencies(table_of(requests).columns, np.arange(len(requests)), frontend_ps=0, end_ps=END_PS)
    return latencies, at_percentiles(SloSpec.model_validate({key: limit_s}), latencies, NO_GAPS)[key]


@given(
    REQUESTS,
    st.sampled_from([name for name in PERCENTILE_OF if name != "itl"]),
    st.sampled_from(["50", "90", "99.9", "100"]),
    st.floats(0.01, 5),
)
def test_a_run_passes_when_that_share_of_requests_met_the_limit(requests, name, percent, limit_s):
    latencies, limit = found(requests, f"{name}_p{percent}_s", limit_s)
    latency, met = latencies[name], judged(latencies, name, limit_s)
    counted = latency.applies & ((met == MISSED) | latency.known)
    assert limit.n == counted.sum()
    if not limit.n:
        assert limit.passed is limit.measured is limit.margin is limit.relative_margin is None
        return
    assert limit.passed == (Fraction(int((met[counted] == MET).sum()), limit.n) >= Fraction(percent) / 100)
    if limit.measured is None:
        assert limit.passed is False
        assert latencies.rejected.any() or (~latency.ended).any()
    else:
        assert limit.measured in latency.known_s
        assert limit.margin == limit.limit - limit.measured
        assert limit.relative_margin == pytest.approx(limit.margin / limit_s)
        assert limit.passed == (limit.measured <= limit_s)


def test_rejected_requests_are_later_than_any_limit():
    served = (0, 10**11, 10**11, 10**12, 5, 3)
    rejected = (0, 0, 0, 0, 5, -1)
    _, limit = found([served] * 9 + [rejected], "ttft_p90_s", 1)
    assert limit.passed
    assert limit.measured == 0.2
    _, limit = found([served] * 8 + [rejected] * 2, "ttft_p90_s", 1)
    assert (limit.passed, limit.measured, limit.n) == (False, None, 10)


def test_gaps_between_tokens_are_pooled():
    gaps = DurationHistogram()
    gaps.add(np.array([10**12, 5 * 10**13]), np.array([990, 10]))
    latencies = Latencies(table_of([(0, 0, 0, 0, 1, 3)]).columns, np.arange(1), frontend_ps=0, end_ps=END_PS)
    slo = SloSpec.model_validate({"itl_p99_s": 0.002, "itl_p99.5_s": 0.02})
    passed, failed = at_percentiles(slo, latencies, gaps).values()
    assert passed.passed
    assert passed.margin == pytest.approx(0.001, rel=2**-11)
    assert (passed.n, passed.enough_samples, failed.enough_samples) == (1000, True, False)
    assert failed.passed is False
    assert failed.relative_margin == pytest.approx(-1.5, rel=2**-11)
