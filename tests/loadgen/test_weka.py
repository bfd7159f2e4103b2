"""Agentic sessions: turns, sub-agents that are waited for, blocks of their own, and bad files."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from pimserve.errors import InputError
from pimserve.loadgen.trace_stats import stats_document
from pimserve.loadgen.traces import Trace, TraceSpec, load_trace
from tests.loadgen.slices import SLICES, real

S = 10**12


def turn(t: float, taken: float, **keys: object) -> dict[str, object]:
    return {"t": t, "type": "n", "in": 130, "out": 7, "hash_ids": [1, 2], "api_time": taken, "think_time": 0.0, **keys}


def agent(t: float, *requests: object) -> dict[str, object]:
    return {"t": t, "type": "subagent", "requests": list(requests)}


def session(*requests: object, **keys: object) -> dict[str, object]:
    return {"id": "x", "block_size": 64, "hash_id_scope": "local", "requests": list(requests), **keys}


def load(folder: Path, *sessions: object, **keys: object) -> Trace:
    for number, each in enumerate(sessions):
        text = each if isinstance(each, str) else json.dumps(each)
        (folder / f"trace_{number}.json").write_text(text)
    return load_trace(TraceSpec.model_validate({"path": str(folder), **keys}))


def links(trace: Trace) -> list[tuple[float, list[int], float]]:
    """(start s, parents, think s) of each turn."""
    assert trace.sessions is not None
    parents = [trace.sessions.parents[row].tolist() for row in range(len(trace.arrival_ps))]
    thinks = (trace.sessions.think_ps / S).tolist()
    return list(zip((trace.arrival_ps / S).tolist(), parents, thinks, strict=True))


def test_a_turn_waits_for_the_one_before_and_for_agents_that_had_ended(tmp_path: Path) -> None:
    """One agent ends before the next turn, one after it, one is never waited for; an agent has an agent."""
    trace = load(
        tmp_path,
        session(
            turn(0, 2.5),
            turn(10.5, 1, think_time=8.25),
            agent(12.001, turn(0, 3), agent(4, turn(0, 0.5)), turn(5, 1)),  # ends at 18.001
            agent(13, turn(0, 20)),  # ends at 33
            turn(20, 2),
            turn(40, 1),
            agent(42, turn(0, 1)),
        ),
    )
    assert trace.format == "weka"
    assert links(trace) == [
        (0, [], 0),
        (10.5, [0], 8.25),  # as recorded, where that is known
        (12.001, [1], 0.501),
        (13, [1], 1.5),
        (16.001, [2], 1),
        (17.001, [2, 4], 0.5),
        (20, [1, 5], 1.999),
        (40, [3, 6], 7),
        (42, [7], 1),
    ]


def test_nobody_thinks_longer_than_the_whole_gap_after_a_request_of_unknown_length(tmp_path: Path) -> None:
    """What was recorded counts from the last end that is known, here that of the first request: 8, 20 and 30 s."""
    unknown = [{key: value for key, value in turn(t, 0).items() if key != "api_time"} for t in (10, 22)]
    turns = [turn(0, 2), unknown[0] | {"think_time": 8.0}, unknown[1] | {"think_time": 20.0}]
    trace = load(tmp_path, session(*turns, turn(32, 3, think_time=30.0), turn(40, 1, think_time=5.0)))
    assert [think for _, _, think in links(trace)] == [0, 8, 12, 10, 5]
    assert trace.turns is not None
    assert int(trace.turns.think_ps.sum()) == (40 - 2 - 3) * S  # and two requests are known to have taken time


def test_sessions_begin_together_and_share_no_blocks(tmp_path: Path) -> None:
    trace = load(tmp_path, session(turn(0, 1), turn(2, 1)), session(turn(0, 1), turn(1, 1)))
    assert trace.sessions is not None
    assert trace.sessions.session.tolist() == [0, 1, 1, 0]
    assert [parents for _, parents, _ in links(trace)] == [[], [], [1], [0]]
    assert trace.blocks is not None
    assert trace.block_tokens == 64
    first, second, third, fourth = (set(trace.blocks[row].tolist()) for row in range(4))
    assert first == fourth
    assert second == third
    assert not first & second
    shared = load(tmp_path, *(session(turn(0, 1), hash_id_scope="global") for _ in range(2)))
    assert shared.blocks is not None
    assert shared.blocks[0].tolist() == shared.blocks[1].tolist() == [1, 2]


def test_a_slice_and_a_sample_keep_what_is_left_of_sessions(tmp_path: Path) -> None:
    sessions = [session(turn(0, 1), turn(2, 1), turn(4 + k, 1)) for k in range(40)]
    assert [parents for _, parents, _ in links(load(tmp_path, *sessions, start_s=2, end_s=3))] == [[]] * 40
    later = links(load(tmp_path, *sessions, start_s=2))
    assert [parents for _, parents, _ in later] == [[]] * 40 + [[k] for k in range(40)]
    sampled = load(tmp_path, *sessions, sample_ratio=0.5)
    assert sampled.sessions is not None
    assert set(np.bincount(sampled.sessions.session)) <= {0, 3}
    assert 9 < len(sampled.arrival_ps) / 3 < 31


def test_of_sessions_that_go_on_for_years_any_months_can_be_cut(tmp_path: Path) -> None:
    long = [session(turn(0, 1), turn(2, 1), turn(1e8 + k, 1), turn(1e8 + 5, 1)) for k in range(2)]
    with pytest.raises(InputError, match="where the clock ends; start_s and end_s select fewer"):
        load(tmp_path, *long)
    assert [start for start, _, _ in links(load(tmp_path, *long, end_s=9))] == [0, 0, 2, 2]
    late = load(tmp_path, *long, start_s=9)
    assert [(start, parents) for start, parents, _ in links(late)] == [(0, []), (1, []), (5, [0]), (5, [1])]
    assert late.rows_dropped == {"before start_s": 4}


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("{", "trace_0.json: not JSON that can be read"),
        ('{"block_size": 64, "requests": 3}', "trace_0.json: must be an object with a list `requests`"),
        (session(turn(0, 1), block_size=0), "trace_0.json: block_size must be a whole number >= 1"),
        (session(), ": no session has a request"),
        (session(turn(0, 1), turn(1, 1, out=0)), "trace_0.json:2: out is '0'; a whole number from 1 to"),
        (session(turn(5, 1), turn(1, 1)), "trace_0.json:2: a request is an object with `t`, seconds >= 0, not before"),
        (session(turn(0, 1), agent(1, 7)), "trace_0.json:2: a request is an object"),
        (session(turn(0, 1), agent(1, turn(0, 1, hash_ids=None))), "trace_0.json:2: hash_ids must be a list"),
        (session(turn(0, 1, api_time="soon")), "trace_0.json:1: api_time is 'soon'; seconds are needed"),
        (session(turn("nan", 1)), "trace_0.json:1: a request is an object"),
    ],
)
def test_bad_sessions_are_refused(tmp_path: Path, document: object, message: str) -> None:
    with pytest.raises(InputError) as refused:
        load(tmp_path, document, format="weka")
    assert message in str(refused.value)


def test_bad_turns_are_dropped_and_passed_over(tmp_path: Path) -> None:
    trace = load(tmp_path, session(turn(0, 1), turn(2, 1, out=0), {"t": -1}, turn(4, 1)), on_bad_row="drop")
    assert (trace.rows_read, trace.rows_dropped) == (4, {"zero tokens": 1, "bad": 1})
    assert [parents for _, parents, _ in links(trace)] == [[], [0]]


def test_one_archive_has_one_size_of_blocks(tmp_path: Path) -> None:
    path = tmp_path / "t.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for name, size in (("a.json", 64), ("b.json", 32)):
            data = json.dumps(session(turn(0, 1), block_size=size)).encode()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    with pytest.raises(InputError, match=r"t.tar.gz:b.json: block_size is 32, not 64 as before"):
        load_trace(TraceSpec(path=str(path)))


@pytest.mark.parametrize("name", [pytest.param("weka_agentic_6sessions.tar.gz", marks=real)])
def test_the_slice_has_the_expected_figures(name: str) -> None:
    trace = load_trace(TraceSpec(path=str(SLICES / name)))
    expected = json.loads((SLICES / "expected_stats.json").read_text())[name]["sessions"]
    assert trace.sessions is not None
    found = {}
    for number in range(6):
        mine = trace.sessions.session == number
        found[int(trace.output_tokens[mine].sum())] = mine
    for each in expected.values():
        if each["subagents"]:
            continue  # its figures are of the turns of the session alone
        mine = found[int(each["output"]["sum"])]
        assert mine.sum() == each["requests"]
        assert trace.input_tokens[mine].sum() == each["input"]["sum"]
        assert trace.sessions.duration_ps[mine].sum() / S == pytest.approx(each["api_time_sum_s"])
        think_s, took_s = (column[mine] / S for column in (trace.sessions.think_ps, trace.sessions.duration_ps))
        if (took_s >= 0).all():
            assert think_s.sum() == pytest.approx(each["think_time_sum_s"])
        # Times are whole seconds, so that each gap may be half of one shorter than it was.
        assert think_s.sum() + took_s[took_s > 0][:-1].sum() <= each["duration_s"] + each["requests"] / 2
        assert trace.arrival_ps[mine].max() / S == each["duration_s"]
    assert len(trace.arrival_ps) == sum(each["requests"] + each["subagent_requests"] for each in expected.values())


def test_times_that_are_none_are_left_out_of_descriptions(tmp_path: Path) -> None:
    """As the reader leaves them out: rows with a bad api_time are dropped, think times that are none are unknown."""
    turns = (turn(0, 2), turn(3, 1, think_time="long"), turn(9, 1, api_time="x"), turn(10, 1, think_time=4))
    odd = (turn(11, 1, hash_ids=[[1]]), turn(12, 1, **{"in": 10**30}), turn(13, 1, hash_ids=["a", 2**60]))
    load(tmp_path, session(*turns, *odd), on_bad_row="drop")
    spec = TraceSpec.model_validate({"path": str(tmp_path), "on_bad_row": "drop"})
    described = stats_document(spec)["sessions"]["trace_0"]
    assert described["think_time_sum_s"] == 4
    assert described["prefix_parent_only"]["total_blocks"] == 10
