"""Micro-batches by the compiled part of the package against those of Python, on small numbers that hide nothing."""

from itertools import accumulate
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pimserve.device_models import compiled
from pimserve.device_models.evaluate import counts_of
from pimserve.device_models.memo import Memo
from pimserve.device_models.micro_batches import MicroBatches, Visit
from pimserve.device_models.plan import CostPlan, RowTerm
from pimserve.device_models.round_trips import schedule_fs
from pimserve.device_models.routing import FINE_TOKENS, OCTAVE_BITS, POOL_SIZE, ExpertPools
from pimserve.device_models.serial import SerialTiming, WayCosts
from pimserve.device_models.slowdown import slow_fs
from pimserve.device_models.step import StepShape, row_counts
from tests.examples import examples

pytestmark = pytest.mark.skipif(not compiled.COMPILED, reason="what is in C was not built, or is of other sources")

KINDS = list(row_counts(0, 0, 0, 0))
PRIMES = [7, 11, 13, 17, 19, 23, 29, 31, 37]


class Both:
    """A plan of `dense` visits, then `moe`, then closing layers, in C and in Python.

    Row terms and outcomes take times that follow no rule, and nothing where they count nothing.
    """

    def __init__(self, draw: st.DrawFn) -> None:
        numbers = st.integers(1, 4)
        others = draw(st.dictionaries(st.integers(2, 12), numbers, max_size=3))
        self.cuts = ((1, draw(numbers)), *sorted(others.items()))
        self.groups, self.verify = draw(st.integers(1, 3)), draw(st.sampled_from([1, 3]))
        moe, dense, closing = draw(st.integers(1, 3)), draw(st.integers(0, 2)), draw(st.integers(0, 2))
        visits = (*[Visit(1, 1, 0, "dense_layers")] * dense, *[Visit(1, 0, 1, "moe_layers")] * moe)
        layers = moe + dense + closing
        self.micro = MicroBatches(self.cuts, (layers, dense, moe), visits, (closing, 0))
        slope, per_request = draw(st.integers(0, 9)), draw(st.integers(0, 9))
        ways = [WayCosts(slope, ((draw(st.integers(0, 3)), 9),), per_request, draw(st.booleans()))]
        self.timing = SerialTiming(self.groups, ways, ())
        shared = RowTerm("shared", "fc", "xpu", "all_tokens", ((0, 0),))
        self.plan = CostPlan(self.groups, self.groups, ("xpu",), (shared,), (), (), None, verify_tokens=self.verify)
        self.most_fs = draw(st.sampled_from([5, 97, 1009]))
        n = 4 * len(self.micro.rounds) + 1
        self.rows = {
            (kind, busiest): self._row(k + 5 * busiest, n)
            for k, kind in enumerate(KINDS)
            for busiest in (False, True)
            if draw(st.booleans())
        }
        self.once = {kind: Memo(lambda count, k=k: count * PRIMES[k]) for k, kind in enumerate(KINDS)}
        self.slower = draw(st.sampled_from([1000, 1701]))
        self.pools = Memo(lambda tokens: self._pool(tokens, moe))

    def _row(self, k: int, n: int) -> Memo[int, list[int]]:
        return Memo(lambda count: [count * PRIMES[(k + i) % 9] * (i + 3) % self.most_fs for i in range(n)])

    def _pool(self, tokens: int, layers: int) -> Any:
        outcomes = np.arange(POOL_SIZE)[:, None] * 31 + np.arange(layers) * 17 + tokens * 13
        return outcomes % self.most_fs * bool(tokens)

    def compiled(self) -> compiled.MixedSteps:
        """In C."""
        return compiled.MixedSteps(
            rounds=tuple((visits, visit.layers, visit.calls == "moe_layers") for visit, visits in self.micro.rounds),
            closing_layers=self.micro.closing[0],
            layers=self.micro.counts[0],
            cuts=self.cuts,
            data_parallel=self.groups,
            verify_tokens=self.verify,
            ways=tuple(self.timing.ways),
            rows=tuple((KINDS.index(kind), busiest, memo) for (kind, busiest), memo in self.rows.items()),
            once=tuple((KINDS.index(kind), True, memo) for kind, memo in self.once.items()),
            pools=self.pools,
            pool_size=POOL_SIZE,
            thousandths=self.slower,
            fine_tokens=FINE_TOKENS,
            octave_bits=OCTAVE_BITS,
        )

    def once_fs(self, shape: StepShape[int]) -> int:
        """In Python, before micro-batches begin."""
        counts = counts_of(self.plan, shape)[1]
        return sum(memo[counts[kind]] for kind, memo in self.once.items())

    def rest_fs(self, shape: StepShape[int], outcome: int) -> int:
        """In Python, the micro-batches of the step of which the first one takes that outcome."""
        parts = []
        for place, part in enumerate(self.micro.split(shape, self.groups, self.verify)):
            if not part.tokens:
                continue
            every, of_busiest = counts_of(self.plan, part)
            times = [memo[(of_busiest if busiest else every)[kind]] for (kind, busiest), memo in self.rows.items()]
            rows = [sum(of) for of in zip([0] * (4 * len(self.micro.rounds) + 1), *times, strict=True)]
            tables = SimpleNamespace(_layer_lists=Memo(lambda tokens: self.pools[tokens].tolist()))
            tokens = self.plan.tokens_of(part)
            routed = ExpertPools.layer_times_fs(tables, tokens, (outcome + place) % POOL_SIZE)  # type: ignore[arg-type]
            layer_fs = self.timing.layers_fs(part) // self.micro.counts[0]
            parts.append(self.micro.part(rows, layer_fs, [slow_fs(time, self.slower) for time in routed]))
        return schedule_fs(parts)

    def shape(self, decodes: int, context: int, chunks: list[tuple[int, int]], outputs: int) -> StepShape[int]:
        """Of a step, with chunks of so many tokens that attention takes so long for."""
        busiest, anchor, prefill_fs = self.verify * -(-decodes // self.groups), 0, 0
        if chunks:
            times = [time for _, time in chunks]
            busiest, anchor, prefill_fs = self.timing.prefill(decodes, chunks, times, self.verify)
        counts = decodes, context, len(chunks), outputs
        prefill = sum(tokens for tokens, _ in chunks)
        return StepShape(1, *counts[:2], prefill, *counts[2:], busiest, anchor, prefill_fs, 0, 0, *counts)


BOTH = st.composite(Both)()
CHUNKS = st.lists(st.tuples(st.integers(1, 3) | st.integers(1, 200), st.integers(0, 300)), min_size=1, max_size=5)


@pytest.mark.medium
@examples(1500)
@given(BOTH, st.integers(0, 14), st.integers(0, 300), CHUNKS, st.integers(0, 5), st.integers(-300, 300))
def test_steps_with_prompts(
    both: Both, decodes: int, context: int, chunks: list[tuple[int, int]], completed: int, outcome: int
) -> None:
    outputs = decodes + min(completed, len(chunks))
    shape = both.shape(decodes, context * min(decodes, 1), chunks, outputs)
    assert both.compiled().step_fs(tuple(shape), outcome) == both.once_fs(shape) + both.rest_fs(shape, outcome)


@pytest.mark.medium
@examples(800)
@given(BOTH, st.integers(1, 40), st.integers(0, 900), st.integers(1, 12), st.integers(-300, 300))
def test_steps_that_decode(both: Both, decodes: int, context: int, most: int, outcome: int) -> None:
    ends = both.compiled().ends_fs(decodes, context, outcome, most, 5)
    steps = most
    for size, of_size in both.micro.sizes(decodes, context, both.verify):
        steps = both.timing.decode_span(size, of_size, steps)[2]
    each = [
        both.rest_fs(both.shape(decodes, context + k * decodes, [], decodes), outcome + k * both.micro.parts)
        for k in range(steps)
    ]
    assert ends == list(accumulate(5 + time for time in each))
