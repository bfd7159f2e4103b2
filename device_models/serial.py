"""Steps on devices that run one operator after the other, on whole batches.

Decode attention runs in one of the plan's ways, beside prefill attention or after it: in that with which the step ends
soonest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from pimserve.device_models.pipeline import Load
from pimserve.device_models.step import (
    LINK,
    N,
    OperatorTime,
    StepCosts,
    StepShape,
    StepTuple,
    greater,
    least,
    over_span,
)


class WayCosts(NamedTuple):
    """Coefficients of decode attention in one way, as in `DecodeAttentionTerm`; `windowed`: (slope, window tokens)."""

    slope: int
    windowed: tuple[tuple[int, int], ...]
    per_request: int
    beside_prefill: bool


class SerialTiming:
    """Times of steps whose operators run one after the other.

    Args:
        data_parallel: groups in which requests are.
        ways: to run decode attention, of which each step takes the fastest.
        prefill_units: that run prefill attention.
    """

    links = (LINK,)
    device_loads: tuple[Load, ...] = ()
    rows_of_busiest = True

    def __init__(self, data_parallel: int, ways: Sequence[WayCosts], prefill_units: Sequence[str]) -> None:
        self.data_parallel = data_parallel
        self.loads = tuple(Load(unit, 0, 0, 0, (), (1, 1)) for unit in prefill_units)
        self.ways = ways

    def prefill(
        self, decodes: int, chunks: Sequence[tuple[int, int]], attention_fs: Sequence[int], verify_tokens: int = 1
    ) -> tuple[int, int, int]:
        """(tokens, 0, prefill attention fs) of the busiest data-parallel group, each the most that any group has.

        Decoding requests are spread evenly, each with all of its tokens; a prompt is computed inside one group: the
        longest first, each by the group with the fewest tokens so far.
        """
        share = verify_tokens * -(-decodes // self.data_parallel)
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

    def ways_fs(self, shape: StepTuple[N]) -> list[N]:
        """Time of attention in each way of decode attention."""
        _, _, _, _, _, _, _, _, prefill_fs, _, _, requests, context, _, _ = shape
        share = -(-requests // self.data_parallel)
        times = []
        for slope, windowed, per_request, beside_prefill in self.ways:
            time = slope * context + per_request * share
            for window_slope, window in windowed:
                time = time + window_slope * least([context, window * requests])
            times.append(greater(time, prefill_fs) if beside_prefill else time + prefill_fs)
        return times

    def layers_fs(self, shape: StepTuple[N]) -> N:
        """Time of the first steps beyond row terms and routed experts: attention's, in the fastest way."""
        times = self.ways_fs(shape)
        return times[0] if len(times) == 1 else least(times)

    def taken(self, shape: StepTuple[N]) -> list[N]:
        """By way of decode attention, 1 where it is taken and 0 elsewhere: the first of the fastest."""
        times = self.ways_fs(shape)
        fastest = least(times)
        left = 1 + 0 * fastest
        taken = []
        for time in times:
            taken.append(left * (time == fastest))
            left = left - taken[-1]
        return taken

    def decode_span(self, requests: int, context: int, steps: int) -> tuple[int, int, int]:
        """(time of the first step, what each further one takes more, steps for which that holds, at most `steps`)."""
        first, growth, steps = self._span(self.ways[0], requests, context, steps)
        for way in self.ways[1:]:
            other, other_growth, steps = self._span(way, requests, context, steps)
            lead = other - first
            lost = growth - other_growth  # of it, in each step
            if lead >= 0:
                steps = steps if lost <= 0 else min(steps, lead // lost + 1)
            else:
                first, growth = other, other_growth
                steps = steps if lost >= 0 else min(steps, (-lead - 1) // -lost + 1)
        return first, growth, steps

    def _span(self, way: WayCosts, requests: int, context: int, steps: int) -> tuple[int, int, int]:
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
        decode_fs = over_span(shape.steps, self.layers_fs(shape), self.layers_fs(shape.last)) - shape.prefill_fs
        return StepCosts(
            [
                OperatorTime("attention, prefill", "attention_prefill", shape.prefill_fs),
                OperatorTime("attention, decode", "attention_decode", decode_fs),
            ]
        )
