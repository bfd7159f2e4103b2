"""Traces in Parquet, whatever types their columns have."""

import gzip
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pimserve.errors import InputError
from pimserve.loadgen.traces import Trace, TraceSpec, load_trace, parquet_rows

S = 10**12
DAY = datetime(2024, 5, 10, tzinfo=UTC)


def load(path: Path, table: dict[str, object], **keys: object) -> Trace:
    pq.write_table(pa.table(table), path)
    return load_trace(TraceSpec.model_validate({"path": str(path), **keys}))


def own(**changes: object) -> dict[str, object]:
    return {"arrival_s": [0.5, 1.25, 3.0], "input_tokens": [5, 6, 7], "output_tokens": [1, 2, 3], **changes}


@pytest.mark.parametrize("batch", [1, 2, 1 << 16])
@pytest.mark.parametrize(
    ("unit", "times"),
    [
        ("s", [0.5, 1.25, 3.0]),
        ("s", ["0.5", "1.25", "3"]),
        ("ms", pa.array([500, 1250, 3000], pa.uint32())),
        ("us", pa.array([500_000, 1_250_000, 3_000_000], pa.int64())),
        ("ns", [1_700_000_000_500_000_000, 1_700_000_001_250_000_000, 1_700_000_003_000_000_000]),
        ("date", [DAY + timedelta(seconds=s) for s in (0.5, 1.25, 3)]),
        ("date", pa.array([500, 1250, 3000], pa.timestamp("ms"))),
        ("date", pa.array([500_000_000, 1_250_000_000, 3_000_000_000], pa.timestamp("ns", "Europe/Berlin"))),
    ],
)
def test_times_of_any_type(tmp_path: Path, unit: str, times: object, batch: int, monkeypatch) -> None:
    monkeypatch.setattr(parquet_rows, "_BATCH_ROWS", batch)
    tokens = {"note": ["a", "b", "c"], "p": pa.array([5, 6, 7], pa.int16()), "d": [1.0, 2.0, 3.0]}
    columns = {"arrival": "t", "input": "p", "output": "d", "unit": unit}
    trace = load(tmp_path / "t", {**tokens, "t": times}, columns=columns)
    assert (trace.format, trace.rows_read) == ("parquet", 3)
    assert trace.arrival_ps.tolist() == [0, 3 * S // 4, 5 * S // 2]
    assert (trace.input_tokens.tolist(), trace.output_tokens.tolist()) == ([5, 6, 7], [1, 2, 3])


@pytest.mark.medium
@given(times=st.lists(st.integers(0, 10**9), min_size=1, max_size=20).map(sorted))
def test_both_ways_of_reading_agree(tmp_path_factory, times) -> None:
    folder = tmp_path_factory.mktemp("t")
    table = own(
        arrival_s=[t / 1e6 for t in times], input_tokens=[1 + t % 7 for t in times], output_tokens=[1] * len(times)
    )
    fast = load(folder / "t", table)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parquet_rows, "_chunk", lambda *_: None)
        slow = load(folder / "t", table)
    np.testing.assert_array_equal(fast.arrival_ps, slow.arrival_ps)
    np.testing.assert_array_equal(fast.input_tokens, slow.input_tokens)
    assert fast.arrival_ps.tolist() == [(t - times[0]) * 10**6 for t in times]


def test_folders_sessions_and_what_is_left_out(tmp_path: Path) -> None:
    pq.write_table(pa.table({**own(), "user": ["a", "b", None]}), tmp_path / "0.parquet")
    more = own(arrival_s=[4.0, None, 6.0], output_tokens=[9, 9, None])
    pq.write_table(pa.table({**more, "user": ["a", "a", "b"]}), tmp_path / "1.parquet")
    spec = {"path": str(tmp_path), "columns": {"session": "user"}}
    with pytest.raises(InputError, match=r"1.parquet:3: output_tokens is 'null'; a whole number"):
        load_trace(TraceSpec.model_validate(spec))
    trace = load_trace(TraceSpec.model_validate({**spec, "on_bad_row": "drop"}))
    assert trace.rows_dropped == {"without a time": 1, "bad": 1}
    assert trace.sessions is not None
    assert trace.sessions.session.tolist() == [0, 1, 2, 0]
    assert trace.sessions.parents[3].tolist() == [0]
    assert trace.sessions.think_ps.tolist() == [0, 0, 0, 7 * S // 2]


def test_files_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "t"
    pq.write_table(pa.table(own()), path)
    whole = path.read_bytes()
    for content, message in (
        (whole[:-20], "no Parquet file that can be read"),
        (b"PAR1", "no Parquet file that can be read"),
        (gzip.compress(whole), "no Parquet file that can be read"),
    ):
        path.write_bytes(content)
        with pytest.raises(InputError, match=message):
            load_trace(TraceSpec(format="parquet", path=str(path)))
    with pytest.raises(InputError, match=r"column output_tokens is missing; found: 'arrival_s, input_tokens'"):
        load(path, {key: value for key, value in own().items() if key != "output_tokens"})
    with pytest.raises(InputError, match="the file holds no rows"):
        load(path, {name: pa.array([], pa.int64()) for name in own()})
    with pytest.raises(InputError, match="t:2: input_tokens is '0'; a whole number"):
        load(path, own(input_tokens=[1, 0, 1]))


@pytest.mark.parametrize(
    ("name", "values", "kind"),
    [
        ("arrival_s", [[0], [1], [2]], "list<"),
        ("arrival_s", [{"t": 0}, {"t": 1}, {"t": 2}], "struct<"),
        ("arrival_s", [b"0", b"1", b"\xff"], "binary"),
        ("input_tokens", pa.array([b"12", b"34", b"56"], pa.binary(2)), "fixed_size_binary"),
        ("user", [[1], [2], [3]], "list<"),
    ],
)
def test_columns_that_hold_something_else(tmp_path: Path, name: str, values: object, kind: str) -> None:
    with pytest.raises(InputError, match=f"t: column {name} holds {kind}.*; numbers, times or text are needed"):
        load(tmp_path / "t", own(**{name: values}), columns={"session": "user"})


def test_a_column_that_is_there_twice(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([*map(pa.array, own().values()), pa.array([1, 2, 3])], [*own(), "output_tokens"])
    pq.write_table(table, tmp_path / "t")
    with pytest.raises(InputError, match="t: column output_tokens is there twice"):
        load_trace(TraceSpec(path=str(tmp_path / "t")))


@pytest.mark.medium
def test_without_pyarrow_it_says_what_to_install(tmp_path: Path) -> None:
    path = tmp_path / "t"
    load(path, own())
    code = f"""
import sys
sys.modules["pyarrow"] = None
from pimserve.loadgen.traces import TraceSpec, load_trace
try:
    load_trace(TraceSpec(path={str(path)!r}))
except ValueError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.strip() == f"{path}: Parquet needs pyarrow: pip install 'pimserve[parquet]'", done.stderr


def test_columns_that_the_scenario_names_must_be_there(tmp_path: Path) -> None:
    assert load(tmp_path / "t", own(user=[1, 1, 2]), columns={"session": "user"}).sessions is not None
    with pytest.raises(InputError, match=r"^workload.trace.columns.session: is 'user'; the trace has: 'arrival_s, inp"):
        load(tmp_path / "t", own(), columns={"session": "user"})
