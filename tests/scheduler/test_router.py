"""Routers: what they pick, what they may see, and how packages add one."""

from importlib.metadata import EntryPoint, EntryPoints

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pimserve.device_models.plan import CostPlan, DecodeAttentionTerm, RowTerm
from pimserve.errors import InputError
from pimserve.loadgen.workload import Workload
from pimserve.scheduler import router as router_module
from pimserve.scheduler.config import SchedulerSpec
from pimserve.scheduler.fleet import Pool
from pimserve.scheduler.router import LeastOutstanding, make_router
from pimserve.scheduler.simulation import Served, simulate

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


def serve(requests: list[tuple[int, int, int]], replicas: int, router: str, **spec: int) -> Served:
    """Serve (arrival ps, input, output)."""
    arrival, inputs, outputs = np.array(requests, np.int64).reshape(-1, 3).T.copy()
    return simulate(
        [Pool("", PLAN, 4096, replicas)],
        Workload(arrival, inputs, outputs, None, None, "", 0, {}),
        SchedulerSpec(router=router, **spec),
        max_model_len=4096,
    )


@given(st.lists(st.integers(0, 5), min_size=1, max_size=8), st.integers(1, 20))
def test_least_outstanding_picks_a_least_one_and_takes_turns(outstanding: list[int], times: int) -> None:
    router = LeastOutstanding()
    picked = [router.pick(outstanding) for _ in range(times)]
    assert {outstanding[replica] for replica in picked} == {min(outstanding)}
    if len(set(outstanding)) == 1:  # all equal: each in turn
        assert len(set(picked[: len(outstanding)])) == min(times, len(outstanding))


GAPS = st.integers(0, 30).map(MS.__mul__) | st.integers(0, 100)  # about the time of a step, or all at once
REQUESTS = st.lists(st.tuples(GAPS, st.integers(1, 500), st.integers(1, 8)), min_size=15, max_size=40)


# Requests that arrive while a replica is inside a span, and leave before the span would have ended.
INTO_A_SPAN = [(0, 1, 1)] * 3 + [(0, 1, 2), (0, 1, 1), (0, 1, 1), (20 * MS, 1, 1), (0, 1, 3), (0, 1, 1), (0, 1, 1)]
INTO_A_SPAN += [(10 * MS, 1, 4), (12 * MS, 1, 1), (0, 1, 2), (19 * MS, 1, 1), (0, 1, 1)]


@settings(max_examples=60)
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
    with pytest.raises(InputError, match=r"unknown router 'first' \(known: round_robin, least_outstanding, last\)"):
        make_router("first")
