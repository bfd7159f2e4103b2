"""Trace readers: real slices against independent figures, selection, rescaling, and every kind of bad file."""

import gzip
import json
import os
from decimal import Decimal
from time import process_time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pimserve.errors import InputError
from pimserve.loadgen.spec import PS_PER_S
from pimserve.loadgen.traces import TraceSpec, csv_rows, format_names, load_trace, parse_trace_argument
from tests.loadgen.slices import SLICES, real

AZURE_HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
AZURE = (
    AZURE_HEADER + "2023-11-16 23:59:59.9999999,374,44\n2023-11-17 00:00:00.0000000,396,109\n"
    "2023-11-17 00:00:01.5000001,879,55\n"
)
CSV_HEADER = "arrival_s,input_tokens,output_tokens\n"
CSV = CSV_HEADER + "".join(f"{t},{100 + t},{1 + t}\n" for t in range(10))


def write(directory, content, name="trace.csv"):
    path = directory / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def load(path, kind="csv", **keys):
    return load_trace(TraceSpec.model_validate({"format": kind, "path": path, **keys}))


# --- real slices -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("azure_llm_2023_conv_0000-1800s.csv.gz", marks=real),
        pytest.param("azure_llm_2023_code_0000-1800s.csv.gz", marks=real),
    ],
)
def test_slice_has_the_expected_statistics(name):
    expected = json.loads((SLICES / "expected_stats.json").read_text())[name]
    trace = load(str(SLICES / name), "azure")
    arrivals, gaps = expected["arrivals"], np.diff(trace.arrival_ps) / PS_PER_S
    assert trace.rows_read == len(trace.arrival_ps) == arrivals["n"]
    assert trace.rows_dropped == {}
    assert trace.arrival_ps[-1] == round(arrivals["span_s"] * 10**7) * 100_000
    assert gaps.mean() == pytest.approx(arrivals["gap_mean_s"], rel=1e-8)
    assert gaps.std() / gaps.mean() == pytest.approx(arrivals["gap_cv"], abs=1e-6)
    assert gaps.max() == pytest.approx(arrivals["gap_max_s"], abs=1e-9)
    for bin_s in (1, 10, 60):
        whole_bins = int(arrivals["span_s"] // bin_s)
        counts = np.bincount(trace.arrival_ps // (bin_s * PS_PER_S))[:whole_bins]
        assert counts.var() / counts.mean() == pytest.approx(arrivals[f"idc_{bin_s}s"], rel=1e-6)
    for key, tokens in (("input", trace.input_tokens), ("output", trace.output_tokens)):
        assert tokens.sum() == expected[key]["sum"]
        assert tokens.max() == expected[key]["max"]
        for p in (1, 10, 25, 50, 75, 90, 95, 99):
            assert np.percentile(tokens, p) == pytest.approx(expected[key][f"p{p}"], abs=1e-9)


@pytest.mark.parametrize("name", [pytest.param("azure_llm_2023_conv_0000-1800s.csv.gz", marks=real)])
def test_fast_and_row_parsers_agree_on_a_real_slice(name, monkeypatch):
    fast = load(str(SLICES / name), "azure")
    monkeypatch.setattr(csv_rows, "_parse_fast", lambda *_: None)
    slow = load(str(SLICES / name), "azure")
    np.testing.assert_array_equal(fast.arrival_ps, slow.arrival_ps)
    np.testing.assert_array_equal(fast.input_tokens, slow.input_tokens)
    np.testing.assert_array_equal(fast.output_tokens, slow.output_tokens)


# --- good files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fast", [True, False])
def test_azure_times_are_exact_to_100_ns_and_relative(tmp_path, fast, monkeypatch):
    if not fast:
        monkeypatch.setattr(csv_rows, "_parse_fast", lambda *_: None)
    trace = load(write(tmp_path, AZURE), "azure")
    assert trace.arrival_ps.tolist() == [0, 100_000, 1_500_000_200_000]
    assert trace.input_tokens.tolist() == [374, 396, 879]
    assert trace.output_tokens.tolist() == [44, 109, 55]


@pytest.mark.parametrize(
    "content",
    [
        CSV,
        CSV.rstrip("\n"),
        CSV + "\n\n",
        CSV.replace("\n", "\r\n"),
        "\ufeff" + CSV,
        CSV.replace(",", " , "),
        '"arrival_s", "input_tokens", "output_tokens"\n' + "".join(f'"{t}", "{100 + t}", {1 + t}\n' for t in range(10)),
        gzip.compress(CSV.encode()),
    ],
    ids=["plain", "no final newline", "blank lines at end", "crlf", "byte order mark", "spaces", "quotes", "gzip"],
)
def test_harmless_variants_read_alike(tmp_path, content):
    trace = load(write(tmp_path, content))
    assert (trace.arrival_ps // PS_PER_S).tolist() == list(range(10))
    assert trace.input_tokens.tolist() == list(range(100, 110))
    assert trace.output_tokens.tolist() == list(range(1, 11))


def test_csv_columns_are_read_by_name(tmp_path):
    trace = load(write(tmp_path, "output_tokens,arrival_s,input_tokens\n7,0.5,9\n"))
    assert (trace.arrival_ps.tolist(), trace.input_tokens.tolist(), trace.output_tokens.tolist()) == (
        [0],  # the only row that is used
        [9],
        [7],
    )


@pytest.mark.medium
@given(
    st.lists(
        st.tuples(st.integers(0, 9 * 10**18), st.integers(1, 10**7), st.integers(1, 10**7)), min_size=1, max_size=30
    )
)
def test_written_rows_come_back_to_the_picosecond(tmp_path_factory, rows):
    rows.sort()
    body = "".join(f"{t // PS_PER_S}.{t % PS_PER_S:012d},{i},{o}\n" for t, i, o in rows)
    trace = load(write(tmp_path_factory.mktemp("t"), CSV_HEADER + body))
    assert trace.arrival_ps.tolist() == [t - rows[0][0] for t, _, _ in rows]
    assert trace.input_tokens.tolist() == [i for _, i, _ in rows]
    assert trace.output_tokens.tolist() == [o for _, _, o in rows]


def test_selection_rebases_and_accounts_for_every_row(tmp_path):
    trace = load(write(tmp_path, CSV), start_s=2, end_s=8, max_requests=4)
    assert (trace.arrival_ps // PS_PER_S).tolist() == [0, 1, 2, 3]
    assert trace.input_tokens.tolist() == [102, 103, 104, 105]
    assert trace.rows_read == 10
    assert trace.rows_dropped == {"before start_s": 2, "from end_s on": 2, "beyond max_requests": 2}


@pytest.mark.parametrize("first_s", ["0", "51.25", "819000.045", "19440110", "1721923200.123456789012", "1e15"])
@pytest.mark.parametrize("fast", [True, False])
def test_the_first_row_that_is_used_arrives_at_0(tmp_path, first_s, fast, monkeypatch):
    if not fast:
        monkeypatch.setattr(csv_rows, "_parse_fast", lambda *_: None)
    offsets = [0, 51, 82, 82, 144.5, 191]
    times = [Decimal(first_s) + Decimal(offset) for offset in offsets]
    path = write(tmp_path, CSV_HEADER + "".join(f"{time},{10 + i},5\n" for i, time in enumerate(times)))

    def arrivals_s(**keys):
        return (load(path, **keys).arrival_ps / PS_PER_S).tolist()

    begin_s = float(first_s)
    assert arrivals_s() == offsets
    assert arrivals_s(start_s=begin_s + 60, end_s=begin_s + 190) == [0, 0, 62.5]
    if Decimal(repr(begin_s)) == Decimal(first_s):
        assert arrivals_s(start_s=begin_s, end_s=begin_s + 82, max_requests=2) == [0, 51]
        assert arrivals_s(start_s=begin_s + 51) == [each - 51 for each in offsets[1:]]
    assert arrivals_s(time_scale=0.5) == [each / 2 for each in offsets]
    assert arrivals_s(target_rate_per_s=10) == pytest.approx([each * 0.5 / 191 for each in offsets])
    with pytest.raises(InputError, match="no row lies from start_s to end_s"):
        load(path, start_s=begin_s + 200)


def test_time_scale_multiplies_and_target_rate_is_met(tmp_path):
    path = write(tmp_path, CSV)
    assert load(path, time_scale=0.5).arrival_ps[-1] == 4.5 * PS_PER_S
    arrival = load(path, target_rate_per_s=20).arrival_ps
    assert 9 * PS_PER_S / (arrival[-1] - arrival[0]) == pytest.approx(20, rel=1e-9)


def test_relative_path_is_also_tried_in_the_traces_directory(tmp_path, monkeypatch):
    write(tmp_path, CSV, "only_there.csv")
    monkeypatch.setenv("PIMSERVE_TRACES", str(tmp_path))
    assert load("only_there.csv").rows_read == 10


@pytest.mark.medium
def test_reading_is_fast(tmp_path):
    rng = np.random.default_rng(0)
    n = 200_000
    seconds, inputs, outputs = np.cumsum(rng.exponential(0.1, n)), rng.integers(1, 5000, n), rng.integers(1, 900, n)
    rows = zip(seconds.tolist(), inputs.tolist(), outputs.tolist(), strict=True)
    path = write(tmp_path, CSV_HEADER + "".join(f"{t:.6f},{i},{o}\n" for t, i, o in rows))
    start = process_time()
    assert load(path).rows_read == n
    assert process_time() - start < 2.0  # measured below 0.1 s; the wide margin is for shared machines


# --- bad files -------------------------------------------------------------------------------------------------------

GOOD_ROW = "2023-11-16 18:15:46.6805900,374,44\n"
BAD_AZURE = {
    "empty file": ("", "", "the file is empty"),
    "header only": (AZURE_HEADER, "", "no rows"),
    "no header": (GOOD_ROW, ":1", "column TIMESTAMP, ContextTokens, GeneratedTokens is missing"),
    "missing column": ("TIMESTAMP,ContextTokens\n", ":1", "column GeneratedTokens is missing"),
    "too few fields": (AZURE_HEADER + GOOD_ROW + "2023-11-16 18:15:50.9951690,396\n", ":3", "found 2"),
    "too many fields": (AZURE_HEADER + GOOD_ROW[:-1] + ",1\n", ":2", "found 4"),
    "last line cut short": (AZURE_HEADER + GOOD_ROW + "2023-11-16 18:1", ":3", "found 1"),
    "last field cut off": (AZURE_HEADER + GOOD_ROW + "2023-11-16 18:15:50.9951690,396,", ":3", "GeneratedTokens is ''"),
    "blank line": (AZURE_HEADER + GOOD_ROW + "\n" + GOOD_ROW, ":3", "found 1"),
    "text for tokens": (AZURE_HEADER + GOOD_ROW.replace("374", "many"), ":2", "ContextTokens is 'many'"),
    "fraction of tokens": (AZURE_HEADER + GOOD_ROW.replace("374", "1.5"), ":2", "whole number from 1 to 10000000"),
    "zero output": (AZURE_HEADER + GOOD_ROW.replace(",44", ",0"), ":2", "GeneratedTokens is '0'"),
    "negative input": (AZURE_HEADER + GOOD_ROW.replace("374", "-374"), ":2", "ContextTokens is '-374'"),
    "nan": (AZURE_HEADER + GOOD_ROW.replace("374", "nan"), ":2", "ContextTokens is 'nan'"),
    "huge": (AZURE_HEADER + GOOD_ROW.replace("374", "10000001"), ":2", "'10000001'"),
    "beyond int64": (AZURE_HEADER + GOOD_ROW.replace("374", "9" * 40), ":2", "ContextTokens"),
    "bad time": (AZURE_HEADER + GOOD_ROW + GOOD_ROW.replace("18:15", "25:15"), ":3", "YYYY-MM-DD HH:MM:SS"),
    "bad date": (AZURE_HEADER + GOOD_ROW.replace("11-16", "02-30"), ":2", "YYYY-MM-DD HH:MM:SS"),
    "odd time zone": (AZURE_HEADER + GOOD_ROW.replace(".6805900", "+24:00"), ":2", "Z or +HH:MM"),
    "named time zone": (AZURE_HEADER + GOOD_ROW.replace(".6805900", " CET"), ":2", "Z or +HH:MM"),
    "below a picosecond": (AZURE_HEADER + GOOD_ROW.replace("6805900", "6805900123456"), ":2", "12 digits at most"),
    "column twice": (AZURE_HEADER[:-1] + ",ContextTokens\n" + GOOD_ROW, ":1", "column ContextTokens is there twice"),
    "back in time": (AZURE_HEADER + GOOD_ROW + GOOD_ROW.replace("46.", "45."), ":3", "sorted by time"),
    "far back in time": (AZURE_HEADER + GOOD_ROW.replace("2023", "2083") + GOOD_ROW, ":3", "sorted by time"),
    "centuries later": (AZURE_HEADER + GOOD_ROW + GOOD_ROW.replace("2023", "2523"), ":3", "where the clock ends"),
    "zero byte": (AZURE_HEADER + GOOD_ROW.replace("2023-11-16 ", "2023-11-16\0"), ":2", "YYYY-MM-DD HH:MM:SS"),
    "months later": (AZURE_HEADER + GOOD_ROW + GOOD_ROW.replace("2023", "2024"), ":3", "where the clock ends"),
}
BAD_CSV = {
    "other header": (
        "t,in,output_tokens\n0,1,1\n",
        ":1",
        "column arrival_s, input_tokens is missing; found: 't, in, output_tokens', needed: 'arrival_s, input_tokens, ",
    ),
    "field without column": (CSV_HEADER[:-1] + ",user\n0,1,1,a\n0,1,1,a,b\n", ":3", "4 fields are needed"),
    "column without field": (CSV_HEADER[:-1] + ",user\n0,1,1,a\n0,1,1\n", ":3", "found 3"),
    "one too many, one too few": (CSV_HEADER[:-1] + ",user\n0,1,1,a,b\n0,1,1\n", ":2", "found 5"),
    "nan time": (CSV_HEADER + "0,1,1\nnan,1,1\n", ":3", "arrival_s is 'nan'; seconds"),
    "infinite time": (CSV_HEADER + "1e999,1,1\n", ":2", "finite number >= 0"),
    "no time": (CSV_HEADER + ",1,1\n", "", "no row has a time (arrival_s)"),
    "negative time": (CSV_HEADER + "-1,1,1\n", ":2", "finite number >= 0"),
    "months later": (
        CSV_HEADER + "1700000000,1,1\n1709000001,1,1\n",
        ":3",
        "after the first row that is used, where the clock ends; start_s and end_s select fewer",
    ),
    "back in time": (CSV_HEADER + "1,1,1\n2,1,1\n1.5,1,1\n", ":4", "arrival_s '1.5' lies before the row above"),
    "zero output": (CSV_HEADER + "0,1,1\n0,1,0\n", ":3", "output_tokens is '0'"),
    "underscores": (CSV_HEADER + "0,1_000,1\n", ":2", "input_tokens is '1_000'"),
    "quote left open": (CSV_HEADER + '0,1,1\n0,"12,1\n', ":3", "not a row of CSV"),
    "text after a quote": (CSV_HEADER + '0,"1"2,1\n', ":2", "not a row of CSV"),
    "bad encoding": (CSV_HEADER.encode() + b"0,1,1\n0,\xff1,1\n", ":3", "byte 0xff is not UTF-8"),
    "gzip cut short": (gzip.compress(CSV.encode())[:-12], "", "cut short"),
    "gzip damaged": (b"\x1f\x8b\x08\x00" + b"garbage that is no stream", "", "damaged"),
}


@pytest.mark.parametrize(
    ("kind", "case"), [*(("azure", case) for case in BAD_AZURE), *(("csv", case) for case in BAD_CSV)]
)
def test_bad_file_is_refused_with_its_line(tmp_path, kind, case):
    content, line, message = (BAD_AZURE if kind == "azure" else BAD_CSV)[case]
    path = write(tmp_path, content)
    with pytest.raises(InputError) as caught:
        load(path, kind)
    assert caught.value.where == path + line
    assert message in caught.value.message


BODIES = {
    "azure": AZURE[len(AZURE_HEADER) :],
    "csv": CSV[len(CSV_HEADER) :],
    "zones": "2024-05-10T00:00:00Z,1,2\n2024-05-10 00:00:00.5+00:00,3,4\n2024-05-10 00:00:01+00:00,5,6\n",
    "fractions": "1e-3,1,2\n.5,3,4\n0.50000000000000001,5,6\n1.25,7,8\n",
}


@pytest.mark.medium
@given(
    kind=st.sampled_from(sorted(BODIES)),
    edits=st.lists(st.tuples(st.integers(0, 150), st.sampled_from('0123456789,.\n -+eTZ:\r\t\0"#n')), max_size=3),
)
def test_damage_is_judged_alike_by_both_parsers(tmp_path_factory, kind, edits):
    kind, body = ("azure" if kind in {"azure", "zones"} else "csv"), BODIES[kind]
    header = AZURE_HEADER if kind == "azure" else CSV_HEADER
    text = list(body)
    for position, char in edits:
        text[position % len(text)] = char
    path = write(tmp_path_factory.mktemp("t"), header + "".join(text))
    outcomes = []
    for parse in (csv_rows._parse_fast, lambda *_: None):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(csv_rows, "_parse_fast", parse)
            try:
                trace = load(path, kind)
                outcomes.append([x.tolist() for x in (trace.arrival_ps, trace.input_tokens, trace.output_tokens)])
            except InputError as error:
                outcomes.append(str(error))
    assert outcomes[0] == outcomes[1]


def test_dates_that_are_sorted_must_all_fit_the_clock(tmp_path):
    """When the earliest one was is known at the end only, so that no slice helps."""
    path = write(tmp_path, AZURE_HEADER + GOOD_ROW + GOOD_ROW.replace("2023", "2024"))
    assert len(load(path, "azure", end_s=5).arrival_ps) == 1
    with pytest.raises(InputError, match=r":3: .*where the clock ends; dates that are sorted must all lie within it"):
        load(path, "azure", end_s=5, sort=True)


def test_directory_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"holds no file that ends in \.csv"):
        load(str(tmp_path))


def test_missing_file_names_where_it_was_looked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("PIMSERVE_TRACES", str(tmp_path))
    with pytest.raises(InputError, match=f"no such file, neither here nor in {tmp_path}"):
        load("nowhere.csv")


def test_empty_selection_and_impossible_rescaling_are_refused(tmp_path):
    path = write(tmp_path, CSV)
    with pytest.raises(InputError, match="no row lies from start_s to end_s; the trace ends at 9 s"):
        load(path, start_s=50)
    with pytest.raises(InputError, match="at least two rows at different times"):
        load(path, target_rate_per_s=1, max_requests=1)
    with pytest.raises(InputError, match="where the clock ends"):
        load(path, target_rate_per_s=1e-7)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"format": "json"}, "must be one of auto, azure, bailian, burstgpt, csv, jsonl, mooncake, "),
        (
            {"format": "vidur", "columns": {"arrival_s": "t"}},
            "columns goes with formats auto, csv, jsonl, parquet: vidur",
        ),
        ({"columns": {"arrival_s": "t", "arrival_ms": "t"}}, "arrival_s and arrival_ms exclude each other"),
        ({"columns": {"input_tokens": ""}}, "at least 1 character"),
        ({"time_scale": 1, "target_rate_per_s": 1}, "not both"),
        ({"start_s": 5, "end_s": 5}, "must be greater than start_s"),
        ({"time_scale": float("nan")}, "finite number"),
        ({"time_scale": 0}, "greater than 0"),
        ({"time_scale": 1e7}, "less than or equal to 1000000"),
        ({"max_requests": 0}, "greater than or equal to 1"),
    ],
)
def test_bad_spec_is_refused(keys, message):
    with pytest.raises(ValidationError, match=message):
        TraceSpec.model_validate({"format": "csv", "path": "x.csv", **keys})


def test_trace_argument():
    assert parse_trace_argument("azure:a:b.csv") == TraceSpec(format="azure", path="a:b.csv")
    assert parse_trace_argument("./a:b.csv") == parse_trace_argument("auto:./a:b.csv") == TraceSpec(path="./a:b.csv")
    with pytest.raises(InputError, match="FORMAT one of auto, azure, bailian, burstgpt, csv, jsonl, mooncake, "):
        parse_trace_argument("json:x")
    for text in ("azure:", ""):
        with pytest.raises(InputError, match=r"--trace\.path: must have|--trace\.path: .*at least 1 character"):
            parse_trace_argument(text)
    assert TraceSpec.model_json_schema()["properties"]["format"]["enum"] == ["auto", *format_names()]


def test_a_name_that_is_not_utf_8_is_an_error_of_the_user():
    with pytest.raises(InputError, match=r"--trace\.path: must be UTF-8 text"):
        parse_trace_argument("csv:" + os.fsdecode(b"tr\xfface.csv"))
