"""Routers: what they pick, what they may see, and how packages add one."""

from collections.abc import Callable
from importlib.metadata import EntryPoint, EntryPoints
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pimserve.device_models.plan import CostPlan, DecodeAttentionTerm, RowTerm
from pimserve.errors import InputError
from pimserve.loadgen.workload import Workload
from pimserve.scheduler import router as router_module
from pimserve.scheduler.blind_routers import Random, RoundRobin
from pimserve.scheduler.config import SchedulerSpec
from pimserve.scheduler.count_routers import LeastOutstanding, PowerOfTwo
from pimserve.scheduler.exact_routing import ExactRouting
from pimserve.scheduler.fleet import Pool
from pimserve.scheduler.router import make_router
from pimserve.scheduler.simulation import Served, simulate
from pimserve.scheduler.tier_turns import TierTurns
from tests.examples import examples

PS = 1000
MS = 10**9  # in ps
# A step takes 10 ms, and 1 us for every token that is attended to.
PLAN = CostPlan(
    devices=1,
    data_parallel=1,
    units=("xpu",),
    rows=(RowTerm("layers", "fc", "xpu", "tokens", ((10 * MS * PS, 0),)),),
    decode=(DecodeAttentionTerm("xpu", None, MS * PS // 1000, 0, 0),),
    prefill=(),
    experts=None,
)


def serve(requests: list[tuple[int, int, int]], replicas: int, router: str, *, seed: int = 0, **spec: int) -> Served:
    """Serve (arrival ps, input, output)."""
    arrival, inputs, outputs = np.array(requests, np.int64).reshape(-1, 3).T.copy()
    return simulate(
        [Pool("", PLAN, 4096, replicas)],
        Workload(arrival, inputs, outputs, None, None, "", 0, {}),
        SchedulerSpec(router=router, **spec),
        max_model_len=4096,
        seed=seed,
    )


@given(st.lists(st.integers(0, 5), min_size=1, max_size=8), st.integers(1, 20))
def test_least_outstanding_picks_a_least_one_and_takes_turns(outstanding: list[int], times: int) -> None:
    router = LeastOutstanding()
    picked = [router.pick(outstanding) for _ in range(times)]
    assert {outstanding[replica] for replica in picked} == {min(outstanding)}
    if len(set(outstanding)) == 1:  # all equal: each in turn
        assert len(set(picked[: len(outstanding)])) == min(times, len(outstanding))


def test_replicas_that_nobody_can_have_left_are_not_asked() -> None:
    """Where none share a tier, whether that is said or not: else each arrival takes time for each replica."""
    engines, quiet_fs = [Mock(), Mock()], [11, 10]
    for turns in (None, TierTurns((), quiet_fs, written_back=False)):
        outstanding, books = [3, 5], Mock(router=LeastOutstanding())
        choose = ExactRouting(engines, quiet_fs, outstanding, books, turns).choice(range(2))
        assert choose(0, 9) == 0
        assert outstanding == [3, 5]
    for engine in engines:
        engine.advance.assert_not_called()
        engine.outstanding.assert_not_called()


@given(st.integers(0, 2**63), st.integers(1, 9), st.integers(0, 50))
def test_how_many_are_dealt_at_once_does_not_matter(seed: int, replicas: int, first: int) -> None:
    for whole, parts in ((Random(seed), Random(seed)), (RoundRobin(), RoundRobin())):
        dealt = [*parts.deal(first, replicas), *parts.deal(50 - first, replicas)]
        assert whole.deal(50, replicas).tolist() == dealt
        assert set(dealt) <= set(range(replicas))


def test_random_draws_are_even_and_hang_on_the_seed() -> None:
    dealt = Random(1).deal(60_000, 6)
    counts = np.bincount(dealt, minlength=6)
    assert (abs(counts - 10_000) < 500).all()  # five standard deviations
    assert (np.corrcoef(dealt[1:], dealt[:-1])[0, 1]) < 0.02
    assert (np.bincount(dealt * 6 + Random(2).deal(60_000, 6), minlength=36) > 1_400).all()


@given(st.integers(0, 2**63), st.lists(st.integers(0, 5), min_size=2, max_size=8))
def test_power_of_two_never_picks_the_one_with_most(seed: int, outstanding: list[int]) -> None:
    router = PowerOfTwo(seed)
    picked = {router.pick(outstanding) for _ in range(50)}
    most = max(outstanding)
    if outstanding.count(most) == 1:
        assert outstanding.index(most) not in picked


def test_power_of_two_draws_every_pair_alike() -> None:
    """Of n replicas with ever more requests, replica i is picked as it is drawn with a later one."""
    router = PowerOfTwo(3)
    counts = np.bincount([router.pick(range(5)) for _ in range(20_000)], minlength=5)
    assert abs(counts - np.array([8, 6, 4, 2, 0]) * 1_000).max() < 350  # five standard deviations
    assert PowerOfTwo(3).pick([7]) == 0


@pytest.mark.parametrize("make", [LeastOutstanding, lambda: PowerOfTwo(5)])
def test_a_router_goes_on_from_its_state(make: Callable[[], Any]) -> None:
    router, other = make(), make()
    for _ in range(7):
        router.pick([3, 1, 1, 2])
    other.restore(router.state())
    assert [router.pick([1, 1, 1]) for _ in range(20)] == [other.pick([1, 1, 1]) for _ in range(20)]


def test_the_seed_of_the_run_is_that_of_its_router() -> None:
    requests = [(i * MS, 5, 5) for i in range(40)]
    for router in ("random", "power_of_two"):
        chosen = [serve(requests, 3, router, seed=seed).table["replica"].tolist() for seed in (1, 1, 2)]
        assert chosen[0] == chosen[1] != chosen[2]


GAPS = st.integers(0, 30).map(MS.__mul__) | st.integers(0, 100)  # about the time of a step, or all at once
REQUESTS = st.lists(st.tuples(GAPS, st.integers(1, 500), st.integers(1, 8)), min_size=15, max_size=40)


# Requests that arrive while a replica is inside a span, and leave before the span would have ended.
INTO_A_SPAN = [(0, 1, 1)] * 3 + [(0, 1, 2), (0, 1, 1), (0, 1, 1), (20 * MS, 1, 1), (0, 1, 3), (0, 1, 1), (0, 1, 1)]
INTO_A_SPAN += [(10 * MS, 1, 4), (12 * MS, 1, 1), (0, 1, 2), (19 * MS, 1, 1), (0, 1, 1)]


@examples(60)
@example(INTO_A_SPAN, 2, 2)
@given(REQUESTS, st.integers(2, 4), st.sampled_from([2, 256]))
def test_least_outstanding_sees_what_each_replica_really_has(
    gaps: list[tuple[int, int, int]], replicas: int, max_num_seqs: int
) -> None:
    arrival = np.cumsum([gap for gap, _, _ in gaps])
    requests = [(int(at), inputs, outputs) for at, (_, inputs, outputs) in zip(arrival, gaps, strict=True)]
    table = serve(requests, replicas, "least_outstanding", max_num_seqs=max_num_seqs).table
    finish, chosen = table["finish_ps"], table["replica"]
    assert (table["status"] == 1).all()
    for number, (at, _, _) in enumerate(requests):
        # All times here are whole picoseconds, so that "has left by then" can be read from the table.
        here = [int(((chosen[:number] == r) & (finish[:number] > at)).sum()) for r in range(replicas)]
        assert here[chosen[number]] == min(here)


def test_round_robin_deals_requests_out() -> None:
    table = serve([(i * MS, 5, 5) for i in range(10)], 3, "round_robin").table
    assert table["replica"].tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]


def test_least_outstanding_avoids_the_replica_with_the_long_request() -> None:
    requests = [(0, 5, 1000), (1, 5, 2)] + [(i * 100 * MS, 5, 2) for i in range(1, 20)]
    chosen = serve(requests, 2, "least_outstanding").table["replica"]
    assert chosen[1] == 1 - chosen[0]
    assert set(chosen[1:].tolist()) == {1 - int(chosen[0])}


class Last:
    """A user's router."""

    def pick(self, outstanding: list[int]) -> int:
        """Always the last."""
        return len(outstanding) - 1


def test_packages_add_routers(monkeypatch: pytest.MonkeyPatch) -> None:
    class Registered(EntryPoint):
        def load(self) -> type[Last]:
            return Last

    points = EntryPoints([Registered("last", "somewhere:Last", "pimserve.routers")])
    monkeypatch.setattr(router_module, "entry_points", lambda group: points.select(group=group))
    table = serve([(i * MS, 5, 5) for i in range(4)], 3, "last").table
    assert table["replica"].tolist() == [2, 2, 2, 2]
    with pytest.raises(
        InputError,
        match=r"unknown router 'first' \(known: round_robin, .*, last\)",
    ):
        make_router("first")
