"""What traces are like: public slices against independent figures, windows of them, and small ones by hand."""

import json

import numpy as np
import pytest

from pimserve.errors import InputError
from pimserve.loadgen.trace_stats import stats_document, trace_stats
from pimserve.loadgen.traces import TraceSpec
from tests.loadgen.slices import SLICES, real

NAMES = [
    "azure_llm_2023_code_0000-1800s.csv.gz",
    "azure_llm_2023_conv_0000-1800s.csv.gz",
    "burstgpt_1_rows1-40.csv",
    "burstgpt_3_rows1-30.csv",
    "mooncake_fast25_conversation_0000-1200s.jsonl.gz",
    "mooncake_fast25_synthetic_0000-0400s.jsonl.gz",
    "servegen_deepseek-r1_top12_day0.tar.gz",
    "weka_agentic_6sessions.tar.gz",
]
OWN = "arrival_s,input_tokens,output_tokens\n"


def document(path, **keys):
    return stats_document(TraceSpec.model_validate({"path": str(path), **keys}))


def write(folder, content, name="trace.csv"):
    path = folder / name
    path.write_text(content)
    return path


@pytest.mark.medium
@pytest.mark.parametrize("name", [pytest.param(name, marks=real) for name in NAMES])
def test_public_slices_have_the_expected_figures_to_the_last_digit(name):
    assert document(SLICES / name) == json.loads((SLICES / "expected_stats.json").read_text())[name]


@pytest.mark.traces
@pytest.mark.parametrize("_", [pytest.param(None, marks=real)])
def test_no_slice_is_left_out(_):
    assert sorted(json.loads((SLICES / "expected_stats.json").read_text())) == NAMES


@pytest.mark.parametrize("_", [pytest.param(None, marks=real)])
def test_a_window_has_the_figures_of_its_rows(_):
    whole = trace_stats(TraceSpec(path=str(SLICES / NAMES[4]))).trace
    window = document(SLICES / NAMES[4], start_s=300, end_s=900)
    inside = (whole.arrival_ps >= 300 * 10**12) & (whole.arrival_ps < 900 * 10**12)
    times_s = whole.arrival_ps[inside] / 10**12
    gaps = np.diff(times_s)
    assert window["arrivals"]["n"] == inside.sum()
    assert window["arrivals"]["first"] == times_s[0]
    assert window["arrivals"]["gap_cv"] == pytest.approx(gaps.std() / gaps.mean(), abs=1e-6)
    assert window["input"]["sum"] == whole.input_tokens[inside].sum()
    assert window["input"]["p99"] == pytest.approx(np.percentile(whole.input_tokens[inside], 99), abs=1e-6)
    seen: set[int] = set()
    hits = 0
    for row in np.flatnonzero(inside).tolist():
        blocks = whole.blocks[row].tolist()
        run = next((place for place, block in enumerate(blocks) if block not in seen), len(blocks))
        hits += min(run * 512, int(whole.input_tokens[row]))
        seen |= set(blocks)
    assert window["prefix"]["hit_tokens"] == hits
    assert window["prefix"]["unique_blocks"] == len(seen)


@pytest.mark.medium
@pytest.mark.parametrize("_", [pytest.param(None, marks=real)])
def test_a_window_of_failures_and_sessions(_):
    first = document(SLICES / NAMES[2], max_requests=10)
    assert (first["rows"] - first["failed_rows_zero_response"], sum(first["models"].values())) == (10, first["rows"])
    later = document(SLICES / NAMES[2], start_s=1000)
    assert later["arrivals_all_rows"]["first"] >= 1000
    turns = document(SLICES / NAMES[7], max_requests=12)["sessions"]
    assert sum(session["requests"] for session in turns.values()) == 12
    assert max(session["duration_s"] for session in turns.values()) < 101  # the shortest session is not over
    windows = document(SLICES / NAMES[6], start_s=43200, end_s=64800)
    assert (windows["windows"], windows["first_window"], windows["last_window"]) == (36, 43200, 64200)
    assert {begin for fields in windows["pdf_means"].values() for begin in fields} == {"43200"}


def test_dates_are_shown_as_they_are_by_the_clock(tmp_path):
    rows = "2024-05-10 00:00:01.5+00:00,5,6\n2024-05-10 00:00:00.009930+00:00,7,8\n"
    path = write(tmp_path, f"TIMESTAMP,ContextTokens,GeneratedTokens\n{rows}")
    found = document(path, sort=True)["arrivals"]
    assert (found["first"], found["last"]) == ("2024-05-10 00:00:00.0099300", "2024-05-10 00:00:01.5000000")
    assert found["monotone"] is False
    assert document(path, sort=True, start_s=1)["arrivals"]["first"] == "2024-05-10 00:00:01.5000000"


def test_a_lone_row_has_no_rate_but_lengths(tmp_path):
    found = document(write(tmp_path, f"{OWN}5,10,2\n"))
    assert (found["arrivals"]["rate_rps"], found["arrivals"]["idc_1s"], found["input"]["p50"]) == (None, None, 10)


def test_sessions(tmp_path):
    rows = "arrival_s,input_tokens,output_tokens,chat,took\n0,1,1,a,2\n3,1,1,b,\n10,1,1,a,\n14,1,1,a,1\n"
    columns = {"session": "chat", "duration": "took"}
    path = write(tmp_path, rows)
    sessions = trace_stats(TraceSpec(path=str(path), columns=columns)).sessions
    assert (sessions.turns.n, sessions.turns.max, sessions.following, sessions.durations_known) == (2, 3, 2, 2)
    assert sessions.think_mean_s == 6  # 8 after the first turn ended, 4 after the second began
    assert sessions.think_s[50] == 6
    found = document(path, columns=columns)["sessions"]
    assert (found["sessions"], found["longest_session"], found["think_time_mean_s"]) == (2, 3, 6)


def test_an_empty_window_is_refused(tmp_path):
    with pytest.raises(InputError, match="no row lies from start_s to end_s"):
        document(write(tmp_path, f"{OWN}5,10,2\n"), start_s=6)


def test_rows_of_burstgpt_that_are_bad_are_left_out_of_its_description(tmp_path):
    header = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    rows = ("0,a,5,6,11,x", f"1,a,{10**30},6,0,x", "2,a,-5,6,1,x", "3,a,7,0,7,x", "4,a,9,8,17,x", "9e9,a,1,1,2,x")
    path = write(tmp_path, header + "\n".join(rows))
    figures = document(path, on_bad_row="drop")
    assert (figures["rows"], figures["failed_rows_zero_response"], figures["input_ok"]["sum"]) == (3, 1, 14)
    assert document(path, on_bad_row="drop", start_s=1e9)["rows"] == 1
