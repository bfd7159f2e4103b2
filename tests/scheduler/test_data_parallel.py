"""Data-parallel groups of a replica: each has limits and a KV cache of its own, and waits for the slowest."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import ValidationError

from pimserve.device_models.plan import FS_PER_PS, CostPlan, RowTerm
from pimserve.errors import InputError
from pimserve.scheduler.attention_dp_spec import AttentionDpBalanceSpec
from pimserve.scheduler.config import SchedulerSpec
from pimserve.scheduler.data_parallel import DataParallelEngine
from pimserve.scheduler.departures import Move
from pimserve.scheduler.fleet import PREFILL
from pimserve.scheduler.kv_cache import KvCache
from pimserve.scheduler.kv_tier_spec import KvTierSpec
from pimserve.scheduler.mixed_costs import make_costs
from pimserve.scheduler.requests import FOREVER, RequestTable
from pimserve.scheduler.steplog import StepLog
from pimserve.scheduler.summary import digest
from tests.examples import examples

from .engine_runs import assert_equal, in_picoseconds, run_engine
from .law_runs import Run
from .plan_strategies import expert_terms, serial_plans
from .reference_engine import ReferenceRequest
from .strategies import FS_PER_MS, Case, balances, cases, two_classes
from .test_simulation import serve
from .test_windows import LENGTHS, cut_and_continued, spans

# A step takes 10 ms, and 1 ms for each token of the slowest group.
PLAN = CostPlan(
    2, 2, ("xpu",), (RowTerm("layers", "fc", "xpu", "tokens", ((10 * FS_PER_MS, FS_PER_MS),)),), (), (), None
)
GROUPS = serial_plans(st.none() | expert_terms()).filter(lambda plan: plan.data_parallel > 1)


@pytest.mark.medium
@examples(40)
@given(cases(GROUPS))
def test_no_group_has_more_than_its_own(case: Case) -> None:
    seen = 0

    class Watched(DataParallelEngine):
        def _end_step(self, *arguments: object) -> None:
            nonlocal seen
            for core in self.cores:
                assert 0 <= core.kv.used <= core.kv.blocks == case.kv_capacity_blocks
                assert len(core.running) <= case.max_num_seqs
                seen += len(core.running)
            everyone = self.in_hand()
            assert len(everyone) == len(set(everyone))  # nobody is in two groups
            super()._end_step(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pimserve.scheduler.fleet.DataParallelEngine", Watched)
        log, table, _ = run_engine(case)
    assert (seen > 0) == (log.steps > 0)
    assert table["emitted_tokens"].sum() == log.tokens
    assert 0 <= log.waited_fs <= (case.groups - 1) * log.busy_fs


def test_a_request_joins_the_group_with_the_least_of_four_times_waiting_and_running() -> None:
    """One at a time in each group. The second finds one that runs in the first (1), the third one that waits in the
    second (4 to 1), the fourth one of each in the first (5 to 4), and the last one nobody in the second."""
    requests = [(0.0, 10, 20), (0.001, 10, 3), (0.002, 10, 1), (0.003, 10, 1), (0.1, 10, 1)]
    served = serve(requests, plan=PLAN, spec=SchedulerSpec(max_num_seqs=1))
    scheduled = served.table["first_scheduled_ps"] / 1e9  # ms
    # The second ends at 62, and with it the fourth begins; the first decodes in 12 more steps of 11 ms from 124 on.
    assert scheduled.tolist() == [0, 20, 256, 62, 104]
    assert served.table["first_token_ps"].max() / 1e9 == 276


def test_groups_wait_for_the_slowest() -> None:
    alone = serve([(0.0, 5, 4)], plan=PLAN)
    assert alone.logs[0].waited_fs == alone.logs[0].busy_fs  # the other one has nothing
    both = serve([(0.0, 30, 1), (0.0, 10, 1)], plan=PLAN)
    (log,) = both.logs
    assert (log.busy_fs, log.waited_fs) == (40 * FS_PER_MS, 20 * FS_PER_MS)


def test_a_long_prompt_leaves_the_budget_of_other_groups_alone() -> None:
    served = serve([(0.0, 80, 1), (0.0, 20, 1), (0.031, 20, 1)], plan=PLAN, spec=SchedulerSpec(
        max_num_batched_tokens=20, max_num_seqs=20))  # fmt: skip
    assert np.round(served.table["first_token_ps"] / 1e9).tolist() == [120, 30, 90]


def test_a_cache_that_has_left_gives_back_the_blocks_of_the_group_that_it_left() -> None:
    """Its hand-over was lost, and it came again, to the other group, while its first cache was still leaving."""
    table = RequestTable(np.zeros(2, np.int64), np.array([40, 20]), np.array([5, 5]), 100)
    costs = make_costs(PLAN, None, replica=0, seed=0, exact=False)
    log = StepLog(costs, (0, FOREVER))

    def made() -> DataParallelEngine:
        caches = [KvCache(10, 16), KvCache(10, 16)]
        return DataParallelEngine(costs, SchedulerSpec(), kvs=caches, table=table, log=log, pool=PREFILL)

    def used(of: DataParallelEngine) -> list[int]:
        return [core.kv.used for core in of.cores]

    engine = made()
    engine.submit([0, 1])
    engine.advance(100 * FS_PER_MS)
    assert used(engine) == [3, 2]
    engine.expect(Move(1, 0, since_fs=200 * FS_PER_MS, token_fs=100 * FS_PER_MS))
    engine.submit([1])
    engine.advance(300 * FS_PER_MS)
    assert used(engine) == [5, 2]
    kept, engine = json.loads(json.dumps(engine.state())), made()
    engine.restore(kept)
    for request, left in ((1, [5, 0]), (0, [2, 0]), (1, [0, 0])):
        engine.release(request, 400 * FS_PER_MS)
        assert used(engine) == left


@st.composite
def balanced(draw: st.DrawFn) -> Case:
    """Cases of groups that wait for each other with prompts, half of them with little more to do than they have
    places for, and tenants who come back while all of these are taken."""
    case = replace(draw(cases(GROUPS)), balance=draw(balances()))
    if draw(st.booleans()):
        places, times = draw(st.integers(1, 3)), st.sampled_from([0, 5, 10, 20, 50, 100])
        lengths = st.tuples(times, st.integers(1, 12), st.integers(5, 40))
        asked = draw(st.lists(lengths, min_size=10, max_size=20))
        arrivals = np.cumsum([ms * FS_PER_MS for ms, _, _ in asked]).tolist()
        closed = draw(st.booleans())
        case = replace(
            case,
            policy="vtc",
            classes=draw(two_classes()),
            max_num_seqs=places,
            requests=[
                ReferenceRequest(None if closed else at, *length)
                for at, (_, *length) in zip(arrivals, asked, strict=True)
            ],
            max_tokens=(),
            concurrency=case.groups * places + draw(st.integers(1, 4)) if closed else None,
        )
    in_picoseconds(case)
    return case


@pytest.mark.medium
@examples(150)
@given(balanced())
def test_groups_that_wait_with_prompts_do_as_the_reference(case: Case) -> None:
    assert_equal(case)


@pytest.mark.medium
@examples(25)
@given(balanced(), LENGTHS, st.integers(0, 1000))
def test_windows_and_interruptions_do_not_matter_to_groups_that_wait(case: Case, lengths: list[int], at: int) -> None:
    case = replace(case, concurrency=None)
    case.requests = [replace(request, arrival_fs=request.arrival_fs or 0) for request in case.requests]
    if case.max_time_fs is not None:
        case.max_time_fs += -case.max_time_fs % FS_PER_PS
        assume(
            any(request.arrival_fs < case.max_time_fs for request in case.requests if request.arrival_fs is not None)
        )
    alone = Run(case)
    windowed, continued = cut_and_continued(lambda deployment: Run(case, deployment=deployment), lengths, at)
    assert (spans(windowed), digest(windowed.served)) == (spans(alone), digest(alone.served))
    assert digest(continued.served) == digest(alone.served)


def waiting(timeout_iters: int, batching_wait_iters: int = 0) -> SchedulerSpec:
    rule = AttentionDpBalanceSpec(timeout_iters=timeout_iters, batching_wait_iters=batching_wait_iters)
    return SchedulerSpec(attention_dp_balance=rule)


def test_a_prompt_waits_for_one_in_the_other_group() -> None:
    # Both groups decode from 20 ms on, in steps of 11 ms. The third one comes at 25 ms, the fourth at 50 ms, for the
    # other group: from the step at 53 ms on both have a prompt.
    requests = [(0.0, 10, 20), (0.0, 10, 20), (0.025, 30, 2), (0.05, 30, 2)]
    alone = serve(requests, plan=PLAN)
    assert (alone.table["first_token_ps"][2:] / 1e9).tolist() == [72, 113]
    served = serve(requests, plan=PLAN, spec=waiting(20))
    assert (served.table["first_scheduled_ps"] / 1e9).tolist() == [0, 0, 53, 53]
    assert (served.table["first_token_ps"][2:] / 1e9).tolist() == [94, 94]
    assert served.logs[0].waited_fs < alone.logs[0].waited_fs
    # Steps in which a group has none are at 20, 31 and 42 ms, with the third one's prompt, then at 83, 95 and 106 ms.
    hurried = serve(requests, plan=PLAN, spec=waiting(3))
    assert (hurried.table["first_scheduled_ps"][2:] / 1e9).tolist() == [42, 106]
    more = serve(requests, plan=PLAN, spec=waiting(20, 2))
    assert (more.table["first_scheduled_ps"][2:] / 1e9).tolist() == [75, 75]


def test_nobody_waits_for_a_group_that_has_nothing_to_do() -> None:
    served = serve([(0.0, 10, 20), (0.025, 30, 2)], plan=PLAN, spec=waiting(20, 5))
    assert (served.table["first_scheduled_ps"] / 1e9).tolist() == [0, 31]


def test_groups_that_wait_go_without_a_prefix_cache() -> None:
    with pytest.raises(
        ValidationError, match="attention_dp_balance is not modelled together with enable_prefix_caching"
    ):
        SchedulerSpec(attention_dp_balance=AttentionDpBalanceSpec(), enable_prefix_caching=True)


@pytest.mark.parametrize(
    ("spec", "where"),
    [
        ({"max_queued_requests": 3}, "scheduler.max_queued_requests"),
        ({"early_rejection": True, "early_rejection_ttft_s": 1.0}, "scheduler.early_rejection"),
        ({"enable_prefix_caching": True, "kv_tiers": (KvTierSpec(name="host"),)}, "scheduler.kv_tiers"),
    ],
)
def test_what_does_not_go_together_with_groups_is_refused(spec: dict[str, object], where: str) -> None:
    with pytest.raises(InputError, match="data-parallel groups") as raised:
        serve([(0.0, 5, 4)], plan=PLAN, spec=SchedulerSpec(**spec))
    assert raised.value.where == where
    serve([(0.0, 5, 4)], plan=replace(PLAN, data_parallel=1), spec=SchedulerSpec(**spec))
