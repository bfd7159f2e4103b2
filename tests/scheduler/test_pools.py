"""Pools for prefill and decode: times by hand, laws that hold whatever is on the way, links against a naive model."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pimserve.device_models.kv_groups import NO_WINDOWS
from pimserve.device_models.plan import FS_PER_PS, FS_PER_S, CostPlan
from pimserve.errors import InputError
from pimserve.loadgen.objectives import Objectives
from pimserve.loadgen.slo import SloSpec
from pimserve.scheduler.config import SchedulerSpec
from pimserve.scheduler.departures import Move
from pimserve.scheduler.engine import Engine
from pimserve.scheduler.fleet import DECODE, PREFILL
from pimserve.scheduler.handover import Lines, Link
from pimserve.scheduler.kv_cache import KvCache
from pimserve.scheduler.mixed_costs import make_costs
from pimserve.scheduler.requests import FINISHED, FOREVER, NEVER, REJECTED, WAITING, RequestTable
from pimserve.scheduler.simulation import Deployment, Served
from pimserve.scheduler.spec_decode_figures import SpecDecodeFigures
from pimserve.scheduler.speculative_spec import SpeculativeSpec
from pimserve.scheduler.steplog import StepLog
from pimserve.scheduler.summary import digest, summarize
from pimserve.scheduler.usage import Hardware
from tests.examples import examples

from .law_runs import ROUTERS, Run
from .pools import Decode
from .reference_engine import UNLIMITED
from .speculative_strategies import speculations
from .strategies import FS_PER_MS, Case, cases, expert_terms, plans, serial_plans
from .test_simulation import LAYERS, PLAN, seconds, serve
from .test_windows import LENGTHS, Kept, Windows, spans, spread

LINK = Link(bytes_per_s=10**9, latency_fs=5 * FS_PER_MS, bytes_per_token=10**6)  # a token takes a millisecond
SPEC = SchedulerSpec(report_interval_s=0.1)


def hand_over(requests: list[tuple[float, int, int]], **changes: Any) -> Served:
    """Serve (arrival s, input, output) with steps of 10 ms in both pools."""
    return serve(requests, **{"decode": Decode(PLAN, 1600, 1, LINK), "spec": SPEC, **changes})


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


def drafts_of(**given: Any) -> SpeculativeSpec:
    return SpeculativeSpec.model_validate({"method": "mtp", "num_speculative_tokens": 2, "acceptance": 1, **given})


def test_who_decodes_verifies_drafts_from_the_first_step_on() -> None:
    spec = SPEC.model_copy(update={"speculative": drafts_of()})
    plan = replace(PLAN, verify_tokens=3)
    served = hand_over([(0.0, 10, 5)], plan=plan, decode=Decode(plan, 1600, 1, LINK), spec=spec)
    # Its cache is there at 10 + 5 + 10 = 25 ms; a step gives it three tokens, another one the last.
    assert seconds(served, "first_token_ps") == [0.01]
    assert seconds(served, "finish_ps") == [0.045]
    assert served.spec_decode == SpecDecodeFigures(drafts=2, draft_tokens=4, accepted_tokens=2)
    assert [log.itl.count for log in served.logs] == [0, 2]


@pytest.mark.parametrize(("method", "kept"), [("ngram", 48 - 2), ("mtp", 48 - 4)])
def test_room_for_drafts_is_asked_for_where_they_are_verified(method: str, kept: int) -> None:
    """A decode cache of 48 tokens; one for prefill has no slots for drafts."""
    plan = replace(PLAN, verify_tokens=3)
    spec = SPEC.model_copy(update={"speculative": drafts_of(method=method)})
    pools = {"plan": plan, "kv_capacity_tokens": 48, "decode": Decode(plan, 48, 1, LINK), "spec": spec}
    assert hand_over([(0.0, 90, 90)], **pools).max_model_len == kept
    # The cache of 14 tokens needs a block with the next one, and two with slots for drafts.
    served = hand_over([(0.0, 14, 20), (0.0, 14, 2)], **pools)
    first, second = served.table["finish_ps"].tolist()
    assert first == (10 + 5 + 14 + 7 * 10) * 10**9  # three tokens a step
    assert second == (100 + 5 + 14 + 10) * 10**9  # sent when the next report tells of room


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


@dataclass
class Pooled:
    """A case whose plan is that of prefill, and a decode pool."""

    case: Case
    prefill: int
    decode: Decode
    interval_s: float
    router: str

    def run(self, deployment: Deployment = Deployment(), **changes: Any) -> Run:  # noqa: B008 frozen
        return Run(
            self.case,
            self.prefill + self.decode.replicas,
            self.router,
            prefill=self.prefill,
            decode=self.decode,
            report_interval_s=self.interval_s,
            deployment=deployment,
            **changes,
        )


@st.composite
def pooled(draw: st.DrawFn, of: st.SearchStrategy[CostPlan] | None = None, **changes: Any) -> Pooled:
    """One or two replicas in each pool, with links that take nothing up to tens of ms, and caches that fill up."""
    case = replace(draw(cases(of)), concurrency=None, **changes)
    case.requests = [replace(r, arrival_fs=r.arrival_fs or 0) for r in case.requests]
    if case.max_time_fs is not None:
        case.max_time_fs = max(case.max_time_fs, min((r.arrival_fs for r in case.requests), default=0) + FS_PER_PS)
        case.max_time_fs += -case.max_time_fs % FS_PER_PS
    most = case.kv_groups.blocks(case.max_model_len, case.block_size, case.max_num_batched_tokens or UNLIMITED)
    blocks = most + draw(st.integers(0, 4))
    kv_tokens = -(-blocks // case.full_groups) * case.block_size  # whole blocks, that none is lost to rounding
    taking = replace(case, plan=draw(plans() if of is None else of))
    link = Link(
        bytes_per_s=draw(st.sampled_from([10**5, 10**6, 10**8, 10**15])),
        latency_fs=draw(st.just(0) | st.integers(0, 20 * FS_PER_MS)),
        bytes_per_token=draw(st.integers(1, 100)),
        window_bytes_per_token=draw(st.integers(0, 100)),
        window_tokens=draw(st.integers(0, 40)),
        layers=draw(st.sampled_from([0, 0, 1, 7])),
    )
    return Pooled(
        case=case,
        prefill=draw(st.integers(1, 2)),
        decode=Decode(taking.plan, taking.groups * kv_tokens, draw(st.integers(1, 2)), link, case.kv_groups),
        interval_s=draw(st.integers(1, 300)) / 1000,
        router=draw(ROUTERS),
    )


def pool_rows(run: Run, name: str) -> list[Any]:
    (numbers,) = (pool.numbers for pool in run.served.pools if pool.name == name)
    return [row for replica in numbers for _, row in run.rows(replica)]


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
    kept = Kept()
    pools.run(Deployment(control=Windows(lengths), checkpoints=kept))
    kept.first = at
    continued = pools.run(Deployment(control=Windows([10**15]), checkpoints=kept))
    assert digest(continued.served) == digest(alone.served)
    assert continued.summary() == alone.summary()


@st.composite
def drafting(draw: st.DrawFn) -> Pooled:
    """Pools of which that for decode verifies drafts, in one to three data-parallel groups."""
    full: dict[str, Any] = {"full_groups": 1, "windowed_groups": 0, "window_tokens": 0}
    plain = draw(pooled(serial_plans(st.none() | expert_terms()), policy="fcfs", max_queued_requests=None, **full))
    case, spec = plain.case, draw(speculations())
    slots = -(-spec.lookahead_tokens // case.block_size)
    budget = case.max_num_batched_tokens
    case = replace(
        case,
        plan=replace(case.plan, verify_tokens=spec.verify_tokens),
        speculative=spec,
        kv_capacity_blocks=-(-case.max_model_len // case.block_size) + slots,
        max_num_batched_tokens=None if budget is None else max(budget, spec.verify_tokens),
    )
    decode = replace(
        plain.decode,
        plan=replace(plain.decode.plan, verify_tokens=spec.verify_tokens),
        kv_capacity_tokens=plain.decode.kv_capacity_tokens + plain.decode.plan.data_parallel * slots * case.block_size,
        kv_groups=NO_WINDOWS,
    )
    return replace(plain, case=case, decode=decode)


@examples(40)
@given(drafting(), LENGTHS, st.integers(0, 1000))
def test_drafts_in_pools_lose_no_token_and_change_no_bit_by_windows(pools: Pooled, lengths: list[int], at: int) -> None:
    alone, kept = pools.run(), Kept()
    table, served = alone.table, alone.served
    assert sum(row.steps * row.outputs for row in alone.all_rows()) == table["emitted_tokens"].sum()
    first = sum(row.outputs for row in pool_rows(alone, PREFILL))
    told = served.spec_decode
    assert first == (table["first_token_ps"] != NEVER).sum()
    assert told is not None
    if not table["preemptions"].any():
        assert told.drafts + told.accepted_tokens == sum(row.outputs for row in pool_rows(alone, DECODE))
        assert told.drafts == sum(row.decodes for row in alone.all_rows()) == sum(log.itl.count for log in served.logs)
    if pools.case.max_time_fs is None:
        assert (table["status"] != WAITING).all()
    shards = spread(pools.prefill + pools.decode.replicas)
    cut = pools.run(Deployment(shards=shards, control=Windows(lengths)))
    pools.run(Deployment(control=Windows(lengths), checkpoints=kept))
    kept.first = at
    continued = pools.run(Deployment(control=Windows([10**15]), checkpoints=kept))
    for other in (cut, continued):
        assert (digest(other.served), other.summary()) == (digest(served), alone.summary())


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


def naive_arrivals(link: Link, caches: Sequence[tuple[int, int, int, int]]) -> list[int]:
    """When caches (size, source, target, ready) are there, each byte of them followed on its way.

    Links carry a byte in a whole number of fs here; a byte goes when the link has carried all that came before it.
    """
    per_byte = FS_PER_S // link.bytes_per_s
    free: dict[tuple[str, int], int] = {}
    found = []
    for size, source, target, ready in caches:
        start, there = max(ready, free.get(("out", source), 0)), 0
        entered = None
        for byte in range(size):
            left = start + byte * per_byte  # its first bit leaves
            seen = left + link.latency_fs  # and is at the other side
            at = max(seen, free.get(("in", target), 0)) if entered is None else max(seen, there)
            entered, there = at, at + per_byte
        free["out", source] = start + size * per_byte
        free["in", target] = there
        found.append(there)
    return found


@given(
    st.lists(st.tuples(st.integers(1, 30), st.integers(0, 2), st.integers(3, 4), st.integers(0, 500)), max_size=20),
    st.integers(0, 40),
    st.integers(1, 20),
)
def test_links_carry_one_cache_after_the_other(
    caches: list[tuple[int, int, int, int]], latency: int, per_byte: int
) -> None:
    link = Link(bytes_per_s=FS_PER_S // per_byte, latency_fs=latency, bytes_per_token=1)
    per_byte = FS_PER_S // link.bytes_per_s
    exact = dataclasses.replace(link, bytes_per_s=FS_PER_S // per_byte)
    if FS_PER_S % per_byte:
        return
    caches.sort(key=lambda cache: cache[3])
    lines = Lines(exact)
    done = [lines.send(*cache)[2] for cache in caches]
    assert done == naive_arrivals(exact, caches)


def naive_layers(link: Link, steps: Sequence[tuple[int, int, Sequence[int]]]) -> list[int]:
    """When caches have left one replica, layer by layer: of steps (begin, end, bytes of each cache), the first first.

    At each time the link carries a layer that is computed, of the earliest step and cache; times divide evenly.
    """
    layers, free, found = link.layers, 0, []
    for begin, end, sizes in steps:
        for layer in range(layers):
            free = max(free, begin + (end - begin) * (layer + 1) // layers)
            last = []
            for size in sizes:
                free += link.lasts_fs(size) // layers
                last.append(free)
        found.append(last[-1])
    return found


@given(
    st.lists(
        st.tuples(st.integers(0, 300), st.integers(1, 60), st.lists(st.integers(1, 12), min_size=1, max_size=3)),
        max_size=8,
    ),
    st.integers(1, 6),
    st.integers(1, 15),
)
def test_layers_leave_while_the_next_ones_are_computed(
    steps: list[tuple[int, int, list[int]]], layers: int, per_byte: int
) -> None:
    assume(not FS_PER_S % per_byte)
    link = Link(bytes_per_s=FS_PER_S // per_byte, latency_fs=3, bytes_per_token=1, layers=layers)
    clock, timed = 0, []
    for idle, length, sizes in steps:
        begin = clock + idle
        clock = begin + layers * length
        timed.append((begin, clock, [layers * size for size in sizes]))
    lines, left, done = Lines(link), [], []
    for begin, end, sizes in timed:
        for size in sizes:
            begins, gone, there = lines.send(size, 0, 1, end, begin)
            assert begin + (end - begin) // layers <= begins <= gone - link.lasts_fs(size)
            assert gone >= end + link.lasts_fs(size) // layers  # its last layer is computed last
            assert there >= gone + link.latency_fs
            done.append(there)
        left.append(gone)
    assert left == naive_layers(link, timed)
    assert done == sorted(done)


def test_of_a_cache_whose_layers_leave_early_the_last_one_is_left() -> None:
    # A step of 10 ms, of 10 layers; 10 tokens take 10 ms, a layer of them one: there at 10 + 5 + 1 ms, not at 25.
    link = replace(LINK, layers=10)
    served = hand_over([(0.0, 10, 2)], decode=Decode(PLAN, 1600, 1, link))
    assert seconds(served, "finish_ps") == [0.026]
    handover = summarize(served, Objectives(SloSpec()), Hardware(2)).document()["pools"]["handover"]
    assert handover["waiting_s"]["mean"] == 0
    assert handover["transfer_s"]["mean"] == pytest.approx(0.006)
    assert handover["overlapped_s"]["mean"] == pytest.approx(0.009)
    assert handover["link_busy_share"]["prefill"] == pytest.approx(0.01 / 0.026)
    # 20 tokens take 20 ms: the link is behind, and has had 9 ms of them when the step ends.
    slow = hand_over([(0.0, 20, 2)], decode=Decode(PLAN, 1600, 1, link))
    assert seconds(slow, "finish_ps") == [0.036]  # 1 + 20 + 5 + 10 ms


def test_who_waits_for_room_sends_its_cache_whole() -> None:
    link = replace(LINK, layers=10)
    times = [
        hand_over([(0.0, 20, 20), (0.0, 20, 3)], decode=Decode(PLAN, 48, 1, way), kv_capacity_tokens=48)
        for way in (LINK, link)
    ]
    # The second one goes at 300 ms in both; the first one has nothing to wait for.
    assert [served.table["finish_ps"][1] for served in times] == [345 * 10**9] * 2
    assert times[1].table["finish_ps"][0] < times[0].table["finish_ps"][0]


def test_a_cache_has_all_of_its_bytes_of_the_full_layers_and_a_window_of_the_others() -> None:
    link = Link(1, 0, bytes_per_token=100, window_bytes_per_token=10, window_tokens=8)
    assert [link.size(tokens) for tokens in (1, 8, 9)] == [110, 880, 980]
    assert Link(3, 0, 1).lasts_fs(2) == 666_666_666_666_667
