"""Routers that see tokens and KV blocks: what they see is so, and none of it follows from how long outputs will be."""

from collections.abc import Sequence
from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pimserve.loadgen.turns import Turns
from pimserve.scheduler import router as router_module
from pimserve.scheduler.config import SchedulerSpec
from pimserve.scheduler.control import RunView
from pimserve.scheduler.fleet import ReplicaEngine
from pimserve.scheduler.requests import FINISHED, NEVER
from pimserve.scheduler.router_protocol import ReplicaView, RequestView
from pimserve.scheduler.shard import Shard
from pimserve.scheduler.simulation import Deployment
from pimserve.scheduler.summary import digest
from pimserve.scheduler.view_routers import LeastKv, LeastTokens, SessionAffinity
from tests.examples import examples

from .law_runs import LOOKING, ROUTERS, Run
from .strategies import Case, cases
from .test_simulation import serve
from .test_windows import LENGTHS, Kept, Windows, spread

INTERVALS = st.sampled_from([0.0, 0.03])


def views(*values: tuple[int, float]) -> list[ReplicaView]:
    """Replicas with so many tokens in flight, and such a use of their KV blocks."""
    return [ReplicaView(number, 1, tokens, 0, usage) for number, (tokens, usage) in enumerate(values)]


def test_the_least_is_picked_and_equals_take_turns() -> None:
    replicas = views((7, 0.5), (9, 0.1), (7, 0.3), (8, 0.1))
    tokens, kv = LeastTokens(), LeastKv()
    assert [tokens.route(RequestView(5), replicas) for _ in range(4)] == [2, 2, 0, 0]
    assert [kv.route(RequestView(5), replicas) for _ in range(4)] == [1, 3, 3, 1]


def test_what_was_sent_since_the_report_is_added() -> None:
    view = ReplicaView(3, 2, 100, 1, 0.25).after(30).after(10)
    assert view == ReplicaView(3, 4, 140, 1, 0.25, 2, 40)


class Recorder:
    """Takes turns, and keeps what it is shown."""

    def __init__(self) -> None:
        self.shown: list[tuple[RequestView, list[ReplicaView]]] = []

    def route(self, request: RequestView, replicas: Sequence[ReplicaView]) -> int:
        self.shown.append((request, list(replicas)))
        return len(self.shown) % len(replicas)


def recorded(requests: list[tuple[float, int, int]], **spec: float) -> list[tuple[RequestView, list[ReplicaView]]]:
    recorder = Recorder()
    with patch.dict(router_module._ROUTERS, {"recorder": lambda _: recorder}):
        serve(requests, replicas=2, spec=SchedulerSpec(router="recorder", **spec))
    return recorder.shown


# Steps take 10 ms, and a replica has 100 blocks of 16 tokens.
REQUESTS = [(0.0, 20, 3), (0.001, 40, 9), (0.012, 5, 1), (0.031, 7, 2), (0.045, 3, 1)]


def test_what_is_seen_of_exact_state() -> None:
    shown = recorded(REQUESTS)
    assert [request.prompt_tokens for request, _ in shown] == [20, 40, 5, 7, 3]
    assert shown[0][1] == [ReplicaView(0), ReplicaView(1)]
    # The first one went to replica 1, and its step is under way, after which it has a token.
    assert shown[1][1] == [ReplicaView(0), ReplicaView(1, 1, 21, 0, 0.02)]
    assert shown[2][1] == [ReplicaView(0, 1, 42, 0, 0.03), ReplicaView(1, 1, 22, 0, 0.02)]
    # The first and the third left at 0.03. The fourth leaves with the step since 0.041, the second has 5 tokens.
    assert shown[3][1][1] == ReplicaView(1)
    assert shown[4][1][0] == ReplicaView(0, 2, 45 + 9, 0, 0.04)


def test_what_is_seen_of_reports() -> None:
    shown = recorded(REQUESTS, report_interval_s=0.04)
    assert shown[1][1] == [ReplicaView(0), ReplicaView(1, 1, 20, 0, 0.0, 1, 20)]
    assert shown[3][1] == [
        ReplicaView(0, 1, 40, 0, 0.0, 1, 40),
        ReplicaView(1, 2, 25, 0, 0.0, 2, 25),
    ]
    # At 0.04 the first and the third have left, and the fourth is in the step that began at 0.031 or at 0.041.
    assert shown[4][1][1] == ReplicaView(1)


def seen(engine: ReplicaEngine, run_table: dict[str, np.ndarray], at_fs: int) -> tuple[int, int]:
    """(requests, tokens) on a replica at that time, one by one; those of the step under way have its tokens."""
    here, running = engine.in_hand(), dict(pair for core in engine.cores for pair in core.running.items())
    tokens = 0
    for request in here:
        last_step = running.get(request, 0)
        emitted = run_table["emitted_tokens"][request]
        if last_step:
            emitted = run_table["output_tokens"][request] - (last_step - engine.step)
        tokens += int(run_table["input_tokens"][request] + emitted)
    if engine.clock > at_fs:
        finish = run_table["finish_ps"]
        mine = (run_table["replica"] == engine.costs.replica) & (run_table["status"] == FINISHED)
        gone = np.flatnonzero(mine & (finish != NEVER) & (finish >= engine.clock // 1000))
        return len(here) + len(gone), tokens + int(
            (run_table["input_tokens"][gone] + run_table["output_tokens"][gone]).sum()
        )
    return len(here), tokens


class Counter(Windows):
    """Holds what is seen of replicas at the end of every window to a count, request by request."""

    shard: Shard

    def barrier(self, view: RunView) -> None:
        super().barrier(view)
        for state, engine in zip(view.replicas, self.shard.engines, strict=True):
            found = (state.outstanding, state.tokens_in_flight)
            assert found == seen(engine, view.table.columns, view.now_fs)
            assert 0 <= state.kv_usage <= 1
            assert state.kv_usage > 0 or not state.running


@pytest.mark.medium
@examples(60)
@given(cases(), st.integers(1, 3), ROUTERS, LENGTHS)
def test_tokens_in_flight_are_those_of_all_requests(case: Case, replicas: int, router: str, lengths: list[int]) -> None:
    control = Counter(lengths)

    def shards(fleet, table, on_rows):
        control.shard = Shard(fleet, range(fleet.replicas), table, on_rows)
        return [control.shard]

    router = "round_robin" if case.concurrency is not None else router
    Run(replace(case, max_time_fs=None), replicas, router, deployment=Deployment(control=control, shards=shards))


@pytest.mark.medium
@examples(80)
@given(cases(), st.integers(2, 4), st.sampled_from(LOOKING), INTERVALS, st.data())
def test_no_router_knows_how_long_outputs_will_be(
    case: Case, replicas: int, router: str, interval_s: float, data: st.DataObject
) -> None:
    """Whoever has not left when a request comes may go on for longer: the request goes where it went."""
    case = replace(case, max_time_fs=None, concurrency=None, kv_admission="prompt")
    requests = [replace(r, arrival_fs=r.arrival_fs or 0) for r in case.requests]
    case = replace(case, requests=requests)
    table = Run(case, replicas, router, report_interval_s=interval_s).table
    if not len(table):
        return
    at = data.draw(st.integers(0, len(table) - 1))
    there = (table["finish_ps"] == NEVER) | (table["finish_ps"] > table["arrival_ps"][at])
    longer = [
        replace(r, output_tokens=r.output_tokens + data.draw(st.integers(0, 50))) if still else r
        for r, still in zip(requests, there.tolist(), strict=True)
    ]
    other = Run(replace(case, requests=longer), replicas, router, report_interval_s=interval_s).table
    assert other["replica"][: at + 1].tolist() == table["replica"][: at + 1].tolist()


def test_fewest_tokens_keeps_away_from_long_prompts() -> None:
    """Two replicas with one request each: to one that is short, not to the one with a prompt of a thousand tokens."""
    requests = [(0.0, 1000, 50), (0.001, 10, 50), *((0.01 * i, 10, 50) for i in range(1, 10))]
    for interval in (0.0, 0.1):
        spec = SchedulerSpec(router="least_tokens", report_interval_s=interval)
        chosen = serve(requests, replicas=2, spec=spec).table["replica"].tolist()
        assert set(chosen[1:]) == {1 - chosen[0]}


@pytest.mark.parametrize(("interval", "replicas"), [(0.0, {0, 1}), (0.5, {1})])
def test_least_kv_use_follows_reports_alone(interval: float, replicas: set[int]) -> None:
    """Between two reports nothing tells it that its requests take blocks."""
    requests = [(0.0, 100, 1000), *((1.0 + 0.02 * i, 100, 100) for i in range(10))]
    spec = SchedulerSpec(router="least_kv", report_interval_s=interval)
    chosen = serve(requests, replicas=2, spec=spec).table["replica"]
    assert {abs(int(replica) - int(chosen[0])) for replica in chosen[1:]} == replicas


def outstanding(*values: tuple[int, int]) -> list[ReplicaView]:
    """(number, requests outstanding) of replicas."""
    return [ReplicaView(number, requests) for number, requests in values]


def test_a_session_stays_where_it_is_while_that_takes_requests() -> None:
    router = SessionAffinity()
    assert router.route(RequestView(5, 7), outstanding((0, 3), (1, 2), (2, 4))) == 1
    assert router.route(RequestView(5, 7), outstanding((0, 0), (1, 9), (2, 0))) == 1
    assert router.route(RequestView(5, 8), outstanding((0, 0), (1, 9), (2, 1))) == 0
    again = SessionAffinity()
    again.restore(router.state())
    for each in (router, again):
        assert each.route(RequestView(5, 7), outstanding((0, 0), (2, 3))) == 0  # replica 1 takes none
        assert each.route(RequestView(5, 7), outstanding((0, 9), (1, 0), (2, 3))) == 0  # where it stays
        assert each.route(RequestView(5), outstanding((0, 9), (1, 8), (2, 3))) == 2


@pytest.mark.medium
@examples(20)
@given(st.integers(2, 4), st.sampled_from([0.0, 0.05]), LENGTHS, st.integers(0, 100), st.data())
def test_turns_of_a_session_go_where_the_first_went(
    replicas: int, interval_s: float, lengths: list[int], at: int, data: st.DataObject
) -> None:
    count = 12
    requests = [(0.02 * i, data.draw(st.integers(1, 40)), data.draw(st.integers(1, 9))) for i in range(2 * count)]
    requests += [(0.0, 5, data.draw(st.integers(1, 9))) for _ in range(count)]
    previous = np.array([-1] * count + list(range(2 * count)))
    turns = Turns.chains(previous, np.full(3 * count, 10**9), np.tile(np.arange(count), 3))
    how = {"replicas": replicas, "turns": turns}
    how["spec"] = SchedulerSpec(router="session_affinity", report_interval_s=interval_s)
    served = serve(requests, **how)
    chosen = served.table["replica"].reshape(3, count)
    assert (chosen == chosen[0]).all()
    assert len(set(chosen[0].tolist())) > 1
    kept = Kept()
    shards = spread(replicas) if interval_s else None
    cut = serve(requests, **how, deployment=Deployment(shards=shards, control=Windows(lengths), checkpoints=kept))
    kept.first = at
    continued = serve(requests, **how, deployment=Deployment(shards=shards, checkpoints=kept))
    assert digest(cut) == digest(continued) == digest(served)
