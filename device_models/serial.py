"""Steps on devices that run one operator after the other, on whole batches.

Decode attention runs in one of the plan's ways, beside prefill attention or after it: in that with which the step ends
soonest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from pimserve.device_models.pipeline import Load
from pimserve.device_models.plan import LINK, ChunkShape, CostPlan, DecodeWay
from pimserve.device_models.step import N, OperatorTime, StepCosts, StepShape, greater, least, over_span


class _Way(NamedTuple):
    """Coefficients of decode attention in one way; `windowed`: (slope, window tokens)."""

    slope: int
    windowed: tuple[tuple[int, int], ...]
    per_request: int
    beside_prefill: bool


class SerialTiming:
    """Times of steps whose operators run one after the other."""

    links = (LINK,)
    device_loads: tuple[Load, ...] = ()

    def __init__(self, plan: CostPlan) -> None:
        self.data_parallel = plan.data_parallel
        self.loads = tuple(Load(term.unit, 0, 0, 0, (), (1, 1)) for term in plan.prefill[:1])
        self._ways = [_coefficients(way) for way in plan.decode_ways]
        self._others = self._ways[1:]

    def prefill(self, decodes: int, chunks: Sequence[ChunkShape], attention_fs: Sequence[int]) -> tuple[int, int, int]:
        """(tokens, 0, prefill attention fs) of the busiest data-parallel group, each the most that any group has.

        Decoding requests are spread evenly; a prompt is computed inside one group: the longest first, each by the group
        with the fewest tokens so far.
        """
        share = -(-decodes // self.data_parallel)
        if len(chunks) == 1:
            return share + chunks[0][0], 0, attention_fs[0]
        if self.data_parallel == 1:
            return share + sum([chunk[0] for chunk in chunks]), 0, sum(attention_fs)
        loads = [[0, 0] for _ in range(self.data_parallel)]
        for chunk, time in sorted(zip(chunks, attention_fs, strict=True), reverse=True):
            load = min(loads)
            load[0] += chunk[0]
            load[1] += time
        return share + max(load[0] for load in loads), 0, max(load[1] for load in loads)

    def row_tokens(self, tokens: N, busiest: N) -> N:
        """The tokens that row terms count."""
        return busiest

    def ways_fs(self, requests: N, context: N, prefill_fs: N) -> list[N]:
        """Time of attention in each way of decode attention, which `requests` with `context` tokens in all need."""
        share = -(-requests // self.data_parallel)
        times = []
        for slope, windowed, per_request, beside_prefill in self._ways:
            time = slope * context + per_request * share
            for window_slope, window in windowed:
                time = time + window_slope * least([context, window * requests])
            times.append(greater(time, prefill_fs) if beside_prefill else time + prefill_fs)
        return times

    def layers_fs(self, requests: N, context: N, outputs: N, queued: N, anchor: N, prefill_fs: N) -> N:
        """Time of single steps beyond row terms and routed experts: attention's, in the fastest way."""
        times = self.ways_fs(requests, context, prefill_fs)
        return times[0] if len(times) == 1 else least(times)

    def taken(self, requests: N, context: N, prefill_fs: N) -> list[N]:
        """By way of decode attention, 1 where it is taken and 0 elsewhere: the first of the fastest."""
        times = self.ways_fs(requests, context, prefill_fs)
        fastest = least(times)
        left = 1 + 0 * fastest
        taken = []
        for time in times:
            taken.append(left * (time == fastest))
            left = left - taken[-1]
        return taken

    def decode_span(self, requests: int, context: int, steps: int) -> tuple[int, int, int]:
        """(time of the first step, what each further one takes more, steps for which that holds, at most `steps`)."""
        first, growth, steps = self._span(self._ways[0], requests, context, steps)
        for way in self._others:
            other, other_growth, steps = self._span(way, requests, context, steps)
            lead = other - first
            lost = growth - other_growth  # of it, in each step
            if lead >= 0:
                steps = steps if lost <= 0 else min(steps, lead // lost + 1)
            else:
                first, growth = other, other_growth
                steps = steps if lost >= 0 else min(steps, (-lead - 1) // -lost + 1)
        return first, growth, steps

    def _span(self, way: _Way, requests: int, context: int, steps: int) -> tuple[int, int, int]:
        """The same in one way."""
        slope, windowed, per_request, _ = way
        first = per_request * -(-requests // self.data_parallel)
        for window_slope, window in windowed:
            limit = window * requests
            if context >= limit:
                first += window_slope * limit
            else:
                slope += window_slope
                steps = min(steps, (limit - context) // requests + 1)
        return first + slope * context, slope * requests, steps

    def costs(self, shape: StepShape[N]) -> StepCosts[N]:
        """What steps take beyond row terms and routed experts.

        Side by side, decode attention counts for what it outlasts prefill attention.
        """
        first, last = (
            least(self.ways_fs(shape.decodes, context, shape.prefill_fs))
            for context in (shape.context, shape.last_context)
        )
        decode_fs = over_span(shape.steps, first, last) - shape.prefill_fs
        return StepCosts(
            [
                OperatorTime("attention, prefill", "attention_prefill", shape.prefill_fs),
                OperatorTime("attention, decode", "attention_decode", decode_fs),
            ]
        )


def _coefficients(way: DecodeWay) -> _Way:
    return _Way(
        sum(term.slope for term in way.terms if term.window_tokens is None),
        tuple((term.slope, term.window_tokens) for term in way.terms if term.window_tokens is not None),
        sum(term.per_request for term in way.terms),
        way.beside_prefill,
    )
