"""The aggregated engine against the naive one: the same steps and the same request times, to the bit."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings

from pimserve.cluster.scenario.document import load_scenario
from pimserve.cluster.scenario.prepared import prepare
from pimserve.device_models.plan import FS_PER_PS, FS_PER_S
from pimserve.loadgen.workload import generate
from pimserve.scheduler.config import SchedulerSpec
from pimserve.scheduler.costs import ReplicaCosts, replica_offset
from pimserve.scheduler.engine import Engine
from pimserve.scheduler.kv_cache import KvCache
from pimserve.scheduler.mixed_costs import make_costs
from pimserve.scheduler.requests import FOREVER, NEVER, STATUS_NAMES, RequestTable
from pimserve.scheduler.steplog import SpanColumns, StepLog, expand

from .reference_engine import ReferenceRequest, ReferenceResult
from .strategies import Case, cases, mixed_plans

Step = tuple[int, int, int, int, int, int, int]


class Recorder(StepLog):
    """A step log that keeps every step, and every gap of a resumed request."""

    def __init__(self, costs: ReplicaCosts) -> None:
        super().__init__(costs, (0, FOREVER), self._keep)
        self.all_steps: list[Step] = []
        self.resumed_gaps: list[int] = []

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
        self.resumed_gaps.append(gap_fs)
        super().resumed(gap_fs, at_fs)


def run_engine(case: Case) -> tuple[Recorder, RequestTable, Engine]:
    plan, pools = case.plan, case.pools()
    costs = make_costs(plan, pools, replica=case.replica, seed=case.seed, exact=case.routing.mode == "exact")
    costs.offset = case.offset
    chunked = case.max_num_batched_tokens is not None
    spec = SchedulerSpec.model_construct(  # without the check that the token budget holds every decode
        batching="chunked" if chunked else "stage",
        max_num_seqs=case.max_num_seqs,
        max_num_batched_tokens=case.max_num_batched_tokens if chunked else 1,
        block_size=case.block_size,
        kv_admission=case.kv_admission,
    )
    closed = case.concurrency
    until = FOREVER if case.max_time_fs is None else case.max_time_fs
    arrivals = [NEVER if r.arrival_fs is None else r.arrival_fs // FS_PER_PS for r in case.requests]
    table = RequestTable(
        np.array(arrivals, np.int64),
        np.array([r.input_tokens for r in case.requests], np.int64),
        np.array([r.output_tokens for r in case.requests], np.int64),
        case.max_model_len,
    )
    seen = [i for i, ps in enumerate(arrivals) if 0 <= ps * FS_PER_PS < until]
    engine = Engine(
        costs,
        spec,
        kv=KvCache(
            case.kv_capacity_blocks,
            case.block_size,
            case.kv_groups,
            case.max_num_batched_tokens,
            oracle=case.kv_admission == "oracle",
        ),
        table=table,
        log=(log := Recorder(costs)),
        closed=None if closed is None else range(len(arrivals)),
        concurrency=closed or 0,
    )
    engine.submit(seen)
    engine.advance(until)
    engine.settle()
    log.flush()
    if closed is None:
        table.reject_unseen()
    return log, table, engine


def rows_of(table: RequestTable) -> list[tuple[int | str, ...]]:
    names = ("arrival_ps", "first_scheduled_ps", "first_token_ps", "finish_ps", "input_tokens", "output_tokens")
    names += ("emitted_tokens", "preemptions", "replica")
    numbers = zip(*(table[name].tolist() for name in names), strict=True)
    return [(*row, STATUS_NAMES[status]) for row, status in zip(numbers, table["status"].tolist(), strict=True)]


@settings(max_examples=200)
@given(cases())
def test_same_steps_and_same_requests(case: Case) -> None:
    for request in case.requests:
        if request.arrival_fs is not None:
            request.arrival_fs -= request.arrival_fs % FS_PER_PS  # the request table holds picoseconds
    assert_equal(case)


@settings(max_examples=120)
@given(cases(mixed_plans()))
def test_same_with_experts_on_devices_of_their_own(case: Case) -> None:
    for request in case.requests:
        if request.arrival_fs is not None:
            request.arrival_fs -= request.arrival_fs % FS_PER_PS
    assert_equal(replace(case, routing=replace(case.routing, drift=None)))  # which the test above has


@pytest.mark.parametrize(
    "overrides",
    [
        ["cluster.experts=tp"],
        ["cluster.device.processor_selection=per_layer", "scheduler.batching=stage"],
        ["scheduler.memory_utilization=0.276", "scheduler.max_num_seqs=24"],  # KV for a few requests: preemptions
        ["routing={popularity: zipf, zipf_exponent: 0.8}", "cluster.nodes=2", "cluster.experts=tp"],
        ["routing.mode=exact", "workload.num_requests=12"],
        ["model=gpt-oss-120b", "cluster.device=h100", "cluster.tensor_parallel=2"],
        ["model=gpt-oss-120b", "cluster.device=h100", "cluster.devices_per_node=1", "scheduler.kv_blocks=700"],
        [
            "model=llama-3.1-8b",
            "cluster.device=a100",
            "cluster.devices_per_node=1",
            "scheduler.max_num_batched_tokens=300",
        ],
        ["cluster.placement={experts: {device: h100}, micro_batches: 3}", "workload.num_requests=30"],
        [
            "workload.num_requests=30",
            "cluster.placement={experts: {device: {preset: aimc-realistic, spread: experts}}}",
            "routing={popularity: zipf, zipf_exponent: 0.8}",
        ],
        [
            "model=gpt-oss-120b",
            "workload.num_requests=20",
            "cluster.device=h100",
            "cluster.tensor_parallel=1",
            "cluster.placement={experts: {device: duplex}, micro_batches: 2, lm_head: experts}",
        ],
    ],
)
@pytest.mark.parametrize("rate", [4, 40])
def test_same_on_devices_of_the_catalogue(overrides: list[str], rate: float) -> None:
    """Real plans and pools, spans of tens of steps that arrivals cut."""
    common = ["workload.num_requests=80", f"workload.arrival.rate_per_s={rate}"]
    scenario = load_scenario(None, [*common, *overrides])
    prepared = prepare(scenario)
    workload = generate(scenario.workload, 5)
    scheduler = scenario.scheduler
    (pool,) = prepared.pools
    blocks, groups = pool.kv_blocks(scheduler.block_size), pool.kv_groups
    longest = min(prepared.model.max_model_len_tokens, pool.request_tokens_in_blocks(scheduler))
    case = Case(
        plan=pool.plan,
        routing=prepared.routing,
        seed=5,
        replica=0,
        offset=replica_offset(5, 0),
        max_num_seqs=scheduler.max_num_seqs,
        max_num_batched_tokens=scheduler.max_num_batched_tokens if scheduler.batching == "chunked" else None,
        block_size=scheduler.block_size,
        kv_capacity_blocks=blocks,
        max_model_len=longest,
        kv_admission=scheduler.kv_admission,
        requests=[
            ReferenceRequest(int(at) * FS_PER_PS, int(tokens), int(emits))
            for at, tokens, emits in zip(
                workload.arrival_ps, workload.input_tokens, workload.output_tokens, strict=True
            )
        ],
        concurrency=None,
        max_time_fs=None,
        full_groups=groups.full,
        windowed_groups=groups.windowed,
        window_tokens=groups.window_tokens,
    )
    assert_equal(case)


def assert_equal(case: Case) -> None:
    expected = case.run()
    log, table, engine = run_engine(case)
    assert log.all_steps == [tuple(step[:7]) for step in expected.steps]
    assert log.clock_fs == engine.clock
    if case.max_time_fs is None:  # everybody has left, and with them every block
        assert engine.kv.state() == {"_used_blocks": 0, "_reserved_blocks": 0, "held": []}
        assert not engine.running
        assert not engine.decoding.count
        assert not any(engine.decoding.growth(step) for step in range(case.block_size))
    until = FOREVER if case.max_time_fs is None else case.max_time_fs
    for ours, theirs in zip(rows_of(table), _rows(expected), strict=True):
        if theirs[0] * FS_PER_PS >= until and case.concurrency is None:
            continue  # an open loop's requests from after the stop never come into being
        assert _comparable(ours) == _comparable(theirs)
    samples: Counter[int] = Counter()
    for gap, weight in expected.itl:
        samples[gap] += weight
    mine = Counter(log.resumed_gaps)
    for step in log.all_steps:
        if step[2]:
            mine[step[1]] += step[2]
    assert mine == samples
    assert log.itl.count == sum(samples.values())
    if samples:
        exact = sorted(samples.elements())
        middle = exact[max(0, -(-len(exact) // 2) - 1)]
        assert abs(log.itl.percentile_s(50) * FS_PER_S / middle - 1) < 2**-11


def _rows(result: ReferenceResult) -> list[tuple[int | str, ...]]:
    return [tuple(row) for row in result.requests]


def _comparable(row: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """A row without its replica, which one that was never scheduled does not have."""
    return row if row[9] == "finished" else (*row[:8], row[9])
