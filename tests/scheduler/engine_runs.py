"""Runs of the engine on a case of the reference, and what both must have in common."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import astuple
from typing import Any

import numpy as np

from pimserve.device_models.plan import FS_PER_PS, FS_PER_S
from pimserve.loadgen.slo import SloSpec
from pimserve.loadgen.traces.ragged import Ragged
from pimserve.scheduler.costs import ReplicaCosts
from pimserve.scheduler.departures import Move
from pimserve.scheduler.fleet import DECODE, ReplicaEngine, make_engine
from pimserve.scheduler.kv_cache import KvCache
from pimserve.scheduler.kv_tier import KvTier
from pimserve.scheduler.kv_tiers import KvTiers
from pimserve.scheduler.load_shedding import LoadShedding
from pimserve.scheduler.longest_gaps import LongestGaps
from pimserve.scheduler.mixed_costs import make_costs
from pimserve.scheduler.prefill_first import SheddingPrefillFirstEngine
from pimserve.scheduler.prefix_figures import together
from pimserve.scheduler.queue_classes import queue_classes
from pimserve.scheduler.requests import FOREVER, NEVER, SERVABLE, STATUS_NAMES, RequestTable
from pimserve.scheduler.retaining_prefix_cache import prefix_cache_of
from pimserve.scheduler.shared_kv_tier import SharedKvTier
from pimserve.scheduler.shedding_engine import SheddingEngine
from pimserve.scheduler.steplog import SpanColumns, StepLog, expand
from pimserve.scheduler.swap_space import SwapSpace

from .reference_result import ReferenceResult
from .reference_tiers import ReferenceTier
from .strategies import Case

Step = tuple[int, int, int, int, int, int, int]


class Recorder(StepLog):
    """A step log that keeps every step, and every gap of a resumed request."""

    def __init__(self, costs: ReplicaCosts) -> None:
        super().__init__(costs, (0, FOREVER), self._keep, longest_gaps=True)
        self.all_steps: list[Step] = []
        self.other_gaps: Counter[int] = Counter()  # than steps say

    def _keep(self, block: np.ndarray, _: np.ndarray) -> None:
        rows = SpanColumns(*np.ascontiguousarray(block.T))
        first = len(self.all_steps)
        steps = expand(self.costs, rows, rows.first_steps(first))
        index = 0
        for row in block.tolist():
            fields = SpanColumns(*row)
            clock = fields.begin_ps * FS_PER_PS + fields.begin_rest_fs
            for _ in range(fields.steps):
                duration = int(steps.duration_fs[index])
                shape = (int(steps.decodes[index]), int(steps.context[index]))
                self.all_steps.append((clock, duration, *shape, fields.prefill_tokens, fields.chunks, fields.outputs))
                clock += duration
                index += 1

    def resumed(self, gap_fs: int, at_fs: int) -> None:
        self.other_gaps[gap_fs] += 1
        super().resumed(gap_fs, at_fs)

    def joined(self, gaps_fs: Sequence[int], step_fs: int, at_fs: int) -> None:
        self.other_gaps.update(gaps_fs)
        self.other_gaps[step_fs] -= len(gaps_fs)
        super().joined(gaps_fs, step_fs, at_fs)


def run_engine(case: Case) -> tuple[Recorder, RequestTable, ReplicaEngine]:
    log, table, engine = make_case(case)
    engine.advance(end_of(case))
    end_run(case, log, table, engine)
    return log, table, engine


def end_of(case: Case) -> int:
    return FOREVER if case.max_time_fs is None else case.max_time_fs


def end_run(case: Case, log: Recorder, table: RequestTable, engine: ReplicaEngine) -> None:
    engine.settle()
    log.flush()
    if case.concurrency is None:
        table.reject_unseen()


def make_case(case: Case, shared: SharedKvTier | None = None) -> tuple[Recorder, RequestTable, ReplicaEngine]:
    """The engine of a case, to which all requests have been submitted; what it shares is `shared`."""
    plan, pools = case.plan, case.pools()
    costs = make_costs(plan, pools, replica=case.replica, seed=case.seed, exact=case.routing.mode == "exact")
    costs.offset = case.offset
    spec = case.spec()
    closed = case.concurrency
    until = end_of(case)
    arrivals = [NEVER if r.arrival_fs is None else r.arrival_fs // FS_PER_PS for r in case.requests]
    table = RequestTable(
        np.array(arrivals, np.int64),
        np.array([r.input_tokens for r in case.requests], np.int64),
        np.array([r.output_tokens for r in case.requests], np.int64),
        case.max_model_len,
        max_tokens=np.array(case.max_tokens) if case.max_tokens else None,
    )
    table["predicted_tokens"][:] = case.predicted()
    table["class_id"][:] = case.class_ids
    for request, token_fs in enumerate(case.received):
        if token_fs is not None and table["output_tokens"][request] > 1 and table["reject_reason"][request] == SERVABLE:
            table["emitted_tokens"][request] = 1
            table["replica"][request] = case.replica + 1
            table["first_scheduled_ps"][request] = table["first_token_ps"][request] = token_fs // FS_PER_PS
    seen = [i for i, ps in enumerate(arrivals) if 0 <= ps * FS_PER_PS < until]
    kv_size = case.kv_capacity_blocks, case.block_size
    reserve: dict[str, Any] = {"reserves": spec.reserves, "most_tokens": case.max_model_len}
    if case.prefixes is None:
        limits = *kv_size, case.kv_groups, case.max_num_batched_tokens
        slots = spec.lookahead_tokens
        reserve |= {"lookahead_tokens": slots, "swap": None if case.swap is None else SwapSpace(*case.swap)}
        caches = [KvCache(*limits, **reserve) for _ in range(case.groups)]
    else:
        table.prefixes = Ragged.of(case.prefixes)
        sizes = case.block_bytes, case.block_size, case.kv_groups
        tiers = KvTiers(case.tiers, *sizes, shared=shared, replica=case.replica) if case.tiers else None
        if spec.speculative is not None:
            reserve["lookahead_tokens"] = spec.lookahead_tokens
            reserve["drop_last_hit"] = spec.speculative.drops_last_hit
        make_cache = prefix_cache_of(case.kv_groups, case.retention)
        limits = *kv_size, case.kv_groups, case.max_num_batched_tokens
        caches = [make_cache(*limits, **reserve, tiers=tiers) for _ in range(case.groups)]
    make, classes = make_engine, queue_classes(case.classes, SloSpec())
    if spec.sheds:
        shedding = LoadShedding(spec, classes, plan.frontend_ps * FS_PER_PS)
        kind = SheddingPrefillFirstEngine if case.batching == "prefill_first" else SheddingEngine
        make = lambda caches, **rest: kind(kv=caches[0], shedding=shedding, **rest)  # noqa: E731
    engine = make(
        caches,
        costs=costs,
        spec=spec,
        table=table,
        log=(log := Recorder(costs)),
        closed=None if closed is None else range(len(arrivals)),
        concurrency=closed or 0,
        classes=classes,
        pool=DECODE if case.received else "",
    )
    for request in seen:
        if table["emitted_tokens"][request]:
            since_fs = arrivals[request] * FS_PER_PS
            token_fs = case.received[request]
            assert token_fs is not None
            engine.expect(Move(request, case.replica + 1, since_fs, token_fs))
    engine.submit(seen)
    return log, table, engine


def rows_of(table: RequestTable) -> list[tuple[int | str, ...]]:
    names = ("arrival_ps", "first_scheduled_ps", "first_token_ps", "finish_ps", "input_tokens", "output_tokens")
    names += ("emitted_tokens", "preemptions", "replica")
    numbers = zip(*(table[name].tolist() for name in names), strict=True)
    return [(*row, STATUS_NAMES[status]) for row, status in zip(numbers, table["status"].tolist(), strict=True)]


def in_picoseconds(case: Case) -> None:
    """Let requests arrive at whole ones, as the request table has them."""
    for request in case.requests:
        if request.arrival_fs is not None:
            request.arrival_fs -= request.arrival_fs % FS_PER_PS


def assert_equal(case: Case) -> None:
    """The engine does with the case what the reference does."""
    in_picoseconds(case)
    compare(case, case.run(), *run_engine(case))


def compare(case: Case, expected: ReferenceResult, log: Recorder, table: RequestTable, engine: ReplicaEngine) -> None:
    """The engine's log, table and caches are those of the reference."""
    assert log.all_steps == [tuple(step[:7]) for step in expected.steps]
    # Where all wait for what tiers load, time passes, at whose end a step may not come to begin.
    loading = any(core.admission.loading for core in engine.cores)
    assert log.clock_fs <= engine.clock if loading else log.clock_fs == engine.clock
    if case.max_time_fs is None:  # everybody has left, and with them every block
        assert not len(engine.queue)
        for core in engine.cores:
            assert (state := core.kv.state()).items() >= {"_used_blocks": 0, "_reserved_blocks": 0, "held": []}.items()
            assert all(not holding for _, holding in state.get("prefix_holders", ()))
            assert not core.running
            assert not len(core.queue)
            assert not core.decoding.count
            assert not any(core.decoding.growth(step) for step in range(case.block_size))
    until = end_of(case)
    for ours, theirs in zip(rows_of(table), _rows(expected), strict=True):
        if theirs[0] * FS_PER_PS >= until and case.concurrency is None:
            continue  # an open loop's requests from after the stop never come into being
        assert _comparable(ours) == _comparable(theirs)
    if case.prefixes is not None:
        again = expected.queries_again, expected.hits_again
        first = expected.queries - again[0], expected.hits - again[1]
        figures = (*first, expected.evictions, expected.cached, *again)
        assert astuple(together(core.kv.prefix_figures() for core in engine.cores)) == figures
        if case.tiers:
            (core,) = engine.cores
            assert core.kv.tiers.waits_ps == [fs // FS_PER_PS for fs in expected.tier_waits_fs]
            carried = [_carried(tier, case.block_size) for tier in expected.tiers]
            assert [_kept(tier.whole) for tier in core.kv.tiers.all] == carried
    if case.swap is not None and case.max_time_fs is None:
        assert list(zip(table["swaps"].tolist(), table["swapped_blocks"].tolist(), strict=True)) == expected.swaps
        assert not engine.cores[0].kv.swap.held
    samples: Counter[int] = Counter()
    for gap, weight in expected.itl:
        samples[gap] += weight
    mine = Counter(log.other_gaps)
    for step in log.all_steps:
        if step[2]:
            mine[step[1]] += step[2]
    assert +mine == samples
    assert log.itl.count == sum(samples.values())
    assert LongestGaps.of_all([log.longest], len(table)).tolist() == expected.longest_gaps_fs[: len(table)]
    if samples:
        exact = sorted(samples.elements())
        middle = exact[max(0, -(-len(exact) // 2) - 1)]
        assert abs(log.itl.percentile_s(50) * FS_PER_S / middle - 1) < 2**-11


def _kept(tier: KvTier) -> tuple[object, ...]:
    return list(tier.blocks), *astuple(tier.figures), tier.free_fs


def _carried(tier: ReferenceTier, block_size: int) -> tuple[object, ...]:
    busy_fs = sum(end - begin for begin, end, _ in tier.sent)
    ends_fs = max((end for _, end, _ in tier.sent), default=0)
    found = (tier.found - tier.found_again) * block_size, tier.found_again * block_size
    return tier.kept, *found, tier.read, tier.written, tier.evicted, busy_fs, ends_fs


def _rows(result: ReferenceResult) -> list[tuple[int | str, ...]]:
    return [tuple(row) for row in result.requests]


def _comparable(row: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """A row without its replica, which one that was never scheduled does not have."""
    return row if row[9] == "finished" else (*row[:8], row[9])
