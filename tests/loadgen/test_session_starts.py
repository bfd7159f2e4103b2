"""Recorded sessions that begin when an arrival process says: the same turns, think times and labels, at other times."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pimserve.errors import InputError
from pimserve.loadgen.session_starts import RecordedSessions
from pimserve.loadgen.turns import NOT_YET_PS, Turns
from pimserve.loadgen.workload import Workload, WorkloadSpec, generate

S = 10**12
EVERY_100_S = {"process": "constant", "rate_per_s": 0.01}
# Session, time, how long it took, model; of session b the second turn comes before the second of a.
ROWS = [("a", 0, 2, "x"), ("b", 0, 3, "y"), ("b", 7, 1, "y"), ("a", 10, 5, "x"), ("a", 30, 1, "x")]
HEADER = "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n"


@pytest.fixture
def trace(tmp_path: Path) -> dict[str, str]:
    path = tmp_path / "trace.csv"
    rows = (f"{t},{name},{took},{model},{10 + i},{1 + i},0,z\n" for i, (name, t, took, model) in enumerate(ROWS))
    path.write_text(HEADER + "".join(rows))
    return {"path": str(path)}


def make(seed: int = 0, **keys: object) -> Workload:
    return generate(WorkloadSpec.model_validate(keys), seed)


def links(workload: Workload) -> list[tuple[int, list[int], float]]:
    """(prompt tokens, those of what it waits for, think time in s) of each request, as the workload has them."""
    turns, tokens = workload.turns, workload.input_tokens.tolist()
    assert turns is not None
    begins, parents = turns.begins, turns.parents
    return [
        (tokens[i], [tokens[parent] for parent in parents[begins[i] : begins[i + 1]]], turns.think_ps[i] / S)
        for i in range(len(turns))
    ]


def test_sessions_begin_when_the_process_says(trace: dict[str, str]) -> None:
    workload = make(trace=trace, arrival=EVERY_100_S)
    assert workload.arrival_ps.tolist() == [0, 100 * S, *[NOT_YET_PS] * 3]
    assert links(workload) == [(10, [], 0), (11, [], 0), (13, [10], 8), (14, [13], 15), (12, [11], 4)]
    assert workload.output_tokens.tolist() == [1, 2, 4, 5, 3]
    assert (workload.rows_read, workload.rows_dropped) == (5, {})
    assert "turns of recorded sessions" in workload.description


def test_they_come_again_while_the_process_goes_on(trace: dict[str, str]) -> None:
    workload = make(trace=trace, arrival=EVERY_100_S, duration_s=450)
    assert [time // S for time in workload.arrival_ps.tolist() if time >= 0] == [0, 100, 200, 300, 400]
    assert len(workload.arrival_ps) == 3 * 3 + 2 * 2
    assert workload.turns is not None
    assert len(set(workload.turns.session.tolist())) == 5
    assert [turn for turn in links(workload) if turn[0] == 14] == [(14, [13], 15)] * 3
    short = make(trace=trace, arrival=EVERY_100_S, duration_s=50)
    assert (len(short.arrival_ps), short.rows_dropped) == (3, {"beyond num_requests or duration_s": 2})


@pytest.mark.parametrize(("n", "sessions"), [(1, 1), (2, 1), (3, 1), (4, 2), (5, 2), (6, 3), (13, 5)])
def test_so_many_requests_are_those_of_as_many_sessions(trace: dict[str, str], n: int, sessions: int) -> None:
    workload = make(trace=trace, arrival=EVERY_100_S, num_requests=n)
    assert len(workload.arrival_ps) == n
    assert int((workload.arrival_ps >= 0).sum()) == sessions
    used = len(set(workload.input_tokens.tolist()))
    assert sum(workload.rows_dropped.values()) == 5 - used


def test_prefixes_are_those_of_their_turns_while_no_session_comes_again(tmp_path: Path) -> None:
    rows = ((1, -1, 0, [7]), (2, -1, 0, [7, 8]), (3, 1, 5, [7, 9]))
    keys = ("chat_id", "parent_chat_id", "timestamp", "hash_ids")
    lines = [json.dumps(dict(zip(keys, row, strict=True)) | {"input_length": 32, "output_length": 2}) for row in rows]
    (tmp_path / "trace").write_text("\n".join(lines))
    trace = {"path": str(tmp_path / "trace")}
    once, recorded = make(trace=trace, arrival=EVERY_100_S), make(trace=trace)
    assert once.prefixes is not None
    assert recorded.prefixes is not None
    ids = once.prefixes.ids(16)
    assert [ids[row].tolist() for row in range(3)] == [[0], [0, 1], [0, 2]]
    assert ids.values.tolist() == recorded.prefixes.ids(16).values.tolist()
    assert make(trace=trace, arrival=EVERY_100_S, duration_s=250).prefixes is None


def test_labels_stay_with_their_turns(trace: dict[str, str]) -> None:
    classes = [{"name": "first", "labels": ["x"]}, {"name": "second", "labels": ["y"]}]
    workload = make(trace=trace, arrival=EVERY_100_S, duration_s=250, classes=classes)
    assert workload.class_ids is not None
    of_y = workload.class_ids == 2
    assert set(workload.input_tokens[of_y].tolist()) == {11, 12}
    assert set(workload.input_tokens[~of_y].tolist()) == {10, 13, 14}


def test_what_is_sent_as_recorded_or_drawn_has_no_sessions(trace: dict[str, str]) -> None:
    lost = "sessions of the trace are not replayed: its lengths alone are used"
    absolute = make(trace=trace | {"timing": "absolute"}, arrival=EVERY_100_S)
    assert absolute.turns is None
    assert (absolute.arrival_ps // S).tolist() == [0, 100, 200, 300, 400]
    for keys in (
        {"lengths": {"joint": {"kind": "trace"}}, "arrival": EVERY_100_S},
        {"mode": "closed", "concurrency": 2},
    ):
        workload = make(trace=trace, **keys)
        assert workload.turns is None
        assert lost in workload.warnings
    assert lost not in make(trace=trace, arrival=EVERY_100_S).warnings
    with pytest.raises(InputError, match=r"workload.max_concurrency: is of requests that come on their own"):
        make(trace=trace, arrival=EVERY_100_S, max_concurrency=2)


def test_sessions_that_begin_together_are_told(trace: dict[str, str]) -> None:
    said = "all 2 sessions of the trace begin at the same time"
    assert any(said in warning for warning in make(trace=trace).warnings)
    assert not any(said in warning for warning in make(trace=trace, arrival=EVERY_100_S).warnings)
    assert not any(said in warning for warning in make(trace=trace | {"start_s": 5}).warnings)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=40), st.integers(1, 100))
def test_every_request_has_its_place_in_its_session(session: list[int], n: int) -> None:
    found = RecordedSessions.of(Turns.of([[]] * len(session), np.zeros(len(session), np.int64), np.array(session)))
    rows = [found.rows[number].tolist() for number in range(len(found))]
    assert [each[0] for each in rows] == sorted(each[0] for each in rows)
    assert sorted(row for each in rows for row in each) == list(range(len(session)))
    for each in rows:
        assert each == [row for row, its in enumerate(session) if its == session[each[0]]]
        assert found.place[each].tolist() == list(range(len(each)))
    sizes = [len(rows[number % len(rows)]) for number in range(found.with_requests(n))]
    assert sum(sizes) >= n > sum(sizes[:-1])
