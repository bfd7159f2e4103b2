"""Requests that depend on others are sent when these have ended, and are then as any that arrive at that time."""

import math
from dataclasses import replace
from typing import Any
from unittest.mock import Mock, patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pimserve.device_models.plan import FS_PER_PS
from pimserve.loadgen.objectives import Objectives
from pimserve.loadgen.turns import Turns
from pimserve.loadgen.workload import Workload
from pimserve.scheduler.clients import NO_SESSIONS
from pimserve.scheduler.config import SchedulerSpec
from pimserve.scheduler.control import Inject, ScaleRate
from pimserve.scheduler.costs import replica_offset
from pimserve.scheduler.data_parallel import DataParallelEngine
from pimserve.scheduler.engine import Engine
from pimserve.scheduler.faults import FaultSpec
from pimserve.scheduler.fleet import ReplicaEngine
from pimserve.scheduler.requests import FINISHED, NEVER, REJECTED
from pimserve.scheduler.simulation import Deployment
from pimserve.scheduler.summary import digest, summarize
from pimserve.scheduler.usage import Hardware
from tests.examples import examples

from .batching_strategies import batching_cases
from .dependent import MANY, Dependent, Script, answers, arrivals, dependent, ended, graphs
from .law_runs import Run, workload
from .plan_strategies import mixed_plans
from .reference_engine import ReferenceRequest
from .speculative_strategies import speculative_cases
from .strategies import FS_PER_MS, Case, cases
from .swapping_strategies import swapping_cases
from .test_simulation import LAYERS, PLAN, STEP_S, serve
from .test_windows import LENGTHS, Kept, Windows, spans, spread

FATES = [
    "first_scheduled_ps",
    "first_token_ps",
    "finish_ps",
    "emitted_tokens",
    "preemptions",
    "replica",
    "status",
]


@pytest.mark.slow
@examples(150)
@given(dependent(["users"], pooled=True))
def test_users_of_pools_go_on_in_the_order_of_answers(case: Dependent) -> None:
    """Also of those that are rejected as they arrive, while others wait for a report, or for nothing."""
    _same_as_script(case)


@pytest.mark.medium
@examples(60)
@given(dependent())
def test_they_are_as_those_of_an_open_loop_that_arrive_when_they_are_sent(case: Dependent) -> None:
    _same_as_script(case)


def _same_as_script(case: Dependent) -> None:
    run, load = case.run(), case.workload
    assert ended(run)
    expected = arrivals(run, load)
    waiting = load.max_concurrency is not None or (load.max_active_sessions is not None and load.starts_planned)
    if not waiting:
        assert run.table["arrival_ps"].tolist() == expected.tolist()
    else:
        due_ps = load.arrival_ps if load.turns is None else np.where(load.turns.followers, expected, load.arrival_ps)
        assert run.table["arrival_ps"].tolist() == due_ps.tolist()
        if case.on.case.policy != "fcfs":
            return  # others count from the planned arrival, which the open loop does not know
    session = NO_SESSIONS if load.turns is None else load.turns.session
    made = patch(
        "pimserve.scheduler.simulation.make_clients", lambda _, __, table, **___: Script(expected, table, session)
    )
    with made:
        same = case.run()
    # Steps, not spans: where these are cut is no matter.
    assert [log.digest() for log in same.served.logs] == [log.digest() for log in run.served.logs]
    for name in FATES:
        assert same.table[name].tolist() == run.table[name].tolist()


def _holding(kind: type[ReplicaEngine]) -> Any:
    """Engines of this kind that are held to what they tell before they go on."""
    advance = kind.advance

    def held(engine: Any, *how: Any, **more: Any) -> int:
        told_fs, here = engine.next_end_fs(), len(engine.departures.left)
        until_fs = advance(engine, *how, **more)
        gone = engine.departures.left[here:]  # also who is rejected, which those who send know as they send
        ends_ps = [at for request in gone if (at := engine.departures._finish_ps[request]) != NEVER]
        assert all(at >= told_fs // FS_PER_PS for at in ends_ps)
        assert all(move.since_fs >= told_fs for move in engine.departures.moved if move.request in gone)
        return until_fs

    return patch.object(kind, "advance", held)


@pytest.mark.medium
@examples(60)
@given(st.one_of(dependent(), dependent(["users"], pooled=True)), LENGTHS, st.integers(1, 2))
def test_nobody_leaves_before_the_time_that_an_engine_tells(case: Dependent, lengths: list[int], shards: int) -> None:
    with _holding(Engine), _holding(DataParallelEngine):
        case.run(
            Deployment(
                control=Windows(lengths), shards=None if case.in_one_shard else spread(min(shards, case.replicas))
            )
        )


@pytest.mark.medium
@examples(60)
@given(swapping_cases() | speculative_cases() | speculative_cases(elsewhere=True) | cases(mixed_plans()), LENGTHS)
def test_nor_where_steps_verify_drafts_or_wait_for_copies_or_go_round(case: Case, lengths: list[int]) -> None:
    case.max_time_fs = None  # before which nobody may come
    with _holding(Engine), _holding(DataParallelEngine):
        Run(case, deployment=Deployment(control=Windows(lengths)))


def test_who_was_preempted_may_need_fewer_steps_than_any_output_has_tokens() -> None:
    """Two requests have room for five blocks of three each, and one is computed again when the other one is gone."""
    with _holding(Engine):
        served = serve(
            [(0.0, 5, 8), (0.0, 5, 8)],
            spec=SchedulerSpec(block_size=4),
            kv_capacity_tokens=20,
            max_model_len=20,
            deployment=Deployment(control=Windows([80 * FS_PER_MS])),
        )
    assert served.table["preemptions"].tolist() == [0, 1]
    assert served.table["finish_ps"].tolist() == [80 * 10**9, 120 * 10**9]


@pytest.mark.medium
@examples(40)
@given(dependent(["active sessions"]))
def test_no_more_sessions_are_active_than_may_be(case: Dependent) -> None:
    run, load = case.run(), case.workload
    turns, clients = load.turns, run.served.clients
    assert turns is not None
    assert load.max_active_sessions is not None
    begins_ps = run.table["arrival_ps"][: clients.starts]
    if load.starts_planned:
        begins_ps = begins_ps + np.array(clients.waits_ps, np.int64)
    assert (np.diff(begins_ps) >= 0).all()
    over_ps = begins_ps.copy()
    np.maximum.at(over_ps, turns.session, answers(run))
    changes = sorted([*((at, 1) for at in begins_ps.tolist()), *((at, -1) for at in over_ps.tolist())])
    active = np.cumsum([change for _, change in changes])
    assert active.max(initial=0) <= load.max_active_sessions


@pytest.mark.medium
@examples(30)
@given(dependent(), LENGTHS, st.integers(1, 3), st.integers(0, 1000))
def test_windows_shards_and_interruptions_do_not_matter(
    case: Dependent, lengths: list[int], shards: int, at: int
) -> None:
    run = case.run()
    made = None if case.in_one_shard else spread(min(shards, case.replicas))
    kept = Kept()
    cut = case.run(Deployment(shards=made, control=Windows(lengths), checkpoints=kept))
    assert digest(cut.served) == digest(run.served)
    assert cut.summary() == run.summary()
    kept.first = at
    continued = case.run(Deployment(shards=made, control=Windows([10**15]), checkpoints=kept))
    assert digest(continued.served) == digest(run.served)
    assert continued.summary() == run.summary()
    assert np.array_equal(continued.table, run.table)


@pytest.mark.medium
@examples(150)
@given(dependent(["sessions", "active sessions"]), st.integers(1, 3))
def test_windows_of_several_shards_end_before_anybody_may_follow(case: Dependent, shards: int) -> None:
    case.faults = FaultSpec()
    run = case.run()
    apart = case.run(Deployment(shards=spread(1 if case.in_one_shard else min(shards, case.replicas))))
    assert digest(apart.served) == digest(run.served)
    assert np.array_equal(apart.table, run.table)


@pytest.mark.medium
@examples(30)
@given(dependent(["sessions", "active sessions"]), st.integers(10, 300), st.integers(0, 1000), st.booleans())
def test_a_shard_that_routes_who_follows_goes_on_where_it_was_interrupted(
    case: Dependent, length_ms: int, at: int, told: bool
) -> None:
    """Also where it is told from then on who comes, and the other way round."""
    case.faults = FaultSpec()
    run, kept = case.run(), Kept()
    by_itself = Deployment(checkpoints=kept)
    watched = Deployment(checkpoints=kept, control=Windows([length_ms * FS_PER_MS]))
    with patch("pimserve.scheduler.clock.WindowLength", lambda *_: Mock(length_fs=length_ms * FS_PER_MS)):
        first = case.run(watched if told else by_itself)
        kept.first = at
        results = [first, case.run(by_itself), case.run(watched)]
    for same in results:
        assert digest(same.served) == digest(run.served)
        assert np.array_equal(same.table, run.table)


@pytest.mark.medium
@examples(20)
@given(dependent(), st.integers(1, 4), st.sampled_from([ScaleRate(3.0), Inject((5, 7), (2, 1), delay_s=0.01)]))
def test_commands_leave_who_waits_for_whom(case: Dependent, window: int, command: ScaleRate | Inject) -> None:
    """Injected requests come beside the others, of which those with parents still follow these."""
    load, results = case.workload, []
    for shards in (None, spread(1)):
        control = Windows([20 * FS_PER_MS], {window: command})
        run = case.run(Deployment(shards=shards, control=control))
        results.append((spans(run), digest(run.served)))
    assert results[0] == results[1]
    assert ended(run)
    told = len(control.views) >= window and not control.refused
    added = 2 if isinstance(command, Inject) and told else 0
    assert len(run.table) == len(load.arrival_ps) + added
    if load.concurrency is not None:
        assert not added
    elif load.turns is not None:
        sent = run.table["arrival_ps"][: len(load.arrival_ps)]
        followers = load.turns.followers
        assert np.array_equal(sent[followers], arrivals(run, load, sent)[followers])


def test_figures_of_sessions_and_of_waiting_at_the_client() -> None:
    turns = Turns.chains(np.array([-1, -1, 0, 2]), np.array([0, 0, 10**10, 10**10]), np.array([0, 1, 0, 0]))
    requests = [(0.0, 5, 2), (0.1, 5, 2), (0.0, 5, 2), (0.0, 5, 2)]
    served = serve(requests, turns=turns)
    # 20 ms for each turn, 10 ms to think, and a picosecond after each.
    assert served.table["arrival_ps"].tolist() == [0, 10**11, 3 * 10**10 + 1, 6 * 10**10 + 2]
    found = summarize(served, Objectives(), Hardware(1)).document()["sessions"]
    assert (found["total"], found["finished"], found["mean_turns"], found["most_turns"]) == (2, 2, 2.0, 3)
    assert found["duration_s"]["p99"] == pytest.approx(0.08, abs=1e-9)
    stopped = serve(requests, turns=turns, max_time_s=0.05)
    assert stopped.table["arrival_ps"].tolist() == [0, 3 * 10**10 + 1, NEVER]
    counts = summarize(stopped, Objectives(), Hardware(1)).document()
    assert (counts["requests"]["total"], counts["requests"]["finished"]) == (2, 2)
    assert (counts["sessions"]["total"], counts["sessions"]["finished"]) == (1, 0)

    capped = serve([(0.0, 5, 2), (0.0, 5, 2), (0.0, 5, 2)], max_concurrency=1)
    waited = summarize(capped, Objectives(), Hardware(1)).document()["client_queue_time_s"]
    assert (waited["n"], waited["p50"], waited["p99"]) == (3, pytest.approx(0.02), pytest.approx(0.04))
    assert capped.table["arrival_ps"].tolist() == [0, 0, 0]


def test_figures_of_sessions_that_wait_for_others() -> None:
    """Two of two turns, and the second begins when the first has ended: 20 ms for each turn, 10 ms to think."""
    turns = Turns.chains(np.array([-1, -1, 0, 1]), np.array([0, 0, 10**10, 10**10]), np.array([0, 1, 0, 1]))
    load = Workload(
        *(np.array([0, 10**10, -1, -1]), np.full(4, 5), np.full(4, 2), None, None, "", 0, {}),
        turns=turns,
        max_active_sessions=1,
    )
    begins_ps = 5 * 10**10 + 2  # a picosecond after each end
    for planned, due_ps, took_s in ((True, 10**10, 0.09), (False, begins_ps, 0.05)):
        served = serve([], workload=replace(load, starts_planned=planned))
        assert served.table["arrival_ps"].tolist() == [0, due_ps, 3 * 10**10 + 1, begins_ps + 3 * 10**10 + 1]
        assert served.table["first_scheduled_ps"][1] == begins_ps
        found = summarize(served, Objectives(), Hardware(1)).document()
        assert (found["sessions"]["finished"], found["sessions"]["most_turns"]) == (2, 2)
        assert found["sessions"]["duration_s"]["p99"] == pytest.approx(took_s, abs=1e-9)
        # As with a cap on requests in flight, latencies hold the time at the client where a time was planned.
        assert found["latency_s"]["queue"]["p99"] == pytest.approx(0.04 if planned else 0, abs=1e-9)
        if planned:
            assert found["client_queue_time_s"]["n"] == 2
            assert found["client_queue_time_s"]["p99"] == pytest.approx(0.04, abs=1e-9)
        else:
            assert "client_queue_time_s" not in found


def test_sessions_that_wait_begin_as_soon_where_steps_of_prompts_count_apart() -> None:
    """Of four, two are active; the other replica must not run past an end whose prompt had a step of its own."""
    turns = Turns.chains(np.full(4, -1), np.zeros(4, np.int64), np.arange(4))
    load = Workload(
        *(np.array([0, 5, 5, 15]) * 10**9, np.full(4, 5), np.array([3, 3, 1, 2]), None, None, "", 0, {}),
        turns=turns,
        max_active_sessions=2,
    )
    for deployment in (Deployment(), Deployment(shards=spread(2))):
        served = serve(
            [], workload=load, spec=SchedulerSpec(batching="prefill_first"), replicas=2, deployment=deployment
        )
        assert served.table["replica"].tolist() == [0, 1, 0, 1]
        # Of 10 ms for each token; a picosecond after each end.
        assert served.table["first_scheduled_ps"].tolist() == [0, 5 * 10**9, 3 * 10**10 + 1, 35 * 10**9 + 1]
        assert served.table["finish_ps"].tolist() == [3 * 10**10, 35 * 10**9, 4 * 10**10 + 1, 55 * 10**9 + 1]


def test_an_end_just_when_replicas_say_that_one_may_be_is_known_before_who_follows_comes() -> None:
    """It is a femtosecond before a picosecond is over, in whose next one the follower meets a step of its replica."""
    step_fs = 3_333_333_333_333
    plan = replace(PLAN, rows=(replace(LAYERS, pieces=((step_fs, 0),)),))
    turns = Turns.chains(np.array([-1, -1, 1]), np.zeros(3, np.int64), np.array([0, 1, 1]))
    second_ps = 2 * step_fs // FS_PER_PS  # 666 fs after its end the first one's sixth step begins
    spec = SchedulerSpec(long_prefill_token_threshold=1)  # in each of its steps a token of its prompt
    for deployment in (Deployment(), Deployment(shards=spread(2))):
        requests = [(0.0, 9, 1), (second_ps / 1e12, 1, 3), (0.0, 1, 1)]
        served = serve(requests, turns=turns, plan=plan, spec=spec, replicas=2, deployment=deployment)
        assert served.table["replica"].tolist() == [0, 1, 0]
        begins_ps, sent_ps = served.table["first_scheduled_ps"], served.table["arrival_ps"][2]
        assert sent_ps == served.table["finish_ps"][1] + 1 == begins_ps[2] == 5 * step_fs // FS_PER_PS


def test_a_rejected_turn_has_ended_as_it_arrived() -> None:
    turns = Turns.chains(np.array([-1, 0, 1]), np.array([0, 10**10, 10**10]), np.zeros(3, np.int64))
    for deployment in (Deployment(), Deployment(shards=spread(1))):
        served = serve([(0.0, 5, 2), (0.0, 1600, 2), (0.0, 5, 2)], turns=turns, deployment=deployment)
        assert served.table["arrival_ps"].tolist() == [0, 3 * 10**10 + 1, 4 * 10**10 + 1]
        assert served.table["status"].tolist() == [FINISHED, REJECTED, FINISHED]


@pytest.mark.medium
@examples(60)
@given(cases() | batching_cases(cases(least=MANY)), st.data())
def test_the_engine_equals_the_naive_one(case: Case, data: st.DataObject) -> None:
    case.concurrency = case.max_time_fs = None
    case.replica, case.offset = 0, replica_offset(case.seed, 0)
    for request in case.requests:
        request.arrival_fs = (request.arrival_fs or 0) // FS_PER_PS * FS_PER_PS
    load = data.draw(graphs(workload(case)))
    turns = load.turns
    assert turns is not None
    begins, parents = turns.begins.tolist(), turns.parents.tolist()
    case.requests = [
        ReferenceRequest(
            None if arrival_ps == NEVER else arrival_ps * FS_PER_PS,
            *tokens,
            tuple(parents[begins[number] : begins[number + 1]]),
            int(turns.think_ps[number]),
        )
        for number, (arrival_ps, *tokens) in enumerate(
            zip(load.arrival_ps.tolist(), load.input_tokens.tolist(), load.output_tokens.tolist(), strict=True)
        )
    ]
    run = Run(case, workload=load)
    case.max_model_len = run.served.max_model_len  # or what a data-parallel group holds
    expected = case.run()
    assert run.steps(0) == [tuple(step[:7]) for step in expected.steps]
    times = ("arrival_ps", "first_scheduled_ps", "first_token_ps", "finish_ps", "emitted_tokens", "preemptions")
    rows = list(zip(*(run.table[name].tolist() for name in times), strict=True))
    assert rows == [tuple(getattr(row, name) for name in times) for row in expected.requests]
    gaps = run.served.logs[0].itl
    assert gaps.count == sum(weight for _, weight in expected.itl)
    assert gaps.state()["sum_fs"] == sum(gap * weight for gap, weight in expected.itl)


@pytest.mark.medium
@pytest.mark.parametrize(("users", "think_s"), [(1, 1.0), (4, 5.0), (12, 8.0)])
def test_a_closed_loop_is_the_machine_repair_model(users: int, think_s: float) -> None:
    """Throughput of M/M/1//N: users who think exponentially, and one server of exponential times, first come first."""
    n, mean_tokens = 6000, 100
    rng = np.random.default_rng(7)
    tokens = rng.geometric(1 / mean_tokens, n)
    load = Workload(
        *(np.zeros(n, np.int64), np.ones(n, np.int64), tokens, users, None, "", 0, {}),
        think_ps=np.rint(rng.standard_exponential(n) * think_s * 1e12).astype(np.int64),
    )
    one = SchedulerSpec(max_num_seqs=1)
    served = serve([], workload=load, spec=one, kv_capacity_tokens=10**6, max_model_len=10**5)
    service_s = float(tokens.mean()) * STEP_S
    weights = [math.perm(users, waiting) * (service_s / think_s) ** waiting for waiting in range(users + 1)]
    expected_per_s = (1 - weights[0] / sum(weights)) / service_s
    assert n / served.end_s == pytest.approx(expected_per_s, rel=0.02)
    # The response time law: each user is in the system, or thinks.
    e2e_s = (served.table["finish_ps"] - served.table["arrival_ps"]).mean() / 1e12
    assert users == pytest.approx(n / served.end_s * (e2e_s + think_s), rel=0.03)
