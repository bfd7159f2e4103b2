"""Workloads as a whole: the preset's figures, sources of times and lengths, determinism, refusals."""

import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pimserve.errors import InputError
from pimserve.loadgen.presets import AZURE_CONV_2023_ARRIVAL
from pimserve.loadgen.spec import PS_PER_S
from pimserve.loadgen.traces import TraceSpec, load_trace
from pimserve.loadgen.workload import Workload, WorkloadSpec, generate
from tests.examples import examples
from tests.loadgen.slices import SLICES

POISSON = {"process": "poisson", "rate_per_s": 5.0}
LENGTHS = {"input": {"kind": "fixed", "tokens": 100}, "output": {"kind": "uniform", "low": 1, "high": 50}}


def make(seed: int = 0, **keys: object) -> Workload:
    return generate(WorkloadSpec.model_validate(keys), seed)


@pytest.fixture
def trace(tmp_path):
    path = tmp_path / "trace.csv"
    path.write_text("arrival_s,input_tokens,output_tokens\n" + "".join(f"{t},{10 + t},{1 + t}\n" for t in range(6)))
    return {"format": "csv", "path": str(path)}


# --- the embedded workload -------------------------------------------------------------------------------------------


def test_preset_lengths_match_the_published_figures():
    w = make(num_requests=100_000)
    assert w.input_tokens.mean() == pytest.approx(1155, rel=0.02)
    assert w.output_tokens.mean() == pytest.approx(211, rel=0.02)
    assert np.percentile(w.input_tokens, [50, 90, 99]) == pytest.approx([1020, 2735, 4142], rel=0.03)
    assert np.percentile(w.output_tokens, [50, 90, 99]) == pytest.approx([129, 424, 601], rel=0.03)
    assert w.input_tokens.max() <= 14050
    assert w.output_tokens.max() <= 1000
    ranks = [np.argsort(np.argsort(x)) for x in (w.input_tokens, w.output_tokens)]
    assert abs(np.corrcoef(ranks)[0, 1]) < 0.07


def test_preset_rate_series_integrates_to_the_published_counts():
    t, rate = np.array(AZURE_CONV_2023_ARRIVAL.rate_series).T
    assert t[-1] == 3501.7
    assert np.sum(np.diff(t) * (rate[1:] + rate[:-1]) / 2) == pytest.approx(19_366, rel=0.005)
    grid = np.linspace(0, 3501.7, 350_171)
    counts = [np.interp(grid[(grid >= a) & (grid < a + 300)], t, rate).sum() * 0.01 for a in range(0, 3600, 300)]
    assert [counts[0], counts[5], counts[11]] == pytest.approx([1445, 2239, 768], rel=0.03)


@pytest.mark.traces
@pytest.mark.skipif(not SLICES.is_dir(), reason="no trace slices")
def test_preset_rates_are_those_of_the_first_half_hour_and_of_the_last_bin():
    half_hour = {"format": "azure", "path": str(SLICES / "azure_llm_2023_conv_0000-1800s.csv.gz")}
    arrivals = load_trace(TraceSpec.model_validate(half_hour)).arrival_ps
    per_s = np.bincount(arrivals // (120 * PS_PER_S), minlength=15) / 120
    centres = 60.0 + 120 * np.arange(15)
    last = 768 / 201.7
    expected = [*zip(centres, per_s, strict=True), (3300, last), (3501.7, last)]
    np.testing.assert_allclose(AZURE_CONV_2023_ARRIVAL.rate_series[1:], expected, atol=0.00501)


def test_preset_draws_what_it_always_drew():
    """What is reported of the preset can be compared between versions: another data set would need another name."""
    w = make(num_requests=20_000)
    columns = (w.input_tokens, w.output_tokens, w.arrival_ps // 10**6)
    assert [int(column.sum()) for column in columns] == [22_910_039, 4_231_541, 35_363_502_141_631]


def test_preset_rate_is_sampled_and_repeats():
    cycles = make(duration_s=10 * 3501.7).arrival_ps / PS_PER_S
    assert len(cycles) / 35_017 == pytest.approx(5.53, rel=0.02)
    first_half = np.mean(cycles % 3501.7 < 1800)
    assert first_half == pytest.approx(10_108 / 19_366, rel=0.02)


def test_preset_is_poisson_within_a_second_and_not_within_a_minute():
    arrivals = make(duration_s=3480).arrival_ps
    dispersion = {}
    for bin_s in (1, 10, 60):
        counts = np.bincount(arrivals // (bin_s * PS_PER_S), minlength=3480 // bin_s)
        dispersion[bin_s] = counts.var() / counts.mean()
    assert dispersion[1] == pytest.approx(1.39, rel=0.2)
    assert dispersion[10] == pytest.approx(3.86, rel=0.3)
    assert dispersion[60] == pytest.approx(16.1, rel=0.5)


def test_nothing_given_is_the_preset():
    assert WorkloadSpec().preset == "azure-conv-2023"
    w = make()
    assert len(w.arrival_ps) == 2000
    assert "preset azure-conv-2023" in w.description
    assert (w.rows_read, w.rows_dropped, w.concurrency) == (0, {}, None)


# --- determinism -----------------------------------------------------------------------------------------------------


def test_same_seed_same_bytes_other_seed_other_bytes():
    first, again, other = make(seed=7), make(seed=7), make(seed=8)
    for name in ("arrival_ps", "input_tokens", "output_tokens"):
        assert getattr(first, name).tobytes() == getattr(again, name).tobytes()
        assert getattr(first, name).tobytes() != getattr(other, name).tobytes()


def test_changing_one_knob_leaves_the_other_draws_alone():
    base = make(arrival=POISSON, lengths=LENGTHS)
    faster = make(arrival={"process": "gamma", "rate_per_s": 9, "cv": 3}, lengths=LENGTHS)
    np.testing.assert_array_equal(base.output_tokens, faster.output_tokens)
    geometric = make(arrival=POISSON, lengths={**LENGTHS, "input": {"kind": "geometric", "mean": 50}})
    np.testing.assert_array_equal(base.arrival_ps, geometric.arrival_ps)
    np.testing.assert_array_equal(base.output_tokens, geometric.output_tokens)
    longer = make(arrival=POISSON, lengths=LENGTHS, num_requests=3000)
    np.testing.assert_array_equal(base.arrival_ps, longer.arrival_ps[:2000])
    np.testing.assert_array_equal(base.output_tokens, longer.output_tokens[:2000])


@examples(40)
@given(
    process=st.sampled_from(
        [
            {"process": "constant"},
            {"process": "poisson"},
            {"process": "gamma", "cv": 4.0},
            {"process": "gamma", "burstiness": 5.0},
            {"process": "weibull", "shape": 0.5},
            {"process": "poisson", "normalize_duration": True},
            {"process": "nhpp", "diurnal": {"period_s": 60, "amplitude": 1}},
        ]
    ),
    rate=st.floats(0.01, 1e5),
    n=st.integers(1, 300),
    seed=st.integers(0, 2**63),
)
def test_any_open_workload_is_well_formed(process, rate, n, seed):
    w = make(seed, arrival={**process, "rate_per_s": rate}, lengths=LENGTHS, num_requests=n)
    assert w.arrival_ps.dtype == w.input_tokens.dtype == w.output_tokens.dtype == np.int64
    assert len(w.arrival_ps) == len(w.input_tokens) == len(w.output_tokens) == n
    assert w.arrival_ps[0] == 0  # the clock starts with the first request
    assert np.all(np.diff(w.arrival_ps) >= 0)
    assert min(w.input_tokens.min(), w.output_tokens.min()) >= 1


# --- modes and sources -----------------------------------------------------------------------------------------------


def test_whichever_limit_comes_first_ends_the_arrivals():
    constant = {"arrival": {"process": "constant", "rate_per_s": 10}, "lengths": LENGTHS}
    assert len(make(**constant, num_requests=30, duration_s=2).arrival_ps) == 20
    assert len(make(**constant, num_requests=15, duration_s=2).arrival_ps) == 15
    assert make(**constant, duration_s=2).offered_rate_per_s == pytest.approx(10)
    assert make(**constant, num_requests=1).offered_rate_per_s is None


@pytest.mark.parametrize(
    ("limits", "by_number"),
    [
        ({"num_requests": 50}, True),
        ({"duration_s": 1200}, False),
        ({"num_requests": 50, "duration_s": 1200}, True),
        ({"num_requests": 10**6, "duration_s": 1200}, False),
    ],
)
def test_stages_end_with_the_arrivals(limits, by_number):
    """With the last request where their number ends them, else with the time."""
    step = {"process": "nhpp", "rate_series": [[0, 5], [600, 5], [600, 10], [1200, 10]]}
    w = make(arrival=step, lengths=LENGTHS, **limits)
    assert w.stages.end_s == pytest.approx(w.arrival_ps[-1] / PS_PER_S if by_number else 1200 - w.stages.first_s)
    assert w.stages.first_s > 0


@pytest.mark.parametrize(("limits", "end_s"), [({}, 200), ({"duration_s": 150}, 150), ({"duration_s": 900}, 200)])
def test_arrivals_end_with_the_last_stage(limits, end_s):
    stages = [{"rate_per_s": rate, "duration_s": 100} for rate in (30, 60)]
    w = make(arrival={"process": "constant", "stages": stages}, lengths=LENGTHS, **limits)
    assert len(w.arrival_ps) == 3000 + 60 * (end_s - 100)
    assert w.stages.end_s == end_s
    assert make(arrival={"stages": stages}, lengths=LENGTHS, num_requests=70).stages.end_s < 10


def test_closed_loop():
    w = make(mode="closed", concurrency=8, num_requests=50, lengths=LENGTHS)
    assert w.arrival_ps.tolist() == [0] * 50
    assert (w.concurrency, w.offered_rate_per_s) == (8, None)


def test_stagger_moves_output_to_input_of_the_first_requests_only():
    keys = {"mode": "closed", "concurrency": 4000, "num_requests": 5000, "lengths": LENGTHS}
    plain, w = make(**keys), make(**keys, stagger=True)
    np.testing.assert_array_equal(plain.input_tokens + plain.output_tokens, w.input_tokens + w.output_tokens)
    np.testing.assert_array_equal(plain.output_tokens[4000:], w.output_tokens[4000:])
    assert w.output_tokens.min() >= 1
    fraction = (plain.output_tokens - w.output_tokens)[:4000] / plain.output_tokens[:4000]
    # Floor of u * output loses (output-1)/(2*output) on average, exactly the mean of uniform 0..output-1 over output.
    expected = np.mean((plain.output_tokens[:4000] - 1) / (2 * plain.output_tokens[:4000]))
    assert fraction.mean() == pytest.approx(expected, abs=0.02)


def test_trace_replay_reconciles_its_rows(trace):
    w = make(trace={**trace, "start_s": 1}, duration_s=3)
    assert (w.arrival_ps // PS_PER_S).tolist() == [0, 1, 2]
    assert w.output_tokens.tolist() == [2, 3, 4]
    assert w.rows_read == 6 == len(w.arrival_ps) + sum(w.rows_dropped.values())
    assert w.offered_rate_per_s == 1.0


def test_closed_loop_takes_lengths_of_the_trace_in_order_and_repeats_them(trace):
    w = make(trace=trace, mode="closed", concurrency=2, num_requests=8)
    assert w.output_tokens.tolist() == [1, 2, 3, 4, 5, 6, 1, 2]
    assert w.rows_dropped == {}
    assert len(make(trace=trace, mode="closed", concurrency=2).arrival_ps) == 6


def test_trace_lengths_with_synthetic_times_and_the_reverse(trace):
    w = make(trace=trace, arrival=POISSON, num_requests=7)
    assert w.input_tokens.tolist() == [10, 11, 12, 13, 14, 15, 10]
    assert w.arrival_ps[1] % PS_PER_S != 0
    w = make(trace=trace, arrival={"process": "trace"}, lengths=LENGTHS)
    assert (w.arrival_ps // PS_PER_S).tolist() == [0, 1, 2, 3, 4, 5]
    assert set(w.input_tokens.tolist()) == {100}


def test_preset_supplies_what_is_not_given():
    w = make(preset="azure-conv-2023", arrival=POISSON)
    assert w.offered_rate_per_s == pytest.approx(5, rel=0.1)
    np.testing.assert_array_equal(w.input_tokens, make().input_tokens)


# --- refusals --------------------------------------------------------------------------------------------------------

TRACE = {"format": "csv", "path": "x.csv"}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"preset": "sharegpt"}, "'azure-conv-2023'"),
        ({"mode": "half"}, "'open' or 'closed'"),
        ({"concurrency": 4}, "concurrency has no effect with mode 'open'"),
        ({"stagger": True}, "stagger has no effect with mode 'open'"),
        ({"mode": "closed"}, "needs concurrency"),
        ({"mode": "closed", "concurrency": 0}, "greater than or equal to 1"),
        ({"mode": "closed", "concurrency": 8, "num_requests": 4}, "must be at least concurrency"),
        ({"mode": "closed", "concurrency": 8, "duration_s": 4}, "duration_s has no effect with mode 'closed'"),
        ({"mode": "closed", "concurrency": 8, "arrival": POISSON, "lengths": LENGTHS}, "arrival has no effect"),
        ({"arrival": {"process": "trace"}, "lengths": LENGTHS}, "needs trace"),
        ({"preset": "azure-conv-2023", "trace": TRACE}, "preset has no effect beside trace"),
        ({"preset": "azure-conv-2023", "arrival": POISSON, "lengths": LENGTHS}, "preset has no effect"),
        ({"trace": TRACE, "arrival": POISSON, "lengths": LENGTHS}, "trace has no effect"),
        ({"trace": {**TRACE, "time_scale": 2}, "arrival": POISSON}, "trace.time_scale has no effect"),
        ({"trace": {**TRACE, "target_rate_per_s": 2}, "mode": "closed", "concurrency": 1}, "target_rate_per_s has no"),
        ({"num_requests": 0}, "greater than or equal to 1"),
        ({"duration_s": float("inf")}, "finite number"),
        (
            {"arrival": {**POISSON, "normalize_duration": True}, "duration_s": 9},
            "goes with num_requests, not with duration_s",
        ),
        ({"requests": 5}, "Extra inputs"),
    ],
)
def test_bad_spec_is_refused(keys, message):
    with pytest.raises(ValidationError, match=message):
        WorkloadSpec.model_validate(keys)


def test_requests_that_the_trace_does_not_have_are_refused(trace):
    with pytest.raises(InputError, match="is 7, but the selected trace has 6 requests"):
        make(trace=trace, num_requests=7)
    with pytest.raises(InputError, match="is 7, but the trace has 6 requests"):
        make(trace=trace, mode="closed", concurrency=7)


def test_negative_seed_is_refused():
    with pytest.raises(InputError, match="whole number >= 0"):
        make(seed=-1)


def test_spec_round_trips_and_has_a_schema_with_descriptions():
    spec = WorkloadSpec.model_validate({"preset": "azure-conv-2023", "arrival": POISSON})
    assert WorkloadSpec.model_validate_json(spec.model_dump_json()) == spec
    schema = WorkloadSpec.model_json_schema()
    assert json.dumps(schema)
    for part in [schema, *schema["$defs"].values()]:
        for name, field in part.get("properties", {}).items():
            assert "description" in field or name == "kind", name


@pytest.mark.medium
def test_import_pulls_in_nothing_heavy():
    code = "import sys, pimserve.loadgen.workload; print(*{m.split('.')[0] for m in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"rich", "typer", "yaml", "scipy", "pandas", "ray", "grpc"} & set(loaded)
    assert {"numpy", "pydantic"} <= set(loaded)
