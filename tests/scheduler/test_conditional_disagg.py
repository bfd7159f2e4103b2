"""Prompts that stay on decode replicas: the rule by hand, laws on random pools, and a replica without pools."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pimserve.device_models.plan import FS_PER_PS, CostPlan
from pimserve.errors import InputError
from pimserve.loadgen.objectives import Objectives
from pimserve.loadgen.slo import SloSpec
from pimserve.scheduler.autoscaling import AutoscalingSpec, PoolScaling, SizeChange
from pimserve.scheduler.conditional_disagg import ConditionalDisaggSpec
from pimserve.scheduler.config import SchedulerSpec
from pimserve.scheduler.faults import FaultEvent, FaultSpec
from pimserve.scheduler.fleet import DECODE, PREFILL
from pimserve.scheduler.handover import Link
from pimserve.scheduler.requests import FINISHED, PREFILL_QUEUE, REMOTE, SERVABLE, SHORT_PROMPT
from pimserve.scheduler.simulation import Deployment, Served
from pimserve.scheduler.summary import digest, summarize
from pimserve.scheduler.usage import Hardware
from tests.examples import examples

from .plan_strategies import plans
from .pool_runs import LINK, SPEC, Pooled, pool_rows, pooled
from .pools import Decode
from .test_simulation import PLAN, seconds, serve
from .test_windows import LENGTHS, Windows, cut_and_continued, spans, spread

SHORT = ConditionalDisaggSpec(max_local_prefill_tokens=10, max_prefill_queue_size=None)
RULES = st.builds(
    ConditionalDisaggSpec,
    max_local_prefill_tokens=st.integers(0, 40),
    max_prefill_queue_size=st.none() | st.integers(1, 4),
)


def hand_over(requests: list[tuple[float, int, int]], rule: ConditionalDisaggSpec, **changes: Any) -> Served:
    """Serve (arrival s, input, output) with steps of 10 ms in both pools."""
    return serve(requests, **{"decode": Decode(PLAN, 1600, 1, LINK, conditional=rule), "spec": SPEC, **changes})


def figures(served: Served) -> dict[str, Any]:
    found: dict[str, Any] = summarize(served, Objectives(SloSpec()), Hardware(2)).document()["pools"]
    return found


def test_short_prompts_stay_and_send_nothing() -> None:
    served = hand_over([(0.0, 10, 3), (0.0, 11, 2), (0.005, 5, 1)], SHORT)
    # The second one's cache is there at 10 + 5 + 11 = 26 ms, and decodes from the step at 30 ms on. The third comes
    # during the first step, and its prompt is computed beside the first one's second token.
    assert seconds(served, "first_token_ps") == [0.01, 0.01, 0.02]
    assert seconds(served, "finish_ps") == [0.03, 0.04, 0.02]
    assert served.table["replica"].tolist() == [1, 1, 1]
    assert served.table["local_prefill"].tolist() == [SHORT_PROMPT, REMOTE, SHORT_PROMPT]
    found = figures(served)
    assert found["handover"]["n"] == 1
    assert found["conditional_disagg"] == {"remote": 1, "short_prompt": 2, "prefill_queue": 0}
    assert "conditional_disagg" not in figures(hand_over([(0.0, 10, 3)], SHORT, decode=Decode(PLAN, 1600, 1, LINK)))


def test_long_prompts_stay_while_enough_wait_for_the_prefill_pool() -> None:
    rule = ConditionalDisaggSpec(max_local_prefill_tokens=0, max_prefill_queue_size=2)
    # Of those that come at once the third one finds two sent there. At 100 ms both have left it, as is told then.
    served = hand_over([(0.0, 20, 2), (0.0, 20, 2), (0.0, 20, 2), (0.05, 20, 2), (0.1, 20, 2)], rule)
    assert served.table["local_prefill"].tolist() == [REMOTE, REMOTE, PREFILL_QUEUE, PREFILL_QUEUE, REMOTE]
    assert figures(served)["conditional_disagg"] == {"remote": 3, "short_prompt": 0, "prefill_queue": 2}


def test_who_waits_on_prefill_replicas_is_counted_as_they_last_reported() -> None:
    rule = ConditionalDisaggSpec(max_local_prefill_tokens=0, max_prefill_queue_size=3)
    # One prompt a step: at 100 ms ten of twelve that came at 0 would have been computed, but no more than three went.
    crowd = [(0.0, 20, 2)] * 4 + [(0.095, 20, 2)] * 2
    served = hand_over(crowd, rule, spec=SPEC.model_copy(update={"max_num_seqs": 1}))
    assert served.table["local_prefill"].tolist() == [REMOTE] * 3 + [PREFILL_QUEUE] * 3


def test_a_cache_on_its_way_lets_a_prompt_pass_that_comes_before_it() -> None:
    slow = Link(bytes_per_s=10**8, latency_fs=0, bytes_per_token=10**6)  # a token takes 10 ms
    served = hand_over([(0.0, 20, 2), (0.15, 5, 2)], SHORT, decode=Decode(PLAN, 1600, 1, slow, conditional=SHORT))
    assert seconds(served, "finish_ps") == [0.22, 0.17]  # the cache comes from 10 to 210 ms


def test_a_prompt_that_stays_waits_for_room_behind_those_that_are_handed_over() -> None:
    served = hand_over(
        [(0.0, 20, 20), (0.0, 20, 3), (0.02, 5, 3)],
        SHORT,
        decode=Decode(PLAN, 48, 1, LINK, conditional=SHORT),
    )
    # As in test_pools.py the second one goes at 300 ms, and is there at 325 ms. The third goes with it, has nothing to
    # send, and is through at 330 ms, with whose step the second one begins to decode.
    assert seconds(served, "first_token_ps")[2] == 0.31
    assert seconds(served, "finish_ps") == [0.225, 0.35, 0.33]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"enable_prefix_caching": True}, "enable_prefix_caching: what replicas have cached of a prompt"),
        ({"max_queued_requests": 3}, "scheduler.max_queued_requests, which is of prefill replicas"),
        ({"early_rejection": True, "early_rejection_ttft_s": 1.0}, "scheduler.early_rejection, which goes by prompts"),
    ],
)
def test_what_does_not_go_together_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(
        InputError, match=rf"^cluster.pools.conditional_disagg: is not modelled together with .*{message}"
    ):
        hand_over([(0.0, 5, 2)], SHORT, spec=SchedulerSpec(report_interval_s=0.1, **changes))


@st.composite
def conditional(draw: st.DrawFn) -> Pooled:
    """Random pools with some rule."""
    pools = draw(pooled())
    case = replace(pools.case, max_queued_requests=None, early_rejection=False)
    return replace(pools, case=case, decode=replace(pools.decode, conditional=draw(RULES)))


@pytest.mark.medium
@examples(40)
@given(conditional())
def test_requests_tokens_and_bytes_are_conserved(pools: Pooled) -> None:
    run = pools.run()
    table, summary = run.table, run.summary()
    counts, rule = summary["requests"], pools.decode.conditional
    assert rule is not None
    assert counts["total"] == counts["finished"] + counts["rejected"] + counts["unfinished"]
    assert sum(row.steps * row.outputs for row in run.all_rows()) == table["emitted_tokens"].sum()
    served = table[table["reject_reason"] == SERVABLE]
    short = served["input_tokens"] <= rule.max_local_prefill_tokens
    assert ((served["local_prefill"] == SHORT_PROMPT) == short).all()
    if rule.max_prefill_queue_size is None:
        assert not (served["local_prefill"] == PREFILL_QUEUE).any()
    done = table[table["status"] == FINISHED]
    stayed = done[done["local_prefill"] != REMOTE]
    assert (stayed["replica"] >= pools.prefill).all()
    if pools.case.max_time_fs is not None:
        return
    assert counts["unfinished"] == 0
    split = summary["pools"]["conditional_disagg"]
    assert sum(split.values()) == len(done)
    moved = done[(done["output_tokens"] > 1) & (done["local_prefill"] == REMOTE)]
    handover = summary["pools"]["handover"]
    assert handover["n"] == len(moved)
    assert handover["bytes"] == sum(pools.decode.link.size(int(row["input_tokens"])) for row in moved)
    remote = done["input_tokens"][done["local_prefill"] == REMOTE].sum()
    assert sum(row.prefill_tokens for row in pool_rows(run, PREFILL)) == remote
    if not table["preemptions"].any():
        assert sum(row.prefill_tokens for row in pool_rows(run, DECODE)) == stayed["input_tokens"].sum()
    logs = run.served.logs
    assert sum(log.itl.count for log in logs) == (done["output_tokens"] - 1).sum()
    lived = int((done["finish_ps"] - done["first_token_ps"]).sum()) * FS_PER_PS
    assert abs(sum(log.itl.state()["sum_fs"] for log in logs) - lived) <= 2 * FS_PER_PS * len(done)
    for row in done:
        assert row["arrival_ps"] <= row["first_scheduled_ps"] < row["first_token_ps"] <= row["finish_ps"]


@pytest.mark.medium
@examples(25)
@given(conditional(), LENGTHS)
def test_windows_and_shards_do_not_matter(pools: Pooled, lengths: list[int]) -> None:
    alone = pools.run()
    found = (spans(alone), digest(alone.served), alone.summary())
    replicas = pools.prefill + pools.decode.replicas
    for shards, control in ((1, Windows(lengths)), (2, None), (replicas, Windows(lengths))):
        run = pools.run(Deployment(shards=spread(min(shards, replicas)), control=control))
        assert (spans(run), digest(run.served), run.summary()) == found


@pytest.mark.medium
@examples(15)
@given(conditional(), LENGTHS, st.integers(0, 1000))
def test_an_interrupted_run_goes_on_to_the_same_bits(pools: Pooled, lengths: list[int], at: int) -> None:
    alone = pools.run()
    _, continued = cut_and_continued(pools.run, lengths, at)
    assert digest(continued.served) == digest(alone.served)
    assert continued.summary() == alone.summary()


@examples(40)
@given(
    plans(),
    st.lists(st.tuples(st.integers(0, 300), st.integers(1, 100), st.integers(1, 30)), min_size=1, max_size=12),
)
def test_where_all_prompts_stay_and_find_room_pools_are_a_replica_without(
    plan: CostPlan, lengths: list[tuple[int, int, int]]
) -> None:
    assume(plan.micro_batches is None)
    plan = replace(plan, experts=None)  # replicas have luck of their own
    requests = sorted((at / 1000, *tokens) for at, *tokens in lengths)
    rule = ConditionalDisaggSpec(max_local_prefill_tokens=100)
    one = serve(requests, plan=plan, kv_capacity_tokens=16_000, spec=SPEC)
    two = serve(
        requests,
        plan=plan,
        kv_capacity_tokens=16_000,
        spec=SPEC,
        decode=Decode(plan, 16_000, 1, LINK, conditional=rule),
    )
    for name in ("first_scheduled_ps", "first_token_ps", "finish_ps", "emitted_tokens"):
        assert (one.table[name] == two.table[name]).all()
    assert not two.logs[0].steps


EVENTS = st.lists(
    st.builds(
        lambda at_ms, replica, lasts_ms, kind: FaultEvent(
            at_s=at_ms / 1000, replica=replica, kind=kind, for_s=lasts_ms / 1000
        ),
        st.integers(0, 400),
        st.integers(0, 1),
        st.integers(1, 300),
        st.sampled_from(["fail", "leave"]),
    ),
    max_size=4,
)


@pytest.mark.medium
@examples(30)
@given(conditional(), EVENTS, LENGTHS)
def test_failures_lose_no_request_and_change_no_bit_by_windows(
    pools: Pooled, events: list[FaultEvent], lengths: list[int]
) -> None:
    assume(pools.case.max_time_fs is None)
    faults = FaultSpec(events=tuple(events), detection_s=0.05)
    run = pools.run(faults=faults)
    assert run.summary()["requests"]["unfinished"] == 0
    assert run.table["emitted_tokens"].sum() == run.table["output_tokens"][run.table["status"] == FINISHED].sum()
    shards = spread(pools.prefill + pools.decode.replicas)
    again = pools.run(Deployment(shards=shards, control=Windows(lengths)), faults=faults)
    assert (digest(again.served), again.summary()) == (digest(run.served), run.summary())


def test_no_prompt_is_taken_while_no_prefill_replica_is_there() -> None:
    faults = FaultSpec(events=(FaultEvent(at_s=0.05, replica=0, kind="leave", for_s=0.2),))
    served = hand_over([(0.0, 5, 2), (0.1, 5, 2)], SHORT, faults=faults)
    assert seconds(served, "first_token_ps") == [0.01, 0.26]


def test_a_pool_for_decode_may_change_its_size_beside() -> None:
    scaling = PoolScaling(start_up_s=0.01, changes=(SizeChange(at_s=0.05, replicas=2),))
    served = hand_over(
        [(0.0, 5, 30), (0.2, 5, 30), (0.2, 5, 30)],
        SHORT,
        decode=Decode(PLAN, 1600, 2, LINK, conditional=SHORT),
        autoscaling=AutoscalingSpec(decode=scaling),
    )
    assert sorted(served.table["replica"].tolist()) == [1, 1, 2]
