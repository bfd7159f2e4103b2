"""Formats of traces: each as its authors write it, any CSV or JSON Lines by a mapping, and what is not modelled."""

import json
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pimserve.errors import InputError
from pimserve.loadgen.spec import PS_PER_S
from pimserve.loadgen.traces import Trace, TraceSpec, csv_rows, load_trace
from pimserve.loadgen.workload import WorkloadSpec, generate
from tests.loadgen.slices import SLICES, real

AZURE_HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens\n"


def load(folder: Path, content: str, kind: str, **keys: object) -> Trace:
    path = folder / "trace"
    path.write_text(content)
    return load_trace(TraceSpec.model_validate({"format": kind, "path": str(path), **keys}))


def rows(trace: Trace) -> list[tuple[int, int, int]]:
    """(arrival ps, input, output)."""
    columns = (trace.arrival_ps, trace.input_tokens, trace.output_tokens)
    return list(zip(*(column.tolist() for column in columns), strict=True))


@pytest.fixture(params=["numpy", "row by row"])
def both_parsers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param != "numpy":
        monkeypatch.setattr(csv_rows, "_parse_fast", lambda *_: None)


# --- Azure -----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("both_parsers")
@pytest.mark.parametrize(
    "stamps",
    [
        ["2024-05-10 00:00:00.009930+00:00", "2024-05-10 00:00:00.017335+00:00", "2024-05-10 00:00:01+00:00"],
        ["2024-05-10T00:00:00.009930Z", "2024-05-10T00:00:00.017335Z", "2024-05-10T00:00:01Z"],
        ["2024-05-10 00:00:00.009930", "2024-05-10 00:00:00.017335", "2024-05-10 00:00:01"],
        ["2024-05-10 00:00:00.009930000000Z", "2024-05-10 00:00:00.017335000", "2024-05-10 00:00:01.0"],
        ["2024-05-09T22:30:00.009930-01:30", "2024-05-10T05:30:00.017335+0530", "2024-05-10 02:00:01+02:00"],
    ],
    ids=["2024", "T and Z", "no zone", "picoseconds", "other zones"],
)
def test_azure_2024(tmp_path: Path, stamps: list[str]) -> None:
    body = "".join(f"{t},{i},{o}\n" for t, i, o in zip(stamps, (2162, 2399, 76), (5, 6, 15), strict=True))
    trace = load(tmp_path, AZURE_HEADER + body, "azure")
    assert rows(trace) == [(0, 2162, 5), (7_405 * 10**6, 2399, 6), (990_070 * 10**6, 76, 15)]
    assert trace.warnings == ()


@pytest.mark.medium
@given(
    gaps=st.lists(st.integers(0, 10**15), min_size=1, max_size=8),
    offset=st.sampled_from([None, "Z", 0, 60, -330, 14 * 60]),
    digits=st.sampled_from([0, 3, 6, 7, 9, 12]),
)
def test_dates_are_read_exactly(
    tmp_path_factory: pytest.TempPathFactory, gaps: list[int], offset: int | str | None, digits: int
) -> None:
    unit = 10 ** (12 - digits)
    times = [sum(gaps[: i + 1]) // unit * unit for i in range(len(gaps))]
    zone = timezone(timedelta(minutes=offset)) if isinstance(offset, int) else UTC
    stamps = []
    for time in times:
        moment = (datetime(2024, 2, 28, 23, tzinfo=UTC) + timedelta(seconds=time // PS_PER_S)).astimezone(zone)
        fraction = f".{time % PS_PER_S:012d}"[: digits + 1] if digits else ""
        suffix = moment.isoformat()[19:] if isinstance(offset, int) else offset or ""
        stamps.append(moment.isoformat()[:19] + fraction + suffix)
    trace = load(tmp_path_factory.mktemp("t"), AZURE_HEADER + "".join(f"{t},1,1\n" for t in stamps), "azure")
    assert trace.arrival_ps.tolist() == [time - times[0] for time in times]


def test_azure_multimodal_says_that_images_are_not_modelled(tmp_path: Path) -> None:
    content = "TIMESTAMP,NumImages,ContextTokens,GeneratedTokens\n2024-10-15 00:00:00.0000000,2,900,120\n"
    trace = load(tmp_path, content, "azure")
    assert rows(trace) == [(0, 900, 120)]
    (warning,) = trace.warnings
    assert warning.startswith("images are not modelled: prompts are the trace's ContextTokens")


# --- CSV -------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("both_parsers")
def test_other_columns_are_ignored_in_any_order(tmp_path: Path) -> None:
    content = "user,output_tokens,arrival_s,input_tokens,note\na,10,0.0,100,\nb,20,1.0,200,x\n"
    assert rows(load(tmp_path, content, "csv")) == [(0, 100, 10), (PS_PER_S, 200, 20)]


@pytest.mark.usefixtures("both_parsers")
def test_a_clock_that_begins_within_a_second_is_cut_where_it_says(tmp_path: Path) -> None:
    content = "arrival_s,input_tokens,output_tokens\n0.75,1,1\n1.5,2,2\n2.25,3,3\n"
    assert rows(load(tmp_path, content, "csv", start_s=1.5)) == [(0, 2, 2), (3 * PS_PER_S // 4, 3, 3)]
    assert rows(load(tmp_path, content, "csv", start_s=0.75, end_s=1.5)) == [(0, 1, 1)]


def test_quoted_text_beside_the_columns_may_hold_anything(tmp_path: Path) -> None:
    content = (
        'prompt,arrival_s,input_tokens,output_tokens\n"Why, ""really""?\nYes\u2026",0.5,"100",10\n,1,200.0,20\n'
        "x,2,3,nan\n"
    )
    with pytest.raises(InputError, match=r"trace:5: output_tokens is 'nan'"):
        load(tmp_path, content, "csv")
    good = content.rsplit("x,", maxsplit=1)[0]
    assert rows(load(tmp_path, good, "csv")) == [(0, 100, 10), (PS_PER_S // 2, 200, 20)]


@pytest.mark.usefixtures("both_parsers")
def test_times_are_exact_however_they_are_written(tmp_path: Path) -> None:
    stamps = ["0", "1.5e-05", ".000016", "0.30000000000000004", "0.3000000000004", "1.", "1.000000000001", "8999999.25"]
    content = "arrival_s,input_tokens,output_tokens\n" + "".join(f"{stamp},1,1\n" for stamp in stamps)
    assert load(tmp_path, content, "csv").arrival_ps.tolist() == [
        *(0, 15_000_000, 16_000_000, 300_000_000_000, 300_000_000_000, 10**12, 10**12 + 1),
        8_999_999_250_000_000_000,
    ]


@pytest.mark.usefixtures("both_parsers")
@pytest.mark.parametrize(
    ("columns", "stamps"),
    [
        ({"arrival_s": "when"}, ["0.25", "1.5"]),
        ({"arrival_ms": "when"}, ["250", "1500.0"]),
        ({"arrival_date": "when"}, ["2024-05-10 00:00:00.25", "2024-05-10 00:00:01.5"]),
    ],
)
def test_any_csv_by_a_mapping(tmp_path: Path, columns: dict[str, str], stamps: list[str]) -> None:
    content = f"model,Response tokens,Request tokens,when\nm,18,472,{stamps[0]}\nm,230,1087,{stamps[1]}\n"
    names = {**columns, "input_tokens": "Request tokens", "output_tokens": "Response tokens"}
    trace = load(tmp_path, content, "csv", columns=names)
    assert rows(trace) == [(0, 472, 18), (1250 * 10**9, 1087, 230)]
    with pytest.raises(
        InputError, match=r"column input_tokens is missing; found: 'model, Response tokens, Request tok"
    ):
        load(tmp_path, content, "csv", columns={key: name for key, name in names.items() if key != "input_tokens"})


def test_vidur(tmp_path: Path) -> None:
    content = "arrived_at,num_prefill_tokens,num_decode_tokens\n0.0,591,140\n0.125,547,248\n"
    assert rows(load(tmp_path, content, "vidur")) == [(0, 591, 140), (PS_PER_S // 8, 547, 248)]


# --- JSON Lines ------------------------------------------------------------------------------------------------------

MOONCAKE = [
    {"timestamp": 0, "input_length": 6758, "output_length": 500, "hash_ids": [0, 1]},
    {"timestamp": 27482, "input_length": 7322, "output_length": 490, "hash_ids": [0, 14]},
    {"timestamp": 27482.5, "input_length": 7236, "output_length": 794, "hash_ids": [0, 28]},
]


def lines(*objects: object) -> str:
    return "".join(json.dumps(each) + "\n" for each in objects)


def test_mooncake_counts_milliseconds(tmp_path: Path) -> None:
    trace = load(tmp_path, lines(*MOONCAKE), "mooncake")
    assert rows(trace) == [(0, 6758, 500), (27_482 * 10**9, 7322, 490), (27_482 * 10**9 + 5 * 10**8, 7236, 794)]
    assert trace.warnings == ()


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("mooncake_fast25_conversation_0000-1200s.jsonl.gz", marks=real),
        pytest.param("mooncake_fast25_synthetic_0000-0400s.jsonl.gz", marks=real),
    ],
)
def test_mooncake_slices_have_the_expected_statistics(name: str) -> None:
    expected = json.loads((SLICES / "expected_stats.json").read_text())[name]
    trace = load_trace(TraceSpec(format="mooncake", path=str(SLICES / name)))
    assert len(trace.arrival_ps) == expected["arrivals"]["n"]
    assert trace.arrival_ps[-1] == round(expected["arrivals"]["span_s"] * 1000) * 10**9
    assert (np.diff(trace.arrival_ps) == 0).mean() == pytest.approx(expected["arrivals"]["gap_zero_fraction"], abs=1e-6)
    assert trace.input_tokens.sum() == expected["input"]["sum"]
    assert trace.output_tokens.sum() == expected["output"]["sum"]


def test_any_json_lines_by_a_mapping(tmp_path: Path) -> None:
    content = lines({"t": 1.000000000001, "in": 5, "out": "7", "x": {"y": [1]}}, {"out": 8, "in": 6.0, "t": 2})
    columns = {"arrival_s": "t", "input_tokens": "in", "output_tokens": "out"}
    assert rows(load(tmp_path, content, "jsonl", columns=columns)) == [(0, 5, 7), (10**12 - 1, 6, 8)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "trace: the file is empty; lines with timestamp, input_length, output_length are needed"),
        ("{}\n", "trace:1: timestamp, input_length, output_length is missing; found: ''"),
        (lines(MOONCAKE[0], {"timestamp": 1}), "trace:2: input_length, output_length is missing; found: 'timestamp'"),
        (lines(MOONCAKE[0]) + "\n" + lines(MOONCAKE[1]), "trace:2: not JSON: Expecting value"),
        (lines(MOONCAKE[0])[:-9], "trace:1: not JSON: "),
        ("[" * 100_000, "trace:1: not JSON that can be read: nested too deep"),
        ("[1, 2, 3]\n", "trace:1: must be an object"),
        (lines(MOONCAKE[1], MOONCAKE[0]), "trace:2: timestamp '0' lies before the row above"),
        (lines({**MOONCAKE[0], "timestamp": -1}), "trace:1: timestamp is '-1'; milliseconds are needed"),
        (lines({**MOONCAKE[0], "timestamp": float("nan")}), "trace:1: timestamp is 'NaN'"),
        (lines({**MOONCAKE[0], "timestamp": True}), "trace:1: timestamp is 'true'"),
        (lines({**MOONCAKE[0], "output_length": 0}), "trace:1: output_length is '0'; a whole number from 1 to"),
        (lines({**MOONCAKE[0], "output_length": None}), "trace:1: output_length is 'null'"),
        (lines({**MOONCAKE[0], "input_length": [3]}), "trace:1: input_length is '["),
    ],
)
def test_bad_lines_are_refused(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(InputError) as refused:
        load(tmp_path, content, "mooncake")
    assert str(refused.value).removeprefix(str(tmp_path) + "/").startswith(message)


def test_rows_without_a_time_are_left_out_and_counted(tmp_path: Path) -> None:
    content = "arrival_s,input_tokens,output_tokens\n0.5,1,2\n,3,4\n1,5,6\n"
    trace = load(tmp_path, content, "csv")
    assert rows(trace) == [(0, 1, 2), (PS_PER_S // 2, 5, 6)]
    assert (trace.rows_read, trace.rows_dropped) == (3, {"without a time": 1})
    assert trace.warnings == ("1 rows of the trace have no arrival time and are left out",)


# --- what the requests that follow have to say ------------------------------------------------------------------------


def test_a_replay_in_ticks_says_so(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    path.write_text(lines(*({**MOONCAKE[0], "timestamp": i // 4 * 3000} for i in range(20))))
    trace = {"format": "mooncake", "path": str(path)}
    replayed = generate(WorkloadSpec.model_validate({"trace": trace}), 0)
    assert [each.partition(":")[0] for each in replayed.warnings] == [
        "79 % of the trace's requests arrive at the same time as the one before (its times are in ticks)",
    ]
    other_times = {"trace": trace, "arrival": {"process": "poisson", "rate_per_s": 1}}
    assert generate(WorkloadSpec.model_validate(other_times), 0).warnings == ()


def replayed(folder: Path, times: list[str], **changes: object) -> tuple[str, ...]:
    path = folder / "trace.csv"
    path.write_text("arrival_s,input_tokens,output_tokens\n" + "".join(f"{time},5,5\n" for time in times))
    spec = {"trace": {"format": "csv", "path": str(path), **changes}}
    return generate(WorkloadSpec.model_validate(spec), 0).warnings


def test_a_start_before_the_clock_of_the_trace_says_so(tmp_path: Path) -> None:
    times = [f"{1_700_000_000 + i}.5" for i in range(9)]
    said = "workload.trace.start_s: 30 cuts no row: the trace's own clock begins at 1700000000.5 s"
    assert replayed(tmp_path, times, start_s=30) == (said,)
    for cut in ({}, {"start_s": 1_700_000_000.5}, {"start_s": 1_700_000_003}, {"end_s": 1_700_000_003}):
        assert replayed(tmp_path, times, **cut) == ()
    assert replayed(tmp_path, [str(i) for i in range(60)], start_s=30) == ()
    assert (
        replayed(tmp_path, [str(15 + i) for i in range(21)], start_s=5) == ()
    )  # no longer before than the trace lasts


def test_a_clock_that_may_be_in_milliseconds_is_doubted(tmp_path: Path) -> None:
    times = [str(180 * i) for i in range(30)]
    said = (
        "the trace offers 0.0056 requests/s: is its clock in milliseconds? "
        "Then workload.trace.columns: {arrival: arrival_s, unit: ms} says so"
    )
    assert replayed(tmp_path, times) == (said,)
    for known in ({"columns": {"arrival_ms": "arrival_s"}}, {"time_scale": 0.1}, {"target_rate_per_s": 0.001}):
        assert replayed(tmp_path, times, **known) == ()
    assert replayed(tmp_path, times[:20]) == replayed(tmp_path, [str(99 * i) for i in range(30)]) == ()


def test_a_trace_has_a_path_of_one_character_at_least() -> None:
    assert TraceSpec.model_validate({"format": "csv", "path": "t"}).path == "t"
    with pytest.raises(ValueError, match="at least 1 character"):
        TraceSpec.model_validate({"format": "csv", "path": ""})
