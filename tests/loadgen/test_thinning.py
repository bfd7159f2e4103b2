"""Rows that are sampled, and times that are spread within the ticks of their clock."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pimserve.errors import InputError
from pimserve.loadgen.streams import Streams
from pimserve.loadgen.traces import Trace, TraceSpec, load_trace, ticks_warning
from pimserve.loadgen.traces.thinning import sampled, spread_in_ticks
from tests.loadgen.slices import SLICES, real

S = 10**12


def load(folder: Path, n: int, seed: int = 0, **keys: object) -> Trace:
    rows = "".join(f"{t},{1 + t},5\n" for t in range(n))
    (folder / "trace").write_text(f"arrival_s,input_tokens,output_tokens\n{rows}")
    return load_trace(TraceSpec.model_validate({"path": str(folder / "trace"), **keys}), Streams(seed))


def test_a_sample_keeps_its_share_and_the_axis_of_time(tmp_path: Path) -> None:
    trace = load(tmp_path, 20_000, sample_ratio=0.25)
    kept = len(trace.arrival_ps)
    assert kept == pytest.approx(5_000, abs=4 * (20_000 * 0.25 * 0.75) ** 0.5)
    assert trace.rows_dropped == {"not sampled": 20_000 - kept}
    first = trace.input_tokens[0]
    assert (trace.arrival_ps // S).tolist() == (trace.input_tokens - first).tolist()
    assert load(tmp_path, 20_000, sample_ratio=0.25).input_tokens.tolist() == trace.input_tokens.tolist()
    assert load(tmp_path, 20_000, 1, sample_ratio=0.25).input_tokens.tolist() != trace.input_tokens.tolist()
    few = load(tmp_path, 20_000, sample_ratio=0.25, max_requests=10)
    assert few.input_tokens.tolist() == trace.input_tokens[:10].tolist()
    assert few.rows_read == 20_000
    with pytest.raises(InputError, match="sample_ratio 1e-09 leaves none of 20000 rows"):
        load(tmp_path, 20_000, sample_ratio=1e-9)


def test_a_larger_share_keeps_what_a_smaller_one_keeps() -> None:
    rows = np.arange(1000)
    few, many = (set(sampled(rows, None, ratio, Streams(3)).tolist()) for ratio in (0.2, 0.6))
    assert few < many


@given(
    gaps=st.lists(st.sampled_from([0, 0, 3000, 3001, 9000]), min_size=1, max_size=60),
    jitter=st.sampled_from(["uniform", "even"]),
    seed=st.integers(0, 9),
)
def test_requests_stay_within_their_tick_and_in_order(gaps, jitter, seed) -> None:
    times = np.cumsum(gaps)
    spread = spread_in_ticks(times, jitter, Streams(seed))
    assert (np.diff(spread) >= 0).all()
    assert (spread >= times).all()
    later = np.array([min([t for t in times if t > time], default=time + 9001) for time in times])
    assert (spread < later).all() or len(set(times)) < 2
    np.testing.assert_array_equal(spread_in_ticks(times, jitter, Streams(seed)), spread)


def test_even_spreading_is_even() -> None:
    times = np.array([0, 0, 0, 30, 60, 60, 200, 230]) * S
    assert (spread_in_ticks(times, "even", Streams(0)) / S).tolist() == [0, 10, 20, 30, 60, 75, 200, 230]
    assert spread_in_ticks(times, "none", Streams(0)) is times


@pytest.mark.medium
@pytest.mark.parametrize("name", [pytest.param("mooncake_fast25_conversation_0000-1200s.jsonl.gz", marks=real)])
def test_a_trace_in_ticks_becomes_nearly_poisson(name: str) -> None:
    """Mooncake's counts per tick of 3 s are nearly Poisson's (variance over mean 1.10); spread, its seconds are too."""

    def dispersion(**keys: object) -> float:
        arrivals = load_trace(TraceSpec.model_validate({"path": str(SLICES / name), **keys})).arrival_ps
        counts = np.bincount(arrivals // S)
        return float(counts.var() / counts.mean())

    assert dispersion() > 7
    assert dispersion(tick_jitter="uniform") == pytest.approx(1.1, abs=0.15)
    assert dispersion(tick_jitter="even") < 1
    jittered = load_trace(TraceSpec.model_validate({"path": str(SLICES / name), "tick_jitter": "uniform"}))
    assert ticks_warning(jittered.arrival_ps) == []
