"""What becomes of rows that are not good: every one of a file is used, or dropped for a reason, or an error."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pimserve.errors import InputError
from pimserve.loadgen.streams import Streams
from pimserve.loadgen.traces import Trace, TraceSpec, csv_rows, jsonl_rows, load_trace, text_blocks

HEADER = "arrival_s,input_tokens,output_tokens,id\n"
S = 10**12
FAR = "1e15,5,5,"
# A row after one at time t, and why it is dropped, if it is.
BAD = {
    "{t},0,5,": "zero tokens",
    "{t},5,0,": "zero tokens",
    "{t},x,5,": "bad",
    "{t},5,-1,": "bad",
    "soon,5,5,": "bad",
    "{t},5": "bad",
    FAR: "bad",
    ",5,5,": "without a time",
    "{early},5,5,": "out of order",
    "{t},5,5,same": "duplicate",
}


def load(path: Path, content: str, **keys: object) -> Trace:
    path.write_text(content)
    return load_trace(TraceSpec.model_validate({"path": str(path), **keys}))


rows = st.lists(st.sampled_from(["good", "quoted", *(kind for kind in BAD if kind != FAR)]), max_size=30)


@given(
    kinds=rows,
    block_bytes=st.sampled_from([40, 200, 1 << 20]),
    start=st.integers(0, 20),
    end=st.none() | st.integers(21, 40),
    most=st.none() | st.integers(1, 20),
    ratio=st.sampled_from([1.0, 0.5]),
    seed=st.integers(0, 5),
)
def test_rows_reconcile(tmp_path_factory, kinds, block_bytes, start, end, most, ratio, seed) -> None:
    """Read = used + dropped, by reason, whatever is in the file and however it is cut into blocks."""
    lines, expected, good, last = ["0,1,1,same"], Counter(), [0], 0
    for t, kind in enumerate(kinds, start=1):
        if kind in {"good", "quoted"}:
            lines.append(f'{t},{t},"5",' if kind == "quoted" else f"{t},{t},5,")
            good.append(t)
            last = t
        else:
            reason = BAD[kind]
            if reason == "out of order" and last == 0:
                continue
            lines.append(kind.format(t=t, early=last - 0.5))
            expected[reason] += 1
    path = tmp_path_factory.mktemp("t") / "t.csv"
    spec = {"on_bad_row": "drop", "columns": {"request": "id"}, "start_s": start, "sample_ratio": ratio}
    path.write_text(HEADER + "\n".join(lines))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_blocks, "BLOCK_BYTES", block_bytes)
        whole = {**spec, "path": str(path), "end_s": end, "max_requests": most}
        try:
            trace = load_trace(TraceSpec.model_validate(whole), Streams(seed))
        except InputError:
            if ratio == 1 and any(start <= t < (end or 99) for t in good):
                raise
            return
    assert trace.rows_read == len(trace.arrival_ps) + sum(trace.rows_dropped.values())
    outside = {"before start_s", "from end_s on", "not sampled", "beyond max_requests"}
    ended = end is not None and any(t >= end for t in good)
    if not ended and (most is None or ratio < 1):  # the file is read to its end
        assert trace.rows_read == len(lines)
        assert {k: v for k, v in trace.rows_dropped.items() if k not in outside} == dict(expected)
        assert trace.rows_dropped.get("before start_s", 0) == sum(t < start for t in good)
    used = [t for t in good if start <= t < (end or 99)][:most]
    if ratio == 1:
        assert (trace.arrival_ps // S).tolist() == [t - used[0] for t in used]
    else:
        assert len(trace.arrival_ps) <= len(used)


@pytest.mark.parametrize("row", BAD)
def test_the_first_bad_row_is_an_error_where_they_are_not_dropped(tmp_path: Path, row: str) -> None:
    content = HEADER + "0,1,1,same\n1,1,1,\n" + row.format(t=2, early=0.5) + "\n3,1,1,\n"
    columns = {"request": "id"}
    if BAD[row] == "without a time":
        assert load(tmp_path / "t", content, columns=columns).rows_dropped == {"without a time": 1}
        return
    with pytest.raises(InputError) as refused:
        load(tmp_path / "t", content, columns=columns)
    assert refused.value.where == f"{tmp_path / 't'}:4"
    trace = load(tmp_path / "t", content, columns=columns, on_bad_row="drop")
    assert trace.rows_dropped == {BAD[row]: 1}
    assert (trace.arrival_ps // S).tolist() == [0, 1, 3]
    assert trace.warnings == (f"1 rows of the trace are left out: 1 {BAD[row]}",)


def test_bad_lines_of_json_are_dropped_too(tmp_path: Path) -> None:
    good = {"arrival_s": 0, "input_tokens": 1, "output_tokens": 2}
    lines = [good, {"arrival_s": 1}, [1], good, {**good, "output_tokens": 0}, {**good, "arrival_s": 2}]
    content = "".join(json.dumps(each) + "\n" for each in lines) + "{no json\n"
    trace = load(tmp_path / "t", content, on_bad_row="drop")
    assert (trace.rows_read, trace.rows_dropped) == (7, {"bad": 3, "zero tokens": 1})
    assert (trace.arrival_ps // S).tolist() == [0, 0, 2]


VALUES = st.sampled_from([0, 1, 5, -1, 7.5, 6.0, "8", "x", None, True, [], 1 << 70])


@pytest.mark.medium
@given(
    rows=st.lists(st.tuples(st.integers(0, 9), VALUES, VALUES), min_size=1, max_size=8),
    good=st.integers(0, 8),
    drop=st.booleans(),
)
def test_lines_of_json_are_judged_alike_together_and_one_by_one(tmp_path_factory, rows, good, drop) -> None:
    rows = [(0, 1, 1)] + [(k, 1, 1) if k < good else row for k, row in enumerate(rows)]
    names = ("arrival_s", "input_tokens", "output_tokens")
    content = "".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows)
    path = tmp_path_factory.mktemp("t") / "t"
    outcomes = []
    for chunk in (jsonl_rows._chunk, lambda *_: None):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(jsonl_rows, "_chunk", chunk)
            try:
                trace = load(path, content, on_bad_row="drop" if drop else "error")
                columns = (trace.arrival_ps, trace.input_tokens, trace.output_tokens)
                outcomes.append(([column.tolist() for column in columns], trace.rows_dropped))
            except InputError as error:
                outcomes.append(str(error))
    assert outcomes[0] == outcomes[1]


def test_where_nothing_is_left_it_is_said_why(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="t: no row is left: 1 zero tokens, 1 bad"):
        load(tmp_path / "t", HEADER + "0,0,1,\n1,x,1,\n", on_bad_row="drop")


# --- rows that are not selected -----------------------------------------------------------------------------------


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
@given(
    days=st.lists(st.integers(0, 1200), min_size=1, max_size=60),
    start=st.none() | st.integers(0, 1200),
    length=st.integers(1, 104),
    block_bytes=st.sampled_from([40, 200, 1 << 20]),
    shuffle=st.randoms() | st.none(),
)
def test_only_rows_that_are_selected_must_fit_the_clock(
    tmp_path_factory, fast, kind, days, start, length, block_bytes, shuffle
) -> None:
    """Years of rows before and behind the slice, sorted or not, read in blocks of any size, at once or one by one."""
    days.sort()
    begin = days[0] if start is None else start
    wanted = [(day, i) for i, day in enumerate(days) if begin <= day < begin + length]
    order = list(range(len(days)))
    if shuffle is not None:
        shuffle.shuffle(order)
        wanted.sort(key=lambda each: (each[0], order.index(each[1])))
    if kind == "csv":
        text = HEADER + "".join(f"{days[i] * 86_400}.25,{1 + i},5,\n" for i in order)
    else:
        named = ({"arrival_s": days[i] * 86_400 + 0.25, "input_tokens": 1 + i, "output_tokens": 5} for i in order)
        text = "".join(json.dumps(each) + "\n" for each in named)
    spec = {"start_s": begin * 86_400, "end_s": (begin + length) * 86_400, "sort": shuffle is not None}
    with pytest.MonkeyPatch.context() as patch:
        if not fast:
            patch.setattr(csv_rows, "_parse_fast", lambda *_: None)
            patch.setattr(jsonl_rows, "_chunk", lambda *_: None)
        patch.setattr(text_blocks, "BLOCK_BYTES", block_bytes)
        path = tmp_path_factory.mktemp("t") / "t"
        if not wanted:
            with pytest.raises(InputError, match="no row lies from start_s to end_s; the trace ends "):
                load(path, text, **spec)
            return
        trace = load(path, text, **spec)
    assert (trace.arrival_ps // S).tolist() == [(day - wanted[0][0]) * 86_400 for day, _ in wanted]
    assert trace.input_tokens.tolist() == [1 + i for _, i in wanted]
    assert trace.rows_dropped.get("before start_s", 0) == sum(day < begin for day in days)
    assert trace.rows_read == len(wanted) + sum(trace.rows_dropped.values()) <= len(days)
    assert trace.first_ps == wanted[0][0] * 86_400 * S + S // 4


@pytest.mark.parametrize("fast", [True, False])
def test_dates_of_years_of_which_weeks_are_selected(tmp_path: Path, fast: bool, monkeypatch) -> None:
    if not fast:
        monkeypatch.setattr(csv_rows, "_parse_fast", lambda *_: None)
    monkeypatch.setattr(text_blocks, "BLOCK_BYTES", 100)
    text = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
    text += "".join(
        f"{year}-{month:02d}-01 00:00:00,{year},{month}\n" for year in range(2000, 2030) for month in range(1, 13)
    )
    trace = load(tmp_path / "t", text, start_s=10 * 365.25 * 86_400, end_s=(10 * 365.25 + 62) * 86_400)
    assert list(zip(trace.input_tokens.tolist(), trace.output_tokens.tolist(), strict=True)) == [
        (2010, 1),
        (2010, 2),
        (2010, 3),
    ]
    assert (trace.arrival_ps // S).tolist() == [0, 31 * 86_400, 59 * 86_400]
    assert trace.rows_dropped["before start_s"] == 120
    assert trace.rows_read < 130


def test_what_is_selected_must_fit_the_clock(tmp_path: Path) -> None:
    """Also where it is only seen when the rows are sorted."""
    text = HEADER + "".join(f"{day * 86_400},1,5,\n" for day in (200, 120, 290))
    for keys in ({}, {"start_s": 1}, {"end_s": 1e9}):
        with pytest.raises(InputError, match="rows that are selected lie more than 9e\\+06 s apart"):
            load(tmp_path / "t", text, sort=True, **keys)
    assert len(load(tmp_path / "t", text, sort=True, start_s=150 * 86_400).arrival_ps) == 2
    with pytest.raises(
        InputError, match=r"t:4: arrival_s '25056000' lies more than 9e.06 s after the first row that is"
    ):
        load(tmp_path / "t", HEADER + "0,1,5,\n9000000,1,5,\n25056000,1,5,\n", start_s=1)


# --- order -----------------------------------------------------------------------------------------------------------


@pytest.mark.medium
@pytest.mark.parametrize("fast", [True, False])
@given(times=st.lists(st.integers(0, 1000), min_size=1, max_size=40), base=st.sampled_from([0, 1_700_000_000]))
def test_sorted_rows_are_those_of_a_sorted_file(tmp_path_factory, fast, times, base) -> None:
    folder = tmp_path_factory.mktemp("t")
    with pytest.MonkeyPatch.context() as patch:
        if not fast:
            patch.setattr(csv_rows, "_parse_fast", lambda *_: None)
        patch.setattr(text_blocks, "BLOCK_BYTES", 60)
        rows = [f"{base + t / 8:.3f},{1 + i},5,\n" for i, t in enumerate(times)]
        order = sorted(range(len(times)), key=times.__getitem__)
        cut = {"start_s": base + min(times) / 8, "max_requests": 9}
        trace = load(folder / "a", HEADER + "".join(rows), sort=True, **cut)
        other = load(folder / "b", HEADER + "".join(rows[i] for i in order), **cut)
    for name in ("arrival_ps", "input_tokens"):
        np.testing.assert_array_equal(getattr(trace, name), getattr(other, name))
    late = [max(times[: i + 1]) - t for i, t in enumerate(times)]
    count = sum(each > 0 for each in late)
    said = f"{count} rows of the trace were out of order, by up to {max(late) / 8:g} s, and were sorted"
    assert trace.warnings == ((said,) if count else ())


def test_dates_out_of_order_count_from_the_earliest(tmp_path: Path) -> None:
    rows = "".join(f"2024-05-10 00:00:0{t},{t},5\n" for t in (5, 1, 9))
    trace = load(tmp_path / "t", f"TIMESTAMP,ContextTokens,GeneratedTokens\n{rows}", sort=True, start_s=4)
    assert (trace.input_tokens.tolist(), (trace.arrival_ps // S).tolist()) == ([5, 9], [0, 4])
