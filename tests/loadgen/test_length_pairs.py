"""Lengths that are drawn together: pairs, rows of a trace; and what goes with what."""

import numpy as np
import pytest
from pydantic import ValidationError

from pimserve.loadgen.length_pairs import LengthsSpec
from pimserve.loadgen.workload import Workload, WorkloadSpec, generate

POISSON = {"process": "poisson", "rate_per_s": 5.0}
FIXED = {"kind": "fixed", "tokens": 9}


def make(seed: int = 0, **keys: object) -> Workload:
    return generate(WorkloadSpec.model_validate({"arrival": POISSON, "num_requests": 20_000, **keys}), seed)


@pytest.fixture
def trace(tmp_path):
    path = tmp_path / "trace.csv"
    path.write_text("arrival_s,input_tokens,output_tokens\n" + "".join(f"{t},{10 + t},{100 - t}\n" for t in range(8)))
    return {"path": str(path)}


def test_pairs_stay_together_and_are_as_frequent_as_their_weights():
    w = make(lengths={"joint": {"kind": "pairs", "pairs": [[10, 1], [500, 90], [10, 7]], "weights": [1, 3, 4]}})
    pairs, counts = np.unique(np.stack((w.input_tokens, w.output_tokens)), axis=1, return_counts=True)
    assert pairs.T.tolist() == [[10, 1], [10, 7], [500, 90]]
    assert counts / 20_000 == pytest.approx([1 / 8, 4 / 8, 3 / 8], abs=0.015)
    assert "joint lengths of pairs" in w.description


def test_rows_of_a_trace_are_drawn_with_replacement(trace):
    w = make(trace=trace, lengths={"joint": {"kind": "trace"}})
    np.testing.assert_array_equal(w.input_tokens - 10, 100 - w.output_tokens)
    assert np.bincount(w.input_tokens - 10) / 20_000 == pytest.approx([1 / 8] * 8, abs=0.01)
    assert np.any(np.diff(w.input_tokens) != 1)
    few = make(trace=trace, lengths={"joint": {"kind": "trace"}}, num_requests=3)
    assert (few.rows_read, few.rows_dropped) == (8, {})  # none was to be used more than another


def test_times_of_a_trace_with_its_lengths_in_another_order(trace):
    spec = {"trace": trace, "lengths": {"joint": {"kind": "trace"}}}
    w = generate(WorkloadSpec.model_validate(spec), 1)
    assert (w.arrival_ps // 10**12).tolist() == list(range(8))
    assert w.input_tokens.tolist() != list(range(10, 18))


def test_more_requests_extend_the_draws(trace):
    for joint in ({"kind": "trace"}, {"kind": "pairs", "pairs": [[1, 2], [3, 4], [5, 6]]}):
        with_trace = {"trace": trace} if joint["kind"] == "trace" else {}
        few, many = (make(**with_trace, lengths={"joint": joint}, num_requests=n) for n in (50, 500))
        np.testing.assert_array_equal(few.input_tokens, many.input_tokens[:50])
        np.testing.assert_array_equal(few.output_tokens, many.output_tokens[:50])


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        ({}, "needs output, or joint"),
        ({"input": FIXED}, "needs output, or joint"),
        ({"output": FIXED, "joint": {"kind": "trace"}}, "joint goes without input and output"),
        ({"joint": {"kind": "pairs"}}, "Field required"),
        ({"joint": {"kind": "pairs", "pairs": []}}, "at least 1 item"),
        ({"joint": {"kind": "pairs", "pairs": [[1, 0]]}}, "greater than or equal to 1"),
        ({"joint": {"kind": "pairs", "pairs": [[1, 2]], "weights": [1, 2]}}, "weights needs 1 numbers"),
        ({"joint": {"kind": "pairs", "pairs": [[1, 2]], "file": "x.csv"}}, "give pairs"),
        ({"joint": {"kind": "pairs", "pairs": [[1, 2]], "columns": ["a", "b"]}}, "no effect without file"),
        ({"joint": {"kind": "rows"}}, "'pairs', 'trace'"),
    ],
)
def test_bad_lengths_are_refused(lengths, message):
    with pytest.raises(ValidationError, match=message):
        LengthsSpec.model_validate(lengths)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"lengths": {"output": FIXED}}, "either input, or prefix.own_tokens"),
        ({"lengths": {"joint": {"kind": "trace"}}}, "of kind 'trace' needs trace"),
        ({"lengths": {"output": FIXED, "input": FIXED}, "trace": {"path": "x"}}, "trace has no effect here"),
        (
            {"lengths": {"joint": {"kind": "trace"}}, "trace": {"path": "x", "time_scale": 2}},
            "time_scale has no effect",
        ),
    ],
)
def test_lengths_that_do_not_fit_the_workload_are_refused(keys, message):
    with pytest.raises(ValidationError, match=message):
        WorkloadSpec.model_validate({"arrival": POISSON, **keys})
