"""A replica that runs slower than its plan says: all of its times scaled, its energies as they are.

Every coefficient is rounded once, and outcomes of the experts one by one, so that engine, log and whoever else
evaluates a slowed plan have the same bits. Which unit runs which expert stays as it was decided at normal speed.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from pimserve.arrays import IntArray
from pimserve.device_models.experts import FEATURES
from pimserve.device_models.memo import Memo
from pimserve.device_models.pipeline import Load, PipelineTerm, Station
from pimserve.device_models.plan import CostPlan, DecodeAttentionTerm, Pieces
from pimserve.device_models.routing import ExpertPools

NORMAL = 1000  # thousandths of the normal times
_TIMES = sum(name.endswith("_fs") for name in FEATURES)  # they come first


def slow_fs(time_fs: int, thousandths: int) -> int:
    """A time, scaled."""
    return (time_fs * thousandths + NORMAL // 2) // NORMAL


def slow_plan(plan: CostPlan, thousandths: int) -> CostPlan:
    """The plan with all times, but for those of routed experts and in front of the scheduler, scaled."""

    def slow(time: int) -> int:
        return slow_fs(time, thousandths)

    def pieces(given: Pieces) -> Pieces:
        return tuple((slow(const), slow(slope)) for const, slope in given)

    def station(given: Station) -> Station:
        return replace(
            given,
            per_token=slow(given.per_token),
            per_output=slow(given.per_output),
            per_request=slow(given.per_request),
            per_context=tuple(map(slow, given.per_context)),
            visit=slow(given.visit),
            visit_per_context=slow(given.visit_per_context),
            rest=slow(given.rest) if given.rest >= 0 else given.rest,
            slack=slow(given.slack),
        )

    def load(given: Load) -> Load:
        return replace(
            given,
            per_token=slow(given.per_token),
            per_output=slow(given.per_output),
            per_request=slow(given.per_request),
            per_context=tuple(map(slow, given.per_context)),
        )

    def pipeline(given: PipelineTerm) -> PipelineTerm:
        return replace(
            given,
            chain=tuple((category, slow(time)) for category, time in given.chain),
            chain_per_context=tuple(map(slow, given.chain_per_context)),
            stations=tuple(map(station, given.stations)),
            per_prompt_token=slow(given.per_prompt_token),
            per_second_prompt_token=slow(given.per_second_prompt_token),
            loads=tuple(map(load, given.loads)),
            device_loads=tuple(map(load, given.device_loads)),
        )

    def decode(given: tuple[DecodeAttentionTerm, ...]) -> tuple[DecodeAttentionTerm, ...]:
        return tuple(replace(term, slope=slow(term.slope), per_request=slow(term.per_request)) for term in given)

    other = plan.other_decode
    return replace(
        plan,
        rows=tuple(
            replace(term, pieces=pieces(term.pieces), alternatives=tuple(map(pieces, term.alternatives)))
            for term in plan.rows
        ),
        decode=decode(plan.decode),
        other_decode=None if other is None else replace(other, terms=decode(other.terms)),
        prefill=tuple(
            replace(term, pieces=tuple((slow(a), slow(b), slow(c)) for a, b, c in term.pieces)) for term in plan.prefill
        ),
        pipeline=None if plan.pipeline is None else pipeline(plan.pipeline),
    )


class SlowPools(ExpertPools):
    """Outcomes of routed experts as `pools` has them, with their times scaled."""

    def __init__(self, pools: ExpertPools, thousandths: int) -> None:
        vars(self).update(vars(pools))  # outcomes are drawn once for all speeds
        self.prefixes_fs = Memo(self._prefix_fs)
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

    def scaled(self, features: IntArray) -> IntArray:
        """(..., features) of whole steps, at the speed of these pools."""
        # x * thousandths may exceed 64 bit, so whole and rest are scaled apart.
        whole, rest = np.divmod(features[..., :_TIMES], NORMAL)
        slow = whole * self.thousandths + (rest * self.thousandths + NORMAL // 2) // NORMAL
        return np.concatenate([slow, features[..., _TIMES:]], axis=-1)
