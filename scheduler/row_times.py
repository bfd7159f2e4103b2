"""Times of row terms of micro-batches, remembered by what they count, as numbers come again, but seldom together."""

from __future__ import annotations

from pimserve.device_models.evaluate import counts_of
from pimserve.device_models.memo import Memo
from pimserve.device_models.micro_batches import MicroBatches
from pimserve.device_models.operators import RowKind
from pimserve.device_models.plan import CostPlan
from pimserve.device_models.step import StepShape


class RowTimes:
    """Of a plan with micro-batches."""

    def __init__(self, plan: CostPlan, micro: MicroBatches) -> None:
        self._plan = plan
        kinds = dict.fromkeys((term.rows, term.stage == "attention") for term in plan.rows_of_parts)
        self._by_count = [(rows, here, _memo(plan, micro, rows, here)) for rows, here in kinds]
        self._none = micro.rows({("attention", "layers"): 0})

    def of(self, part: StepShape[int]) -> list[int]:
        """Of a micro-batch, as `MicroBatches.part` takes them."""
        every, busiest = counts_of(self._plan, part)
        times = [memo[(busiest if here else every)[rows]] for rows, here, memo in self._by_count]
        return [sum(time) for time in zip(self._none, *times, strict=True)]


def _memo(plan: CostPlan, micro: MicroBatches, rows: RowKind, here: bool) -> Memo[int, list[int]]:
    """Of all terms that count such rows, on attention's devices (`here`) or beyond them."""
    terms = [term for term in plan.rows_of_parts if (term.rows, term.stage == "attention") == (rows, here)]

    def times(count: int) -> list[int]:
        of_terms = [micro.rows({(term.stage, term.runs): term.time_fs(count)}) for term in terms]
        return [sum(time) for time in zip(*of_terms, strict=True)]

    return Memo(times)
