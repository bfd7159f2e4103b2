"""Pools for prefill and decode: times by hand, and laws that hold whatever is on the way."""

import dataclasses
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pimserve.device_models.plan import FS_PER_PS, CostPlan
from pimserve.errors import InputError
from pimserve.loadgen.objectives import Objectives
from pimserve.loadgen.slo import SloSpec
from pimserve.scheduler.config import SchedulerSpec
from pimserve.scheduler.departures import Move
from pimserve.scheduler.engine import Engine
from pimserve.scheduler.fleet import DECODE, PREFILL
from pimserve.scheduler.handover import Link
from pimserve.scheduler.kv_cache import KvCache
from pimserve.scheduler.mixed_costs import make_costs
from pimserve.scheduler.requests import FINISHED, FOREVER, NEVER, REJECTED, RequestTable
from pimserve.scheduler.simulation import Deployment
from pimserve.scheduler.steplog import StepLog
from pimserve.scheduler.summary import digest, summarize
from pimserve.scheduler.usage import Hardware
from tests.examples import examples

from .plan_strategies import plans
from .pool_runs import LINK, SPEC, Pooled, hand_over, pool_rows, pooled
from .pools import Decode
from .strategies import FS_PER_MS
from .test_simulation import LAYERS, PLAN, seconds, serve
from .test_windows import LENGTHS, Windows, cut_and_continued, spans, spread


def test_times_by_hand() -> None:
    served = hand_over([(0.0, 10, 3), (0.0, 20, 2), (0.3, 5, 1)])
    # Both prompts are done at 10 ms. The first cache leaves from 10 to 20 ms and is there at 10 + 5 + 10 = 25 ms; the
    # second one leaves from 20 to 40 ms and is there at 20 + 5 + 20 = 45 ms, when the first request has all its tokens.
    assert seconds(served, "first_token_ps") == [0.01, 0.01, 0.31]
    assert seconds(served, "finish_ps") == [0.045, 0.055, 0.31]
    assert served.table["replica"].tolist() == [1, 1, 0]
    found = summarize(served, Objectives(SloSpec()), Hardware(2)).document()
    assert found["latency_s"]["itl"]["n"] == 3
    assert found["latency_s"]["itl"]["mean"] == pytest.approx((0.025 + 0.01 + 0.045) / 3)
    pools = found["pools"]
    few = {"few_samples": ["p50", "p90", "p99"]}
    assert pools["handover"] == {
        "n": 2,
        "bytes": 30 * 10**6,
        "held": 0,
        "lost": 0,
        "waiting_s": {"mean": 0.005, "p50": 0.0, "p90": 0.01, "p99": 0.01, "n": 2, **few},
        "transfer_s": {"mean": 0.02, "p50": 0.015, "p90": 0.025, "p99": 0.025, "n": 2, **few},
        "link_busy_share": {"prefill": pytest.approx(0.03 / 0.31), "decode": pytest.approx(0.03 / 0.31)},
    }
    assert (pools["prefill"]["steps"], pools["decode"]["steps"]) == (2, 3)
    assert (pools["prefill"]["output_tokens"], pools["decode"]["output_tokens"]) == (3, 3)
    assert pools["decode"]["busy_share"] == pytest.approx(0.03 / 0.31)


def test_senders_share_the_receivers_link() -> None:
    served = hand_over([(0.0, 10, 2), (0.0, 10, 2)], replicas=2)
    # They leave side by side, and arrive one after the other: at 25 and 35 ms.
    assert seconds(served, "finish_ps") == [0.035, 0.045]


def test_a_full_decode_cache_holds_requests_back_until_the_next_report() -> None:
    # A decode cache of 48 tokens has room for one request of 17 to 32 tokens beside nothing else of that kind.
    served = hand_over([(0.0, 20, 20), (0.0, 20, 3)], decode=Decode(PLAN, 48, 1, LINK), kv_capacity_tokens=48)
    first, second = served.table["finish_ps"].tolist()
    # The first one's cache is there at 10 + 5 + 20 = 35 ms, its 19 tokens at 225 ms; that is told at 300 ms.
    assert first == 225 * 10**9
    assert second == (300 + 25 + 20) * 10**9
    assert summarize(served, Objectives(SloSpec()), Hardware(2)).document()["pools"]["handover"]["held"] == 1


def test_caches_go_in_the_order_in_which_prompts_are_done_whatever_window_they_were_begun_in() -> None:
    by_tokens = replace(PLAN, rows=(replace(LAYERS, pieces=((0, FS_PER_MS),)),))  # a step takes a millisecond per token
    served = hand_over(
        [(0.09, 50, 2), (0.101, 5, 2)], plan=by_tokens, replicas=2, decode=Decode(by_tokens, 1600, 1, LINK)
    )
    # The first one's step began before the report at 100 ms, and ends at 140 ms, after that of the second at 106 ms.
    assert seconds(served, "finish_ps") == [0.196, 0.117]


def test_what_leaves_when_a_step_ends_has_its_blocks_until_then() -> None:
    table = RequestTable(np.zeros(1, np.int64), np.array([20]), np.array([2]), 100)
    table["emitted_tokens"][0] = 1
    costs = make_costs(PLAN, None, replica=1, seed=0, exact=False)
    log = StepLog(costs, (0, FOREVER))
    engine = Engine(costs, SPEC, kv=KvCache(10, SPEC.block_size), table=table, log=log, pool=DECODE)
    assert engine.seen_at(0).spare_kv_blocks == 10
    engine.expect(Move(0, 0, since_fs=0, token_fs=0))
    engine.submit([0])
    assert engine.seen_at(0).spare_kv_blocks == 8  # 20 tokens, and that of the first step
    engine.advance(5 * FS_PER_MS)
    spare = [engine.seen_at(ms * FS_PER_MS).spare_kv_blocks for ms in (5, 10)]
    assert spare == [8, 10]


def test_a_span_that_was_left_is_not_that_of_others_who_come_after_a_failure() -> None:
    """As many, with as many tokens in all, and as many blocks in the step that was left, but not in those after it."""
    inputs = np.array([20, 36, 24, 32])
    table = RequestTable(np.zeros(4, np.int64), inputs, np.full(4, 15), 100)
    table["emitted_tokens"][:] = 1
    costs = make_costs(PLAN, None, replica=1, seed=0, exact=False)
    log = StepLog(costs, (0, FOREVER))
    engine = Engine(costs, SPEC, kv=KvCache(20, SPEC.block_size), table=table, log=log, pool=DECODE)
    for requests in ([0, 1], [2, 3]):
        for request in requests:
            engine.expect(Move(request, 0, since_fs=0, token_fs=0))
        engine.submit(requests)
        engine.advance(50 * FS_PER_MS, lazily=True)
        assert (engine.step, engine.decoding.count, engine.decoding.context) == (0, 2, 58)
        if requests == [0, 1]:
            engine.fail(0)
            engine.departures.collected()
    engine.advance()
    assert table["status"][2:].tolist() == [FINISHED] * 2
    assert engine.kv.used == 0


@pytest.mark.parametrize("deployment", [Deployment(), Deployment(control=Windows([70 * FS_PER_MS]))])
def test_a_full_prefill_cache_admits_nobody_before_blocks_are_released(deployment: Deployment) -> None:
    slow = Link(bytes_per_s=10**8, latency_fs=0, bytes_per_token=10**6)  # a token takes 10 ms
    served = hand_over(
        [(0.0, 32, 2), (0.0, 32, 2)],
        kv_capacity_tokens=48,
        decode=Decode(PLAN, 1600, 1, slow),
        deployment=deployment,
    )
    # The first cache leaves from 10 to 330 ms, which the prefill replica hears of at 400 ms.
    assert seconds(served, "first_scheduled_ps") == [0.0, 0.4]
    assert seconds(served, "finish_ps") == [0.34, 0.74]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"spec": SchedulerSpec()}, r"^scheduler.report_interval_s: is 0; pools hear of each other in intervals"),
        ({"decode": Decode(PLAN, 15, 1, LINK)}, r"^scheduler.block_size: one block of 16 tokens exceeds"),
    ],
)
def test_what_does_not_go_with_pools(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        hand_over([(0.0, 5, 5)], **changes)


def test_the_longest_request_fits_both_pools() -> None:
    served = hand_over([(0.0, 90, 90)], decode=Decode(PLAN, 100, 1, LINK))
    assert served.max_model_len == 96


@examples(30)
@given(pooled())
def test_requests_tokens_and_bytes_are_conserved(pools: Pooled) -> None:
    run = pools.run()
    table, summary = run.table, run.summary()
    counts = summary["requests"]
    assert counts["total"] == counts["finished"] + counts["rejected"] + counts["unfinished"]
    rows = run.all_rows()
    assert sum(row.steps * row.outputs for row in rows) == table["emitted_tokens"].sum()
    # Decode replicas compute prompts of preempted requests only.
    if not table["preemptions"].any():
        assert not sum(row.chunks for row in pool_rows(run, DECODE))
    handover = summary["pools"]["handover"]
    assert handover["held"] <= handover["n"] == handover["transfer_s"]["n"]
    first = sum(row.outputs for row in pool_rows(run, PREFILL))
    assert first == (table["first_token_ps"] != NEVER).sum()
    if pools.case.max_time_fs is not None:
        return
    assert counts["unfinished"] == 0
    done = table[table["status"] == FINISHED]
    moved = done[done["output_tokens"] > 1]
    assert handover["n"] == len(moved)
    assert handover["bytes"] == sum(pools.decode.link.size(int(row["input_tokens"])) for row in moved)
    assert sum(row.prefill_tokens for row in pool_rows(run, PREFILL)) == done["input_tokens"].sum()
    assert (table["input_tokens"][table["status"] == REJECTED] >= run.served.max_model_len).all()
    # Every gap between two tokens is a sample, that across the hand-over too.
    logs = run.served.logs
    assert sum(log.itl.count for log in logs) == (done["output_tokens"] - 1).sum()
    gaps = sum(log.itl.state()["sum_fs"] for log in logs)
    lived = int((done["finish_ps"] - done["first_token_ps"]).sum()) * FS_PER_PS
    assert abs(gaps - lived) <= 2 * FS_PER_PS * len(done)


@pytest.mark.medium
@examples(30)
@given(pooled())
def test_kv_blocks_stay_within_capacity_and_time_is_monotone(pools: Pooled) -> None:
    run = pools.run()
    for pool in run.served.pools:
        for replica in pool.numbers:
            end = 0
            for begin, row in run.rows(replica):
                assert begin >= end
                end = begin + row.duration_fs
                assert 0 < row.blocks_begin <= row.blocks_end <= pool.kv_blocks(run.served.block_size)
                assert row.context <= row.blocks_begin * pools.case.block_size
            assert end == run.served.logs[replica].clock_fs
    use = run.summary()["kv"]["peak_use"]
    assert 0 <= use <= 1


@examples(30)
@given(pooled())
def test_no_effect_before_its_cause(pools: Pooled) -> None:
    run = pools.run()
    assert run.served.handovers is not None
    boundaries = [
        {time // FS_PER_PS for begin, row in run.rows(replica) for time in (begin, begin + row.duration_fs)}
        for replica in range(len(run.blocks))
    ]
    begins = [[begin for begin, _ in run.rows(replica)] for replica in range(len(run.blocks))]
    for row in run.table:
        times = [row["arrival_ps"], row["first_scheduled_ps"], row["first_token_ps"], row["finish_ps"]]
        known = [time for time in times if time != NEVER]
        assert known == times[: len(known)] == sorted(known)
        if row["status"] == FINISHED and row["output_tokens"] > 1:
            assert row["replica"] >= pools.prefill
            assert row["finish_ps"] in boundaries[row["replica"]]
            size = pools.decode.link.size(int(row["input_tokens"]))
            link = pools.decode.link
            way_fs = link.latency_fs + link.lasts_fs(size) // max(1, link.layers)
            # It begins to decode when its cache is there, in one of the replica's steps.
            there = int(row["first_token_ps"]) * FS_PER_PS + way_fs
            assert any(there <= begin + FS_PER_PS for begin in begins[row["replica"]])
            assert row["finish_ps"] * FS_PER_PS + FS_PER_PS > there
    assert all(wait >= 0 for wait in run.served.handovers.waits_ps)


@pytest.mark.medium
@examples(25)
@given(pooled(), LENGTHS)
def test_windows_and_shards_do_not_matter(pools: Pooled, lengths: list[int]) -> None:
    alone = pools.run()
    found = (spans(alone), digest(alone.served), alone.summary())
    replicas = pools.prefill + pools.decode.replicas
    for shards, control in ((1, Windows(lengths)), (2, None), (replicas, Windows(lengths))):
        deployment = Deployment(shards=spread(min(shards, replicas)), control=control)
        run = pools.run(deployment)
        assert (spans(run), digest(run.served), run.summary()) == found


@pytest.mark.slow
@examples(25)
@given(pooled(), LENGTHS, st.integers(0, 1000))
def test_an_interrupted_run_goes_on_to_the_same_bits(pools: Pooled, lengths: list[int], at: int) -> None:
    alone = pools.run()
    _, continued = cut_and_continued(pools.run, lengths, at)
    assert digest(continued.served) == digest(alone.served)
    assert continued.summary() == alone.summary()


@examples(40)
@given(plans(), st.lists(st.tuples(st.integers(1, 100), st.integers(1, 30)), min_size=1, max_size=8))
def test_alone_and_with_nothing_on_the_way_a_request_goes_as_on_one_replica(
    plan: CostPlan, lengths: list[tuple[int, int]]
) -> None:
    assume(plan.micro_batches is None)
    plan = dataclasses.replace(plan, experts=None)  # replicas have luck of their own
    requests = [(1000.0 * number, *length) for number, length in enumerate(lengths)]
    way = Link(bytes_per_s=10**30, latency_fs=0, bytes_per_token=0)
    one = serve(requests, plan=plan, spec=SPEC)
    two = hand_over(requests, plan=plan, decode=Decode(plan, 1600, 1, way))
    for name in ("first_scheduled_ps", "first_token_ps", "finish_ps"):
        assert (one.table[name] == two.table[name]).all()
