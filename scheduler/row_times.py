"""Times of row terms of micro-batches, remembered by what they count, as numbers come again, but seldom together."""

from __future__ import annotations

from operator import add

from pimserve.device_models.evaluate import counts_of
from pimserve.device_models.memo import Memo
from pimserve.device_models.micro_batches import MicroBatches
from pimserve.device_models.operators import RowKind, Runs, Stage
from pimserve.device_models.plan import CostPlan
from pimserve.device_models.step import StepShape, row_counts


class RowTimes:
    """Of a plan with micro-batches."""

    def __init__(self, plan: CostPlan, micro: MicroBatches) -> None:
        self._plan = plan
        self._alike = plan.data_parallel == plan.verify_tokens == 1  # what all have, and one token of each request
        kinds = dict.fromkeys((term.rows, _of_busiest(plan, term.stage)) for term in plan.rows_of_parts)
        self.by_count = [(rows, busiest, _memo(plan, micro, rows, busiest)) for rows, busiest in kinds]
        self._none = micro.rows({("attention", "layers"): 0})

    def of(self, part: StepShape[int]) -> list[int]:
        """Of a micro-batch, as `MicroBatches.part` takes them."""
        if self._alike:
            counts = row_counts(part.decodes + part.prefill_tokens, part.outputs, part.decodes, part.chunks)
            times = [memo[counts[rows]] for rows, _, memo in self.by_count]
        else:
            each = counts_of(self._plan, part)
            times = [memo[each[busiest][rows]] for rows, busiest, memo in self.by_count]
        found, *others = times or [self._none]
        for time in others:
            found = list(map(add, found, time))
        return found


def _of_busiest(plan: CostPlan, stage: Stage) -> bool:
    """Whether it counts rows of the busiest of the data-parallel groups; a single one has all."""
    return stage == "attention" and plan.data_parallel > 1


def _memo(plan: CostPlan, micro: MicroBatches, rows: RowKind, busiest: bool) -> Memo[int, list[int]]:
    """Of all terms that count such rows."""
    terms = [t for t in plan.rows_of_parts if (t.rows, _of_busiest(plan, t.stage)) == (rows, busiest)]

    def times(count: int) -> list[int]:
        by_stage: dict[tuple[Stage, Runs], int] = {}
        for term in terms:
            key = term.stage, term.runs
            by_stage[key] = by_stage.get(key, 0) + term.time_fs(count)
        return micro.rows(by_stage)

    return Memo(times)
