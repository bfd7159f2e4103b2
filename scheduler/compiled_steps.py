"""Steps of a plan with micro-batches by the compiled part of the package, where it is there: the same bits, sooner."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from pimserve.device_models import compiled
from pimserve.device_models.memo import Memo
from pimserve.device_models.operators import RowKind
from pimserve.device_models.plan import CostPlan, RowTerm
from pimserve.device_models.routing import FINE_TOKENS, OCTAVE_BITS, POOL_SIZE, ExpertPools
from pimserve.device_models.serial import SerialTiming
from pimserve.device_models.slowdown import NORMAL, SlowPools
from pimserve.device_models.step import row_counts
from pimserve.scheduler.plan_tables import PlanTables

_KINDS: list[RowKind] = list(row_counts(0, 0, 0, 0))
_MOST_PARTS = 16  # as in compiled/mixed.h


def mixed_steps(tables: PlanTables, pools: ExpertPools | None) -> compiled.MixedSteps | None:
    """None: there is no compiled part, or it does not know the plan's kind of timing, or its numbers."""
    plan, micro = tables.plan, tables.plan.micro_batches
    if not compiled.COMPILED or micro is None or micro.parts > _MOST_PARTS or pools is None:
        return None
    if not isinstance(timing := plan.timing, SerialTiming):
        return None
    try:
        return compiled.MixedSteps(
            rounds=tuple((visits, visit.layers, visit.calls == "moe_layers") for visit, visits in micro.rounds),
            closing_layers=micro.closing[0],
            layers=micro.counts[0],
            cuts=micro.cuts,
            data_parallel=plan.data_parallel,
            verify_tokens=plan.verify_tokens,
            ways=tuple(timing.ways),
            rows=tuple((_KINDS.index(rows), busiest, memo) for rows, busiest, memo in tables.rows.by_count),
            once=tuple((_KINDS.index(kind), True, memo) for kind, memo in _once(plan).items()),
            pools=pools.layer_tables,
            pool_size=POOL_SIZE,
            thousandths=pools.thousandths if isinstance(pools, SlowPools) else NORMAL,
            fine_tokens=FINE_TOKENS,
            octave_bits=OCTAVE_BITS,
        )
    except OverflowError:
        return None


def _once(plan: CostPlan) -> dict[RowKind, Memo[int, int]]:
    """Time, by count, of what runs once for all micro-batches."""
    terms: dict[RowKind, list[RowTerm]] = defaultdict(list)
    for term in plan.rows_once:
        terms[term.rows].append(term)
    return {kind: _times(of) for kind, of in terms.items()}


def _times(terms: Sequence[RowTerm]) -> Memo[int, int]:
    return Memo(lambda count: sum([term.time_fs(count) for term in terms]))
