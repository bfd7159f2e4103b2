"""The ledger in closed form against the step log, which looks at every step; and each device's share of it."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pimserve.cluster.distributed.devices.audit import Audit, durations
from pimserve.cluster.distributed.devices.flows import share
from pimserve.device_models.plan import FS_PER_PS
from pimserve.errors import InputError
from pimserve.scheduler.costs import ReplicaCosts
from pimserve.scheduler.ledger import PooledSpans, ReplicaLedger, TimesDifferError, mixed_features
from pimserve.scheduler.steplog import SpanColumns, StepLog
from tests.cluster.distributed.devices.served import SCENARIOS, run
from tests.examples import examples
from tests.scheduler.test_laws import Run, runs


def columns(block: np.ndarray) -> SpanColumns:
    return SpanColumns(*np.ascontiguousarray(block.T))


def experts_of(costs: ReplicaCosts, block: np.ndarray, first: np.ndarray) -> np.ndarray | None:
    """What routed experts took in spans, from the pools, or as they are drawn."""
    rows = columns(block)
    tokens = rows.decodes + rows.prefill_tokens
    if costs.plan.experts is None:
        return None
    if costs.plan.micro_batches is not None:
        return mixed_features(costs, rows, first)
    if costs.exact:
        return costs.experts_features(rows.shape, first)
    spans = PooledSpans(costs)
    return spans.features(tokens, spans.outcomes(first), rows.steps)


def costs_of(log: StepLog, block: np.ndarray) -> ReplicaCosts:
    """What a block costs: the popularities of experts may have drifted from one to the next."""
    return log.costs.at(int(block[0, 0]) * FS_PER_PS)


def totals(log_or_ledger: Any) -> tuple[Any, ...]:
    return (
        log_or_ledger.steps,
        log_or_ledger.busy_fs,
        log_or_ledger.unit_fs,
        log_or_ledger.category_fs,
        log_or_ledger.energy_pj,
    )


@examples(60)
@given(runs(), st.integers(1, 7))
def test_the_ledger_adds_up_to_the_step_log_however_spans_come(case: Run, at_once: int) -> None:
    for log, blocks in zip(case.served.logs, case.blocks, strict=True):
        ledger = ReplicaLedger(log.costs)
        step = tokens = 0
        for block in blocks:
            first = step + np.cumsum(block[:, 2]) - block[:, 2]
            ledger.use(costs := costs_of(log, block))
            for at in range(0, len(block), at_once):
                some = slice(at, at + at_once)
                ledger.take(columns(block[some]), first[some], experts_of(costs, block[some], first[some]))
            step += int(block[:, 2].sum())
            rows = columns(block)
            tokens += int((rows.steps * (rows.decodes + rows.prefill_tokens)).sum())
        assert totals(ledger) == totals(log)
        assert (ledger.outputs, ledger.tokens) == (log.tokens, tokens)
        assert ledger.peak_kv_blocks == log.peak_blocks
        again = ReplicaLedger(log.costs)
        again.restore(ledger.state())
        assert totals(again) == totals(ledger)


@examples(40)
@given(runs(), st.randoms(use_true_random=False))
def test_spans_evaluated_one_by_one_in_any_order_have_their_times(case: Run, random: Any) -> None:
    for log, blocks in zip(case.served.logs, case.blocks, strict=True):
        step = 0
        for block in blocks:
            first = step + np.cumsum(block[:, 2]) - block[:, 2]
            step += int(block[:, 2].sum())
            some = random.sample(range(len(block)), random.randint(0, len(block)))
            rows = columns(block[some].reshape(-1, block.shape[1]))
            assert durations(costs_of(log, block), rows, first[some]).tolist() == rows.duration_fs.tolist()


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_femtosecond_too_much_is_found_in_any_span(name: str) -> None:
    served = run(name)
    replica, block, first = served.blocks[0]
    costs = costs_of(served.logs[replica], block)
    for at in (0, len(block) // 2, len(block) - 1):
        near = slice(max(0, at - 9), at + 10)
        wrong, steps = block[near].copy(), first[near]
        wrong[steps == first[at], SpanColumns._fields.index("duration_fs")] += 1
        with pytest.raises(TimesDifferError, match=rf"steps? {first[at]}\b") as error:
            ReplicaLedger(costs).take(columns(wrong), steps, experts_of(costs, wrong, steps))
        assert error.value.first_step == first[at]
        with pytest.raises(TimesDifferError, match=rf"steps? {first[at]}\b"):
            Audit(costs, 0, [0], 1.0).check(columns(wrong), steps)


def test_the_audit_samples_its_share_whatever_block_a_span_comes_in() -> None:
    served = run("tp")
    replica, block, first = served.blocks[0]
    costs = served.logs[replica].costs
    looked = {}
    for share_ in (0.0, 1 / 4, 1.0):
        whole, pieces = Audit(costs, 7, [0], share_), Audit(costs, 7, [0], share_)
        whole.check(columns(block), first)
        for at in range(len(block)):
            pieces.check(columns(block[at : at + 1]), first[at : at + 1])
        assert whole.rows == pieces.rows
        looked[share_] = whole.rows
    assert looked[0.0] == 0
    assert 0.1 < looked[1 / 4] / len(block) < 0.4
    assert looked[1.0] == len(block)
    devices = [Audit(costs, 7, [device], 1 / 4)._sampled(first).tolist() for device in range(4)]
    assert len({tuple(rows) for rows in devices}) == 4
    assert Audit(costs, 7, [0, 1], 1 / 4)._sampled(first).tolist() == sorted({*devices[0], *devices[1]})


@pytest.mark.parametrize("share_", [-0.1, 1.1, float("nan")])
def test_shares_of_the_audit(share_: float) -> None:
    with pytest.raises(InputError, match="audit_share: must be from 0 to 1"):
        Audit(run("tp").logs[0].costs, 0, [0], share_)


@given(st.integers(0, 10**30), st.integers(1, 300))
def test_shares_add_up_and_differ_by_one_at_most(total: int, parts: int) -> None:
    found = [share(total, part, parts) for part in range(parts)]
    assert sum(found) == total
    assert max(found) - min(found) <= 1
