"""Turns in traces: BurstGPT's and generic sessions, Bailian's parents, think times, slices and pacing."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pimserve.errors import InputError
from pimserve.loadgen.traces import Trace, TraceSpec, csv_rows, load_trace
from pimserve.loadgen.traces.pacing import paced_turns
from pimserve.loadgen.traces.ragged import Ragged
from pimserve.loadgen.traces.trace_sessions import chains, of_parents, trees
from tests.loadgen.slices import SLICES, real

S = 10**12
BURST_1 = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
BURST_3 = "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n"


def load(folder: Path, content: str, **keys: object) -> Trace:
    (folder / "trace").write_text(content)
    return load_trace(TraceSpec.model_validate({"path": str(folder / "trace"), **keys}))


def links(trace: Trace) -> list[tuple[int, list[int], float]]:
    """(session, parents, think s) of each row."""
    assert trace.sessions is not None
    parents = [trace.sessions.parents[row].tolist() for row in range(len(trace.arrival_ps))]
    return list(zip(trace.sessions.session.tolist(), parents, (trace.sessions.think_ps / S).tolist(), strict=True))


def test_requests_that_took_for_ever(tmp_path: Path) -> None:
    """No think time is below 0, even where the end of the turn before is beyond what 64 bits hold."""
    for taken in ("8e6", "1e10", "1e300"):
        rows = "".join(f"{t},s1,{taken},GPT-4,10,20,30,x\n" for t in (5, 2000000, 8000000))
        assert [think for _, _, think in links(load(tmp_path, BURST_3 + rows))] == [0, 0, 0]


@pytest.mark.parametrize("kind", ["request", "session", "duration"])
def test_columns_that_the_scenario_names_must_be_there(tmp_path: Path, kind: str) -> None:
    """Else sessions would be none, and nobody the wiser."""
    tables = {
        "csv": "arrival_s,input_tokens,output_tokens,user\n0,1,2,5\n1,1,2,6\n",
        "jsonl": '{"arrival_s": 0, "input_tokens": 1, "output_tokens": 2}\n'
        '{"arrival_s": 1, "input_tokens": 1, "output_tokens": 2, "user": 5}\n',
    }
    message = (
        f"^workload.trace.columns.{kind}: is 'usr'; the trace has: 'arrival_s, input_tokens, output_tokens, user'$"
    )
    for form, content in tables.items():
        assert len(load(tmp_path, content, format=form, columns={kind: "user"}).arrival_ps) == 2
        with pytest.raises(InputError, match=message):
            load(tmp_path, content, format=form, columns={kind: "usr"})


def test_a_session_that_the_first_line_does_not_name(tmp_path: Path) -> None:
    row = '{"arrival_s": 1, "input_tokens": 1, "output_tokens": 2%s}\n'
    trace = load(tmp_path, row % "" + row % ', "user": 5' + row % ', "user": 5', columns={"session": "user"})
    assert [(session, parents) for session, parents, _ in links(trace)] == [(0, []), (1, []), (1, [1])]


# --- BurstGPT --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fast", [True, False])
def test_burstgpt_leaves_failures_out(tmp_path: Path, fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not fast:
        monkeypatch.setattr(csv_rows, "_parse_fast", lambda *_: None)
    rows = "5,GPT-4,0,0,0,API log\n45,ChatGPT,1087,230,1317,x\n118,GPT-4,417,0,417,x\n120.5,GPT-4,4,5,9,x\n"
    trace = load(tmp_path, BURST_1 + rows)
    assert (trace.format, trace.rows_read, trace.rows_dropped) == ("burstgpt", 4, {"failed": 2})
    assert trace.arrival_ps.tolist() == [0, 75_500 * 10**9]
    assert trace.sessions is None
    with pytest.raises(InputError, match="trace:2: Request tokens is '0'"):
        load(tmp_path, BURST_1 + "5,GPT-4,0,7,7,API log\n")


@pytest.mark.parametrize("fast", [True, False])
def test_burstgpt_3_has_sessions(tmp_path: Path, fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not fast:
        monkeypatch.setattr(csv_rows, "_parse_fast", lambda *_: None)
    turns = [(0, "a", 2, 5), (1, "", 3, 5), (3.5, "a", 1, 0), (4, "a", 9, 5), (5, "b", 1, 5), (7, "a", 1, 5)]
    rows = "".join(f"{t},{session},{took},M,5,{out},9,x\n" for t, session, took, out in turns)
    trace = load(tmp_path, BURST_3 + rows)
    assert trace.rows_dropped == {"failed": 1}
    # The last one began before the one that it follows had ended.
    assert links(trace) == [(0, [], 0), (1, [], 0), (0, [0], 2), (2, [], 0), (0, [2], 0)]
    assert trace.sessions is not None
    assert (trace.sessions.duration_ps / S).tolist() == [2, 3, 9, 1, 1]


@pytest.mark.parametrize("name", [pytest.param("burstgpt_3_rows1-30.csv", marks=real)])
def test_the_sample_of_burstgpt_3_has_its_sessions(name: str) -> None:
    expected = json.loads((SLICES / "expected_stats.json").read_text())[name]
    trace = load_trace(TraceSpec(path=str(SLICES / name)))
    assert trace.sessions is not None
    turns = np.bincount(trace.sessions.session)
    assert (len(turns), turns.max()) == (expected["sessions"], expected["longest_session"])


# --- Bailian ---------------------------------------------------------------------------------------------------------


def bailian(chat: int, parent: int, time: float, blocks: list[int]) -> str:
    row = {"chat_id": chat, "parent_chat_id": parent, "timestamp": time, "input_length": 16 * len(blocks)}
    return json.dumps({**row, "output_length": 5, "type": "text", "turn": 1, "hash_ids": blocks}) + "\n"


def test_bailian_turns_follow_their_parents(tmp_path: Path) -> None:
    rows = [
        (10, -1, 0.5, [1, 2]),
        (11, -1, 1, [3]),
        (12, 10, 4.5, [1, 2, 4]),
        (13, 9, 5, [7]),
        (14, 12, 6, [1, 2, 4, 5]),
    ]
    content = "".join(bailian(*row) for row in rows)
    trace = load(tmp_path, content)
    assert (trace.format, trace.block_tokens) == ("bailian", 16)
    assert links(trace) == [(0, [], 0), (1, [], 0), (0, [0], 4), (2, [], 0), (0, [2], 1.5)]
    assert trace.warnings == (
        "1 turns of the trace follow a request that is not there, and begin a session",
        "it is not known how long 2 requests took: think times after these may be whole gaps",
    )
    assert trace.blocks is not None
    assert [trace.blocks[row].tolist() for row in range(5)] == [row[3] for row in rows]
    with pytest.raises(InputError, match="trace:2: chat_id '10' is there twice"):
        load(tmp_path, bailian(*rows[0]) * 2)
    twice = load(tmp_path, bailian(*rows[0]) * 2, on_bad_row="drop")
    assert twice.rows_dropped == {"duplicate": 1}


def test_a_slice_takes_blocks_and_sessions_along(tmp_path: Path) -> None:
    content = "".join(bailian(i, i - 2 if i > 1 else -1, i, [i, 100 + i][: 1 + i % 2]) for i in range(10))
    trace = load(tmp_path, content, start_s=3, max_requests=5)
    assert trace.blocks is not None
    assert [trace.blocks[row].tolist() for row in range(5)] == [[3, 103], [4], [5, 105], [6], [7, 107]]
    assert [parents for _, parents, _ in links(trace)] == [[], [], [0], [1], [2]]


def test_names_of_blocks_that_are_no_numbers(tmp_path: Path) -> None:
    row = {"timestamp": 0, "input_length": 5, "output_length": 5}
    rows = [{**row, "hash_ids": ids} for ids in (["a", 7], ["b", "a"])]
    trace = load(tmp_path, "".join(json.dumps(row) + "\n" for row in rows))
    assert trace.blocks is not None
    assert (trace.blocks[0].tolist(), trace.blocks[1].tolist()) == ([-1, 7], [-2, -1])
    rows[1]["hash_ids"] = [1 << 63]
    with pytest.raises(InputError, match="trace:2: hash_ids must be a list of names or 64 bit numbers"):
        load(tmp_path, "".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("mooncake_fast25_conversation_0000-1200s.jsonl.gz", marks=real),
        pytest.param("mooncake_fast25_synthetic_0000-0400s.jsonl.gz", marks=real),
    ],
)
def test_blocks_of_mooncake_are_those_published(name: str) -> None:
    expected = json.loads((SLICES / "expected_stats.json").read_text())[name]["prefix"]
    trace = load_trace(TraceSpec(path=str(SLICES / name)))
    assert trace.blocks is not None
    assert trace.block_tokens == expected["block_tokens"]
    assert len(trace.blocks.values) == expected["total_blocks"]
    assert len(np.unique(trace.blocks.values)) == expected["unique_blocks"]
    assert trace.blocks.lengths.tolist() == (-(-trace.input_tokens // 512)).tolist()


# --- any file --------------------------------------------------------------------------------------------------------

OWN = "arrival_s,input_tokens,output_tokens,user,took\n"


def test_pacing_of_sessions(tmp_path: Path) -> None:
    content = OWN + "0,5,5,a,1\n100,5,5,a,2\n104,5,5,a,3\n110,5,5,,1\n"
    columns = {"session": "user", "duration": "took"}

    def thinks(**keys: object) -> list[float]:
        turns = load(tmp_path, content, columns=columns, **keys).turns
        assert turns is not None
        assert turns.parents.tolist() == [0, 1]
        return (turns.think_ps / S).tolist()

    assert thinks() == [0, 99, 2, 0]
    assert thinks(max_idle_gap_s=60, time_scale=0.5) == [0, 30, 1, 0]
    assert thinks(timing="api_scaled") == [0, 100, 4, 0]
    assert thinks(timing="api_scaled", api_time_scale=0.5, max_idle_gap_s=7) == [0, 7.5, 3, 0]
    unknown = OWN + "0,5,5,a,\n100,5,5,a,2\n104,5,5,a,3\n"
    unknown = load(tmp_path, unknown, columns=columns, timing="api_scaled")
    assert unknown.turns is not None
    assert (unknown.turns.think_ps / S).tolist() == [0, 100, 4]
    said = "it is not known how long 1 requests took: think times after these may be whole gaps"
    assert unknown.warnings == (said,)
    recorded = load(tmp_path, content, columns=columns, timing="absolute")
    assert recorded.turns is None
    assert recorded.sessions is not None
    assert (recorded.arrival_ps / S).tolist() == [0, 100, 104, 110]
    with pytest.raises(InputError, match="timing: api_scaled needs to know how long requests took, which the trace"):
        load(tmp_path, OWN + "0,5,5,a,\n2,5,5,a,\n", columns=columns, timing="api_scaled")


def test_of_several_parents_the_last_to_end_counts() -> None:
    parents = Ragged.of([[], [0], [0], [0, 1, 2]])
    starts, taken = np.array([0, 20, 30, 100]) * S, np.array([5, 40, 20, 1]) * S
    found = of_parents(starts, taken, np.zeros(4, np.int64), parents)
    assert (found.think_ps / S).tolist() == [0, 15, 25, 40]
    turns = paced_turns(found, starts, "api_scaled", 2.0, None)
    assert turns is not None
    assert (turns.think_ps / S).tolist() == [0, 25, 35, 120]


@pytest.mark.parametrize("keys", [{}, {"api_time_scale": 1e6}, {"time_scale": 0.5}])
def test_sessions_of_months_think_no_longer_than_the_clock_goes(tmp_path: Path, keys: dict[str, float]) -> None:
    """A parent's start and what it took, and times the scale, are more than 64 bits hold."""
    rows = "".join(f"{t},s1,{taken},GPT-4,10,20,30,x\n" for t, taken in ((0, 8e6), (8_900_000, 8e6), (8_950_000, 1)))
    turns = load(tmp_path, BURST_3 + rows, timing="api_scaled", **keys).turns
    assert turns is not None
    taken_s, shrunk = min(8e6 * keys.get("api_time_scale", 1), 9e6), keys.get("time_scale", 1)
    thinks = [0, min(900_000 + taken_s, 9e6) * shrunk, taken_s * shrunk]
    assert turns.think_ps.tolist() == [round(think * S) for think in thinks]


def test_the_last_parent_to_end_is_found_beyond_64_bits() -> None:
    """One ends at 16.9 million seconds, which wraps around to a time before the other's end."""
    starts, taken = np.array([0, 8_900_000, 8_950_000]) * S, np.array([5, 8_000_000, 1]) * S
    found = of_parents(starts, taken, np.zeros(3, np.int64), Ragged.of([[], [], [0, 1]]))
    turns = paced_turns(found, starts, "api_scaled", 0.5, None)
    assert turns is not None
    assert (turns.think_ps / S).tolist() == [0, 0, 4_000_000]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"timing": "absolute", "max_idle_gap_s": 5}, "max_idle_gap_s has no effect with timing absolute"),
        ({"api_time_scale": 2}, "api_time_scale goes with timing api_scaled"),
        ({"max_idle_gap_s": 0}, "greater than 0|above 0"),
        ({"columns": {"arrival_s": "t", "unit": "s"}}, "arrival_s says the unit: leave out unit"),
    ],
)
def test_bad_timings_are_refused(keys: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TraceSpec.model_validate({"path": "t", **keys})


@given(
    sessions=st.lists(st.integers(-1, 4), min_size=1, max_size=30),
    kept=st.lists(st.booleans(), min_size=30, max_size=30),
    taken=st.lists(st.integers(-1, 20), min_size=30, max_size=30),
)
def test_links_are_to_earlier_turns_of_the_session(sessions, kept, taken) -> None:
    n = len(sessions)
    numbers, parents = chains(np.array(sessions))
    starts, durations = np.arange(n) * 5, np.array(taken[:n])
    found = of_parents(starts, durations, numbers, parents)
    last: dict[int, int] = {}
    for row, name in enumerate(sessions):
        expected = [last[name]] if name in last else []
        assert found.parents[row].tolist() == expected
        for parent in expected:
            assert numbers[parent] == numbers[row]
            assert found.think_ps[row] == max(starts[row] - starts[parent] - max(durations[parent], 0), 0)
        if name >= 0:
            last[name] = row
    rows = np.flatnonzero(kept[:n])
    part = found.take(rows)
    assert [part.parents[i].tolist() for i in range(len(rows))] == [
        np.flatnonzero(np.isin(rows, found.parents[row])).tolist() for row in rows
    ]
    again = trees(np.array([row[0] if len(row := found.parents[i]) else -1 for i in range(n)]))
    assert again[0].tolist() == numbers.tolist()
    assert again[1].values.tolist() == parents.values.tolist()


@given(rows=st.lists(st.lists(st.integers(0, 99), max_size=4), max_size=12), order=st.randoms(use_true_random=False))
def test_ragged_rows(rows, order) -> None:
    ragged = Ragged.of(rows)
    picked = [order.randrange(len(rows)) for _ in range(5)] if rows else []
    taken = ragged.take(np.array(picked, np.int64))
    assert [taken[i].tolist() for i in range(len(taken))] == [rows[i] for i in picked]
    even = ragged.where(ragged.values % 2 == 0)
    assert [even[i].tolist() for i in range(len(even))] == [[v for v in row if v % 2 == 0] for row in rows]
    assert ragged.lengths.tolist() == [len(row) for row in rows]
