"""Costs of a replica whose experts are on devices of their own, and whose steps go round in micro-batches.

Micro-batch p of m of step k takes outcome (offset + k m + p) mod POOL_SIZE of the experts' pool for its token count:
with one micro-batch, the outcomes of any other replica.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from math import gcd
from typing import Any

import numpy as np

from pimserve.arrays import IntArray
from pimserve.device_models.evaluate import DecodeSpan, Span, once_fs, parts_of, stage_times, step_of
from pimserve.device_models.experts import FEATURES, LINK_FS, MIXED_FEATURES, STATION_FS
from pimserve.device_models.memo import Memo
from pimserve.device_models.micro_batches import MicroBatches
from pimserve.device_models.mixed_plan import plan_at
from pimserve.device_models.plan import ChunkShape, CostPlan
from pimserve.device_models.round_trips import PartTimes, lack_fs, schedule_fs, slack_fs
from pimserve.device_models.routing import POOL_SIZE, ExpertPools
from pimserve.device_models.slowdown import slow_plan
from pimserve.device_models.step import N, StepShape, StepTuple
from pimserve.scheduler.compiled_steps import mixed_steps
from pimserve.scheduler.costs import ReplicaCosts
from pimserve.scheduler.plan_tables import PlanTables
from pimserve.scheduler.requests import FOREVER

_STEPS_TOGETHER = 4096  # of which schedules are worked out in one go
_DRAWN_TOGETHER = 64  # where each has counts of its own of all experts in all layers
_COLUMNS_FROM = 7  # steps of a span that are worked out sooner as columns, in closed form as a rule, than one by one
_OUTCOMES_KEPT = 8192  # of which the time of each layer is kept
_EPOCHS_KEPT = 16  # while popularities drift, of which tables are kept
_TIME = FEATURES.index("time_fs")


@dataclass(frozen=True, slots=True)
class MixedSpan:
    """Decode steps that follow each other; `ends_fs`: when each of them ends."""

    busiest_tokens: int
    ends_fs: Sequence[int]

    @property
    def steps(self) -> int:
        """How many there are."""
        return len(self.ends_fs)

    def duration_fs(self, steps: int) -> int:
        """Time of the first so many steps."""
        return self.ends_fs[steps - 1]

    def first_reaching(self, limit_fs: int, most: int, duration_fs: int) -> tuple[int, int]:
        """(n, time of n steps) for the smallest n of at most `most` whose time is at least `limit_fs`."""
        del most, duration_fs
        n = bisect_left(self.ends_fs, limit_fs) + 1
        return n, self.ends_fs[n - 1]


class MixedCosts(ReplicaCosts):
    """Times of steps on one replica of a plan with micro-batches."""

    __slots__ = ("_decoding", "_micro", "_mixed", "_once_fs", "_outcomes_fs", "_rows")  # as `EngineCore` has some

    def __init__(self, plan: CostPlan, pools: ExpertPools | None, *, replica: int, seed: int, exact: bool) -> None:
        super().__init__(plan, pools, replica=replica, seed=seed, exact=exact)
        assert plan.micro_batches is not None
        self._micro: MicroBatches = plan.micro_batches
        self._first = plan
        self._plan_at: Callable[[ExpertPools], CostPlan] = partial(_plan_of, plan)
        self._tables_of: dict[int, PlanTables] = {}  # by interval of the drift, of all replicas
        self._remember(PlanTables(plan, plan, plan.micro_batches))

    def _remember(self, tables: PlanTables) -> None:
        """What is known of the plan, and tables of the pools, by tokens, and outcome."""
        self.plan = tables.plan
        self._rows, self._decoding, self._alone_fs = tables.rows, tables.decoding, tables.alone_fs
        self._once_fs, self.link_more = tables.once_fs, tables.link_more
        self._prefixes_fs: Memo[int, list[int]] = Memo(self._prefix_fs)
        self._mixed = None if self.exact else mixed_steps(tables, self.pools)
        self._alike: Memo[int, bool] = Memo(self._same_in_all)
        self._outcomes_fs: Memo[tuple[int, int], list[int]] = Memo(self._outcome_fs, _OUTCOMES_KEPT)
        self._behind_experts: Memo[tuple[int, int], tuple[int, list[int]]] = Memo(self._experts_hide)
        self._behind_attention: Memo[tuple[int, int], tuple[int, list[int]]] = Memo(self._attention_hides)

    def at(self, fs: int) -> ReplicaCosts:
        """As of any replica."""
        other = super().at(fs)
        if other is not self and isinstance(other, MixedCosts):
            assert other.pools is not None
            other._remember(self._tables(other.pools))
        return other

    def slowed(self, thousandths: int) -> ReplicaCosts:
        """As of any replica."""
        other = super().slowed(thousandths)
        if other is not self and isinstance(other, MixedCosts):
            other._plan_at = lambda pools: slow_plan(self._plan_at(pools), thousandths)
        return other

    def _tables(self, pools: ExpertPools) -> PlanTables:
        """Of the plan while popularities are those of the pools."""
        tables = self._tables_of.get(pools.epoch)
        if tables is None:
            if len(self._tables_of) >= _EPOCHS_KEPT:
                self._tables_of.clear()
            tables = self._tables_of[pools.epoch] = PlanTables(self._plan_at(pools), self._first, self._micro)
        return tables

    def prompt_step(
        self, step: int, decodes: int, context: int, chunks: Sequence[ChunkShape], outputs: int
    ) -> tuple[StepTuple[int], int]:
        """As of any replica."""
        width = self._verify_tokens
        shape = None if self._serial is None else self._serial.shape(decodes, context, chunks, outputs)
        if shape is None:
            shape = step_of(self._timing, decodes, context, chunks, outputs, self._chunk_cost, width)
        if self._mixed is not None:
            time = self._mixed.step_fs(shape, self.offset + step * self._micro.parts)
            if time is not None:
                return shape, time
        once, parts = self.parts_of_step(StepShape(*shape), step)
        return shape, once + schedule_fs(parts)

    def parts_of_step(self, shape: StepShape[int], step: int) -> tuple[int, list[PartTimes[int]]]:
        """(time before its micro-batches begin, fs, how long these take at each stage) of the step of that number."""
        micro, layers, width = self._micro, self._micro.counts[0], self._verify_tokens
        parts: list[PartTimes[int]] = [
            micro.part(
                self._rows.of(part),
                self._timing.layers_fs(part) // layers,
                self._routed(width * part.decodes + part.prefill_tokens, step, place),
            )
            for place, part in enumerate(micro.split(shape, self.plan.data_parallel, width))
            if part.tokens
        ]
        return once_fs(self.plan, shape), parts

    def decode_span(self, step: int, decodes: int, context: int, most: int) -> Span:
        """As of any replica; within a span the time of attention's devices grows evenly."""
        width = self._verify_tokens
        share, once = width * -(-decodes // self.plan.data_parallel), self._once_fs[decodes]
        most = most if most < self.max_span else self.max_span
        if self._mixed is not None and self._micro.parts > 1:
            outcome = self.offset + step * self._micro.parts
            ends_fs = self._mixed.ends_fs(decodes, context, outcome, most, once)
            if ends_fs is not None:
                return MixedSpan(share, ends_fs)
        sizes = self._micro.sizes(decodes, context, width)
        steps, grows = most, []
        for size, of_size in sizes:
            first, growth, steps = self._timing.decode_span(size, of_size, steps)
            grows.append((size, first, growth))
        if self._micro.parts == 1:
            prefix, at = self._experts_prefix(width * decodes, step)
            return DecodeSpan(steps, share, once + grows[0][1] + self._alone_fs[decodes], grows[0][2], prefix, at)
        if not self.exact and not self._micro.closing[0]:
            begin, at = self._orbit(step)
            least, prefix = self._behind_attention[decodes, begin]
            if least <= min([first for _, first, _ in grows]):
                first, growth = (sum(time) for time in list(zip(*grows, strict=True))[1:])
                return DecodeSpan(steps, share, once + first, growth, prefix, at)
            most, prefix = self._behind_experts[decodes, begin]
            if most >= max([first + growth * (steps - 1) for _, first, growth in grows]):
                visits, (_, first, growth) = len(self._micro.visits), grows[0]
                return DecodeSpan(steps, share, once + first // visits, growth // visits, prefix, at)
        if not self.exact and all(self._alike[width * size] for size, _, _ in grows):
            span = self._evenly(steps, share, lambda after: once + self._after_fs(grows, step, after))
            if span is not None:
                return span
        if steps < _COLUMNS_FROM:
            each = (once + self._after_fs(grows, step, after) for after in range(steps))
            return MixedSpan(share, list(accumulate(each)))
        return MixedSpan(share, np.cumsum(once + self._after_fs(grows, step, np.arange(steps))).tolist())

    def _after_fs(self, grows: Sequence[tuple[int, int, int]], step: int, after: N) -> N:
        """Time of decode steps so many after `step`, but for what runs once.

        Args:
            grows: of each micro-batch, requests, time of attention in that step, and what each further one takes more.
            step: a number.
            after: a number, or a column.
        """
        micro, width, parts = self._micro, self._verify_tokens, []
        for place, (requests, first, growth) in enumerate(grows):
            layer_fs = (first + growth * after) // micro.counts[0]
            routed: Any = self._routed(width * requests, step + after, place)
            parts.append(micro.part(self._decoding[requests], layer_fs, routed))
        return schedule_fs(parts)

    def _evenly(self, steps: int, share: int, after_fs: Callable[[int], int]) -> DecodeSpan | None:
        """Of steps whose routed experts take the same; None: their time does not grow evenly.

        A step takes as long as the longest path through its schedule, and each path grows evenly with the contexts. So
        the time is convex: steps between are on one line with the first two if the last is.
        """
        first = after_fs(0)
        growth = after_fs(1) - first if steps > 1 else 0
        if steps > 2 and after_fs(steps - 1) != first + growth * (steps - 1):
            return None
        return DecodeSpan(steps, share, first, growth)

    def experts_features(self, steps: StepShape[IntArray], numbers: IntArray) -> IntArray:
        """(n, mixed features): routed experts of executed steps of those numbers, and what the steps wait for."""
        assert self.pools is not None
        width = len(self.pools.term.features)
        features = np.zeros((len(numbers), width + len(MIXED_FEATURES)), np.int64)
        together = _DRAWN_TOGETHER if self.exact else _STEPS_TOGETHER
        for begin in range(0, len(numbers), together):
            here = slice(begin, begin + together)
            shape, number = StepShape(*(column[here] for column in steps)), numbers[here]
            parts = enumerate(parts_of(self.plan, shape))
            routed, drawn = zip(
                *(self._drawn_of(self.plan.tokens_of(part), number, place) for place, part in parts), strict=True
            )
            features[here] = self.features_of(shape, routed, sum(drawn[1:], drawn[0]))
        return features

    def features_of(self, steps: StepShape[IntArray], routed: Sequence[IntArray], drawn: IntArray) -> IntArray:
        """(n, mixed features): of single steps (n,), given what their routed experts take.

        Args:
            steps: (n,).
            routed: (layers, n) of each micro-batch, times.
            drawn: (n, features), all micro-batches and layers together, of which time is left to the schedule.
        """
        parts = [
            self._micro.part(self._micro.rows(stage_times(self.plan, part)), 0 * part.steps, times)
            for part, times in zip(parts_of(self.plan, steps), routed, strict=True)
        ]
        time, without = schedule_fs(parts), schedule_fs([part.free_links for part in parts])
        features = np.hstack([drawn, np.zeros((len(time), len(MIXED_FEATURES)), np.int64)])
        features[:, _TIME] = without - sum([part.attention_fs for part in parts], 0 * time)
        features[:, LINK_FS] = time - without
        features[:, STATION_FS] = sum([part.experts_fs for part in parts], 0 * time)
        return features

    def features_of_layers(self, steps: StepShape[IntArray], layers: IntArray) -> IntArray:
        """As of any replica."""
        assert self.pools is not None
        scaled = self.pools.scaled(layers)
        times = scaled[..., FEATURES.index("time_fs")].transpose(1, 2, 0)
        return self.features_of(steps, list(times), scaled.sum(axis=(1, 2)))

    def outcomes(self, numbers: IntArray, place: int) -> IntArray:
        """(n,): the outcomes that the micro-batch at a place takes in steps of those numbers."""
        return (self.offset + numbers * self._micro.parts + place) % POOL_SIZE

    def layers_of(self, tokens: IntArray, outcomes: IntArray) -> IntArray:
        """(layers, n): times of routed experts of micro-batches (n,) with so many tokens and these outcomes."""
        assert self.pools is not None
        return self.pools.layers_of(tokens, outcomes)

    def _routed(self, tokens: int, step: N, place: int) -> Any:  # noqa: ANN401 a list, or an array (layers, n)
        """Routed experts of each layer for the micro-batch at a place of a step, or of steps."""
        outcome = (self.offset + step * self._micro.parts + place) % POOL_SIZE
        if not isinstance(step, int):
            assert self.pools is not None
            return self.pools.layers_fs[tokens][:, outcome]
        if self.exact:
            return self._drawn_layers([tokens], [step], place)[0, :, _TIME].tolist()
        return self._outcomes_fs[tokens, outcome]

    def _experts_prefix(self, tokens: int, step: int) -> tuple[Sequence[int], int]:
        """(prefix, i): without micro-batches, routed experts of n steps take prefix[i + n] - prefix[i]."""
        if self.exact:
            return [0, sum(self._routed(tokens, step, 0))], 0
        return self._prefixes_fs[tokens], (self.offset + step) % POOL_SIZE

    def _orbit(self, step: int) -> tuple[int, int]:
        """(r, i): the first micro-batch of that step takes outcome (r + i m) mod POOL_SIZE, with the least r."""
        m = self._micro.parts
        stride = gcd(m, POOL_SIZE)
        i, begin = divmod((self.offset + step * m) % POOL_SIZE, stride)
        return begin, i * pow(m // stride, -1, POOL_SIZE // stride) % (POOL_SIZE // stride)

    def _experts_hide(self, key: tuple[int, int]) -> tuple[int, list[int]]:
        """Of steps that decode so many requests, of which the first begins with that outcome, if all else is hidden
        behind the experts: (the most that attention of all layers may take, prefix of their times without it)."""
        parts = self._turns(key, 0)
        most = len(self._micro.visits) * slack_fs(parts)
        return most, list(accumulate(schedule_fs(parts).tolist(), initial=0)) if most >= 0 else []

    def _attention_hides(self, key: tuple[int, int]) -> tuple[int, list[int]]:
        """The same if it is hidden behind attention: (the least that this must take, prefix of times without it)."""
        layers = self._micro.counts[0]
        least = max(0, lack_fs(self._turns(key, 0)))  # of a layer
        parts = self._turns(key, least)
        if lack_fs(parts) > 0:  # there are visits for which attention has nothing to do
            return FOREVER, []
        times = schedule_fs(parts) - len(parts) * layers * least
        return layers * least, list(accumulate(times.tolist(), initial=0))

    def _turns(self, key: tuple[int, int], layer_fs: int) -> list[PartTimes[IntArray]]:
        """Micro-batches of those steps, in columns, if attention of a layer takes so long."""
        assert self.pools is not None
        (requests, begin), m, width = key, self._micro.parts, self._verify_tokens
        outcomes = begin + m * np.arange(2 * POOL_SIZE)
        return [
            self._micro.part(
                self._decoding[size],
                np.full_like(outcomes, layer_fs),
                self.pools.layers_fs[width * size][:, (outcomes + place) % POOL_SIZE],
            )
            for place, (size, _) in enumerate(self._micro.sizes(requests, requests, width))
        ]

    def _same_in_all(self, tokens: int) -> bool:
        """Whether routed experts take the same in all outcomes."""
        assert self.pools is not None
        times = self.pools.layers_fs[tokens]
        return bool((times == times[:, :1]).all())

    def _prefix_fs(self, tokens: int) -> list[int]:
        assert self.pools is not None
        times: list[int] = self.pools.layers_fs[tokens].sum(axis=0).tolist()
        return list(accumulate(times * 2, initial=0))

    def _outcome_fs(self, key: tuple[int, int]) -> list[int]:
        assert self.pools is not None
        return self.pools.layer_times_fs(*key)

    def _drawn_of(self, tokens: IntArray, numbers: IntArray, place: int) -> tuple[IntArray, IntArray]:
        """((layers, n) times, fs; (n, features) of all layers): routed experts of the micro-batch at a place of steps.

        Args:
            tokens: (n,), of the micro-batches.
            numbers: (n,), of the steps.
            place: of the micro-batch among those of its step.
        """
        assert self.pools is not None
        if self.exact:
            layers = self._drawn_layers(tokens.tolist(), numbers.tolist(), place)
            return layers[..., _TIME].T, layers.sum(axis=1)
        outcomes = self.outcomes(numbers, place)
        return self.layers_of(tokens, outcomes), self.pools.features(tokens, outcomes)

    def _drawn_layers(self, tokens: Sequence[int], steps: Sequence[int], place: int) -> IntArray:
        """(n, layers, features): the exact draws of the micro-batch at a place of n steps."""
        assert self.pools is not None
        return self.pools.exact_layers(tokens, self.replica, steps, place)


def _plan_of(plan: CostPlan, pools: ExpertPools) -> CostPlan:
    return plan_at(plan, pools.weights.tolist(), pools.term.slots)


def make_costs(plan: CostPlan, pools: ExpertPools | None, *, replica: int, seed: int, exact: bool) -> ReplicaCosts:
    """What steps of a plan cost on a replica."""
    kind = ReplicaCosts if plan.micro_batches is None else MixedCosts
    return kind(plan, pools, replica=replica, seed=seed, exact=exact)
