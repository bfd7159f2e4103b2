"""A trace that is cut and written replays to the picosecond."""

import io
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pimserve.loadgen.trace_cut import beside_lengths, write_trace
from pimserve.loadgen.traces import Trace, TraceSpec, load_trace

REQUESTS = st.lists(
    st.tuples(st.integers(0, 10**16), st.integers(1, 10**6), st.integers(1, 10**6)), min_size=1, max_size=20
)


def same(one, other):
    return all(
        np.array_equal(getattr(one, name), getattr(other, name))
        for name in ("arrival_ps", "input_tokens", "output_tokens")
    )


def reread(trace, folder):
    text = io.StringIO()
    write_trace(trace, text)
    path = folder / "cut.csv"
    path.write_text(text.getvalue())
    return load_trace(TraceSpec(path=str(path)))


@pytest.mark.medium
@given(REQUESTS)
def test_what_is_written_is_read_again(tmp_path_factory, requests):
    times, inputs, outputs = map(np.array, zip(*sorted(requests), strict=True))
    trace = Trace("csv", times - times[0], inputs, outputs, len(times), {})
    assert same(trace, reread(trace, tmp_path_factory.getbasetemp()))


@pytest.mark.parametrize(
    "keys",
    [
        {"start_s": 2, "end_s": 9},
        {"max_requests": 4, "time_scale": 1 / 3},
        {"target_rate_per_s": 7.3},
        {"sample_ratio": 0.5},
        {"tick_jitter": "uniform"},
    ],
)
def test_a_changed_slice_replays_as_changed(tmp_path, keys):
    lines = [{"timestamp": 1000 * (n // 2), "input_length": 9 + n, "output_length": 1} for n in range(24)]
    path = tmp_path / "trace.jsonl"
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    trace = load_trace(TraceSpec(format="mooncake", path=str(path), **keys))
    assert same(trace, reread(trace, tmp_path))
    assert beside_lengths(trace) == []


def test_blocks_and_sessions_that_are_lost_are_told(tmp_path):
    rows = [
        {"chat_id": n, "parent_chat_id": n - 1, "timestamp": n, "input_length": 20, "output_length": 1, "turn": 1}
        for n in range(3)
    ]
    path = tmp_path / "trace.jsonl"
    path.write_text("".join(f"{json.dumps(row | {'hash_ids': [1, 2]})}\n" for row in rows))
    blocks, sessions = beside_lengths(load_trace(TraceSpec(path=str(path))))
    assert "6 ids of blocks of 16 tokens" in blocks
    assert "2 turns" in sessions
