"""Workloads fitted to traces: what was drawn from a process is found again, and what is like none is told."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pimserve.errors import InputError
from pimserve.loadgen.fits.trace_fit import fit_trace, ks_distance
from pimserve.loadgen.traces import Trace, TraceSpec, load_trace
from pimserve.loadgen.workload import WorkloadSpec, generate
from tests.loadgen.slices import SLICES, real

LENGTHS = {"input": {"kind": "lognormal", "median": 500, "sigma": 0.7}, "output": {"kind": "geometric", "mean": 90}}
CALM = [[0, 3], [400, 12], [400, 5], [800, 6]]


def drawn(**arrival):
    document = {"num_requests": 8000, "arrival": arrival, "lengths": LENGTHS}
    return trace_of(generate(WorkloadSpec.model_validate(document), 7))


def trace_of(workload):
    columns = (workload.arrival_ps, workload.input_tokens, workload.output_tokens)
    return Trace("csv", *columns, len(workload.arrival_ps), {})


@pytest.mark.medium
@pytest.mark.parametrize(
    "arrival",
    [
        {"process": "poisson", "rate_per_s": 6},
        {"process": "gamma", "rate_per_s": 6, "burstiness": 0.25},
        {"process": "weibull", "rate_per_s": 6, "shape": 0.5},
        {"process": "constant", "rate_per_s": 6},
        {"process": "mmpp", "mmpp": {"rates_per_s": [40, 0], "mean_dwell_s": [2, 8]}},
        {"process": "nhpp", "rate_series": CALM},
        {"process": "gamma", "burstiness": 0.3, "rate_series": CALM},
    ],
    ids=["poisson", "gamma", "weibull", "constant", "mmpp", "nhpp", "moving gamma"],
)
def test_a_process_is_found_again(arrival):
    fit = fit_trace(drawn(**arrival))
    found = fit.workload["arrival"]
    assert found["process"] == arrival["process"]
    assert ("rate_series" in found) == ("rate_series" in arrival)
    for key in ("rate_per_s", "burstiness", "shape"):
        if key in arrival and key in found:
            assert found[key] == pytest.approx(arrival[key], rel=0.1)
    assert fit.misfits == []
    assert fit.distances["gaps"] < 0.04


def test_what_is_said_is_what_the_workload_generates():
    trace = drawn(process="gamma", rate_per_s=6, burstiness=0.25)
    fit = fit_trace(trace)
    again = generate(WorkloadSpec.model_validate(fit.workload), 0)
    np.testing.assert_array_equal(again.arrival_ps, fit.fitted.arrival_ps)
    np.testing.assert_array_equal(again.output_tokens, fit.fitted.output_tokens)
    assert fit.distances["input"] == ks_distance(trace.input_tokens, again.input_tokens)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=30), st.lists(st.integers(0, 9), min_size=1, max_size=30))
def test_the_distance_is_that_of_kolmogorov_and_smirnov(one, other):
    below = [(sum(x <= v for x in one) / len(one), sum(x <= v for x in other) / len(other)) for v in range(10)]
    assert ks_distance(np.array(one), np.array(other)) == pytest.approx(max(abs(a - b) for a, b in below))


def test_few_requests_tell_little():
    trace = drawn(process="poisson", rate_per_s=6)
    few = Trace("csv", trace.arrival_ps[:40], trace.input_tokens[:40], trace.output_tokens[:40], 40, {})
    assert [fit_trace(each).tells_little for each in (few, trace)] == [True, False]


@pytest.mark.parametrize("times", [[0, 1], [5, 5, 5, 5]])
def test_too_few_times_are_refused(times):
    ones = np.ones(len(times), np.int64)
    with pytest.raises(InputError, match="a fit needs three requests at least, not all of them at one time"):
        fit_trace(Trace("csv", np.array(times), ones, ones, len(times), {}))


@pytest.mark.medium
@pytest.mark.parametrize("_", [pytest.param(None, marks=real)])
def test_a_conversation_trace_is_poisson_at_a_moving_rate_and_a_code_trace_is_like_nothing(_):
    names = ("azure_llm_2023_conv_0000-1800s.csv.gz", "azure_llm_2023_code_0000-1800s.csv.gz")
    conversation, code = (fit_trace(load_trace(TraceSpec(path=str(SLICES / name)))) for name in names)
    assert "rate_series" in conversation.workload["arrival"]
    assert conversation.misfits == []
    assert max(conversation.distances.values()) < 0.03
    assert any(misfit.startswith("gaps: KS") for misfit in code.misfits)
    assert any(misfit.startswith("CV of gaps") for misfit in code.misfits)
    assert code.distances["output"] < 0.03
