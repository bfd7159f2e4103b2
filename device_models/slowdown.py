"""A replica that runs slower than its plan says: all of its times scaled, its energies as they are.

Every coefficient is rounded once, and outcomes of the experts one by one, so that engine, log and whoever else
evaluates a slowed plan have the same bits. Which unit runs which expert stays as it was decided at normal speed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from pimserve.arrays import IntArray
from pimserve.device_models.memo import Memo
from pimserve.device_models.operators import Runs
from pimserve.device_models.pipeline import Load, PipelineTerm, Station
from pimserve.device_models.plan import CostPlan, DecodeAttentionTerm, Pieces, RowTerm
from pimserve.device_models.routing import TABLES_KEPT, ExpertPools

NORMAL = 1000  # thousandths of the normal times


def slow_fs(time_fs: int, thousandths: int) -> int:
    """A time, scaled."""
    return (time_fs * thousandths + NORMAL // 2) // NORMAL


def slow_plan(plan: CostPlan, thousandths: int) -> CostPlan:
    """The plan with all times, but for those of routed experts and in front of the scheduler, scaled.

    With micro-batches, times of one repeat are, so that all have the same.
    """
    return with_times(plan, lambda time, repeats: repeats * slow_fs(time // repeats, thousandths))


def in_repeats(plan: CostPlan) -> CostPlan:
    """A plan with micro-batches whose times are whole femtoseconds for each repeat: of a layer, for instance."""
    return with_times(plan, lambda time, repeats: repeats * ((time + repeats // 2) // repeats))


def with_times(plan: CostPlan, of: Callable[[int, int], int]) -> CostPlan:
    """The plan with other times; `of` is given each, and how often it is repeated in a pass (1 without micro-batches).

    Times of routed experts and in front of the scheduler stay.
    """
    repeats: Callable[[Runs], int] = (lambda _: 1) if plan.micro_batches is None else plan.micro_batches.repeats
    layers = repeats("layers")

    def time(given: int) -> int:
        return of(given, layers)

    def pieces(given: Pieces, times: int) -> Pieces:
        return tuple((of(const, times), of(slope, times)) for const, slope in given)

    def row(given: RowTerm) -> RowTerm:
        times = repeats(given.runs)
        alternatives = tuple(pieces(each, times) for each in given.alternatives)
        return replace(given, pieces=pieces(given.pieces, times), alternatives=alternatives)

    def decode(given: tuple[DecodeAttentionTerm, ...]) -> tuple[DecodeAttentionTerm, ...]:
        return tuple(replace(term, slope=time(term.slope), per_request=time(term.per_request)) for term in given)

    other = plan.other_decode
    return replace(
        plan,
        rows=tuple(map(row, plan.rows)),
        decode=decode(plan.decode),
        other_decode=None if other is None else replace(other, terms=decode(other.terms)),
        prefill=tuple(
            replace(term, pieces=tuple((time(a), time(b), time(c)) for a, b, c in term.pieces)) for term in plan.prefill
        ),
        pipeline=None if plan.pipeline is None else _pipeline(plan.pipeline, time),
    )


def _pipeline(plan: PipelineTerm, time: Callable[[int], int]) -> PipelineTerm:
    def station(given: Station) -> Station:
        return replace(
            given,
            per_token=time(given.per_token),
            per_output=time(given.per_output),
            per_request=time(given.per_request),
            per_context=tuple(map(time, given.per_context)),
            visit=time(given.visit),
            visit_per_context=time(given.visit_per_context),
            rest=time(given.rest) if given.rest >= 0 else given.rest,
            slack=time(given.slack),
        )

    def load(given: Load) -> Load:
        return replace(
            given,
            per_token=time(given.per_token),
            per_output=time(given.per_output),
            per_request=time(given.per_request),
            per_context=tuple(map(time, given.per_context)),
        )

    return replace(
        plan,
        chain=tuple((category, time(given)) for category, given in plan.chain),
        chain_per_context=tuple(map(time, plan.chain_per_context)),
        stations=tuple(map(station, plan.stations)),
        per_prompt_token=time(plan.per_prompt_token),
        per_second_prompt_token=time(plan.per_second_prompt_token),
        loads=tuple(map(load, plan.loads)),
        device_loads=tuple(map(load, plan.device_loads)),
    )


class SlowPools(ExpertPools):
    """Outcomes of routed experts as `pools` has them, with their times scaled."""

    def __init__(self, pools: ExpertPools, thousandths: int) -> None:
        vars(self).update(vars(pools))  # outcomes are drawn once for all speeds
        self.prefixes_fs = Memo(self._prefix_fs)
        self.layers_fs = Memo(self._layers_at, TABLES_KEPT)
        self.thousandths = thousandths
        self._normal = pools

    def at(self, fs: int) -> ExpertPools:
        """The outcomes of steps that begin at that time, at the same speed."""
        normal = self._normal.at(fs)
        return self if normal is self._normal else SlowPools(normal, self.thousandths)

    def features(self, tokens: IntArray, index: IntArray) -> IntArray:
        """(n, features): outcomes `index` (n,) for token counts `tokens` (n,)."""
        return self.scaled(super().features(tokens, index))

    def time_fs(self, tokens: int, index: int) -> int:
        """Time of outcome `index` for `tokens` tokens."""
        return slow_fs(super().time_fs(tokens, index), self.thousandths)

    def times_fs(self, tokens: int) -> list[int]:
        """Times of all outcomes for `tokens` tokens."""
        return [slow_fs(time, self.thousandths) for time in super().times_fs(tokens)]

    def layers_of(self, tokens: IntArray, index: IntArray) -> IntArray:
        """(layers, n): time of each layer in outcomes `index` (n,) for token counts `tokens` (n,)."""
        return self._slow(super().layers_of(tokens, index))

    def layer_times_fs(self, tokens: int, index: int) -> list[int]:
        """Time of each layer in outcome `index` for `tokens` tokens."""
        return [slow_fs(time, self.thousandths) for time in super().layer_times_fs(tokens, index)]

    def scaled(self, features: IntArray) -> IntArray:
        """(..., features) of whole steps, at the speed of these pools."""
        slow, times = features.copy(), [name.endswith("_fs") for name in self.term.features]
        slow[..., times] = self._slow(features[..., times])
        return slow

    def _slow(self, times: IntArray) -> IntArray:
        # x * thousandths may exceed 64 bit, so whole and rest are scaled apart.
        whole, rest = np.divmod(times, NORMAL)
        return np.asarray(whole * self.thousandths + (rest * self.thousandths + NORMAL // 2) // NORMAL)
