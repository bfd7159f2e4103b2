"""A replica's view of its cost plan: memoised scalars for the engine's loop, and the same in numpy for its log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from typing import NamedTuple

import numpy as np

from pimserve.arrays import IntArray
from pimserve.device_models import compiled
from pimserve.device_models.evaluate import DecodeSpan, Span, step_fs, step_of
from pimserve.device_models.experts import FEATURES
from pimserve.device_models.memo import Memo
from pimserve.device_models.plan import ChunkShape, CostPlan
from pimserve.device_models.routed_link import LinkKey
from pimserve.device_models.routing import POOL_SIZE, ExpertPools
from pimserve.device_models.serial import SerialTiming
from pimserve.device_models.slowdown import NORMAL, SlowPools, slow_plan
from pimserve.device_models.step import StepShape, StepTuple
from pimserve.scheduler.requests import FOREVER
from pimserve.scheduler.seeded_draws import mixed64

MAX_SPAN = 65_536  # steps that one log row may stand for
_CHUNKS_KEPT = 16_384


def replica_offset(seed: int, replica: int) -> int:
    """Where in its pools a replica starts: a hash of seed and replica."""
    x = seed * 0x9E3779B97F4A7C15 + replica * 0xD1B54A32D192ED03 + 0x2545F4914F6CDD1D
    return mixed64(x) % POOL_SIZE


class GroupLoad(NamedTuple):
    """What a data-parallel group has in a step: decoding requests, what they attend to, chunks of prompts, outputs."""

    decodes: int
    context: int
    chunks: Sequence[ChunkShape]
    outputs: int


class GroupSpan(NamedTuple):
    """Decode steps of data-parallel groups that each have requests of their own, and wait for the slowest.

    `slowest`: its place. `decodes`, `context`: the number of groups times what that has in the first step. Groups wait
    for `lead_fs` in that step, all together, and for `lead_growth_fs` more in each further one.
    """

    span: DecodeSpan
    slowest: int
    decodes: int
    context: int
    lead_fs: int
    lead_growth_fs: int

    def waited_fs(self, steps: int) -> int:
        """How long groups wait in the first so many steps."""
        return steps * self.lead_fs + self.lead_growth_fs * (steps * (steps - 1) // 2)


class ReplicaCosts:
    """Times of steps on one replica.

    MoE outcomes of step k are entry (offset + k) mod POOL_SIZE of the pool for its token count: counter-based, so that
    they do not depend on what was asked before. In exact mode they are drawn from a stream keyed by seed, replica
    and k, one step at a time.
    """

    def __init__(self, plan: CostPlan, pools: ExpertPools | None, *, replica: int, seed: int, exact: bool) -> None:
        self.plan = plan
        self.pools = pools
        self.ends_fs = FOREVER if pools is None else pools.ends_fs  # steps that begin later cost what `at` says
        self.seed = seed
        self.replica = replica
        self.offset = replica_offset(seed, replica)
        self.link_more: Mapping[LinkKey, int] = {}  # between groups of devices, for each token (`PlanTables`)
        self.exact = exact and pools is not None
        self.least_step_fs = plan.least_step_fs
        self.max_span = 1 if self.exact else POOL_SIZE if pools is not None else MAX_SPAN
        self._timing, groups = plan.timing, plan.data_parallel
        self._verify_tokens = width = plan.verify_tokens
        # Row terms by what they count: tokens of the busiest group, the rest of all groups; of a decode step together.
        self._tokens_fs: Memo[int, int] = Memo(lambda tokens: plan.rows_fs(tokens, 0, 0, 0))
        self._outputs_fs: Memo[int, int] = Memo(lambda outputs: plan.rows_fs(0, -(-outputs // groups), 0, 0))
        self._requests_fs: Memo[tuple[int, int], int] = Memo(
            lambda counts: plan.rows_fs(0, 0, *(-(-count // groups) for count in counts))  # decodes, prompts
        )
        self._decode_rows_fs: Memo[int, int] = Memo(lambda share: plan.rows_fs(width * share, width * share, share, 0))
        self._shared_fs: Memo[tuple[int, int], int] | None = None  # by tokens and decoding requests of all groups
        if plan.shared_rows:
            self._shared_fs = Memo(lambda counts: plan.shared_rows_fs(*counts))
        self._by_requests = any(term.rows not in {"tokens", "outputs"} for term in plan.rows)
        chunks = Memo(plan.chunk_cost, _CHUNKS_KEPT)
        self._chunk_cost = chunks.__getitem__
        self._serial = self._serial_steps(chunks)
        self._drawn: dict[int, IntArray] = {}

    def _serial_steps(self, chunks: Memo[ChunkShape, tuple[int, int, int]]) -> compiled.SerialSteps | None:
        """None: there is no compiled part, or it does not know the plan's kind of timing, or its numbers."""
        if not compiled.COMPILED or not isinstance(self._timing, SerialTiming):
            return None
        try:
            return compiled.SerialSteps(
                tuple(self._timing.ways),
                self.plan.data_parallel,
                self._verify_tokens,
                chunks=chunks,
                tokens=self._tokens_fs,
                outputs=self._outputs_fs,
                requests=self._requests_fs if self._by_requests else None,
                decodes=self._decode_rows_fs,
            )
        except OverflowError:
            return None

    def of_replica(self, replica: int) -> ReplicaCosts:
        """The costs of another replica of the same plan; what is memoised for the plan is shared."""
        other = copy(self)
        other.replica = replica
        other.offset = replica_offset(self.seed, replica)
        other._drawn = {}
        return other

    def at(self, fs: int) -> ReplicaCosts:
        """The costs of steps that begin at that time."""
        if self.pools is None or (pools := self.pools.at(fs)) is self.pools:
            return self
        other = copy(self)
        other.pools, other.ends_fs = pools, pools.ends_fs
        other._drawn = {}
        return other

    def slowed(self, thousandths: int) -> ReplicaCosts:
        """The costs of the same replica when all of its steps take `thousandths` / 1000 of the time."""
        if thousandths == NORMAL:
            return self
        pools = None if self.pools is None else SlowPools(self.pools, thousandths)
        return type(self)(
            slow_plan(self.plan, thousandths), pools, replica=self.replica, seed=self.seed, exact=self.exact
        )

    @property
    def frontend_ps(self) -> int:
        """Time between a client's sending a request and the scheduler's having it."""
        return self.plan.frontend_ps

    def prompt_step(
        self, step: int, decodes: int, context: int, chunks: Sequence[ChunkShape], outputs: int
    ) -> tuple[StepTuple[int], int]:
        """The step of that number, in which chunks of prompts are computed, and its time, fs.

        Args:
            step: its number.
            decodes: decoding requests.
            context: tokens that they attend to.
            chunks: of prompts.
            outputs: tokens that it emits.
        """
        timing, width = self._timing, self._verify_tokens
        if self._serial is not None:
            found = self._serial.prompt_step(decodes, context, chunks, outputs)
            if found is not None:
                shape, time = found
                return shape, time if self.pools is None else time + self.experts_fs(shape[3] + width * decodes, step)
        shape = step_of(timing, decodes, context, chunks, outputs, self._chunk_cost, width)
        _, _, _, tokens, prompts, _, busiest, *_ = shape
        tokens += width * decodes
        if width > 1:
            outputs = width * decodes + prompts  # `CostPlan.sampled_of`
        rows_fs = self._tokens_fs[busiest if timing.rows_of_busiest else tokens] + self._outputs_fs[outputs]
        if self._by_requests:
            rows_fs += self._requests_fs[decodes, prompts]
        return shape, step_fs(timing, shape, rows_fs, 0 if self.pools is None else self.experts_fs(tokens, step))

    def decode_span(self, step: int, decodes: int, context: int, most: int) -> Span:
        """At most `most` steps of decoding alone, the first of which has that number.

        `context` is what the requests attend to in the first step; it grows by `decodes` a step.
        """
        plan, width = self.plan, self._verify_tokens
        most = most if most < self.max_span else self.max_span
        prefix: Sequence[int] = ()
        at = 0
        if plan.experts is not None:
            prefix, at = self.experts_prefix(width * decodes, step)
        if self._serial is not None:
            span = self._serial.decode_span(decodes, context, most, prefix, at)
            if span is not None:
                return span
        share = -(-decodes // plan.data_parallel)
        first, growth, steps = self._timing.decode_span(decodes, context, most)
        first += self._decode_rows_fs[share]
        return DecodeSpan(steps, width * share, first, growth, prefix, at)

    def groups_step(self, step: int, groups: Sequence[GroupLoad]) -> tuple[StepTuple[int], int, int]:
        """The step of that number, with prompts, which groups have of their own; its time, and what they wait, fs.

        The slowest group sets the time of attention and row terms, the first one of those; experts see all tokens.
        """
        n, width = len(groups), self._verify_tokens
        dram = compute = tokens = 0
        times, shapes = [], []
        for decodes, context, chunks, outputs in groups:
            own, prefill_fs, prompts = width * decodes, 0, len(chunks)
            for chunk in chunks:
                time, chunk_dram, chunk_compute = self._chunk_cost(chunk)
                own += chunk[0]
                prefill_fs += time
                dram += chunk_dram
                compute += chunk_compute
            tokens += own
            paced = n * decodes, n * context, n * prompts, n * outputs
            rows_fs = self._tokens_fs[own] + self._outputs_fs[n * self.plan.sampled(outputs, decodes, prompts)]
            if self._by_requests:
                rows_fs += self._requests_fs[n * decodes, n * prompts]
            shapes.append((own, prefill_fs, paced))
            times.append(rows_fs + self._timing.layers_fs((1, 0, 0, 0, 0, 0, own, 0, prefill_fs, 0, 0, *paced)))
        slowest_fs = max(times)
        busiest, prefill_fs, paced = shapes[times.index(slowest_fs)]
        decodes, context = sum([group.decodes for group in groups]), sum([group.context for group in groups])
        outputs, prompts = sum([group.outputs for group in groups]), sum([len(group.chunks) for group in groups])
        counts = 1, decodes, context, tokens - width * decodes, prompts, outputs
        shape = *counts, busiest, 0, prefill_fs, dram, compute, *paced
        shared_fs = 0 if self.pools is None else self.experts_fs(tokens, step)
        if self._shared_fs is not None:
            shared_fs += self._shared_fs[tokens, decodes]
        return shape, slowest_fs + shared_fs, n * slowest_fs - sum(times)

    def groups_span(self, step: int, groups: Sequence[tuple[int, int]], most: int) -> GroupSpan:
        """At most `most` steps of decoding alone, the first of which has that number; a group may take the lead once.

        `groups`: of each data-parallel group decoding requests, and what they attend to in the first step.
        """
        n, decodes, context = len(groups), *map(sum, zip(*groups, strict=True))
        steps = self._timing.decode_span(decodes, context, min(most, self.max_span))[2]  # so that energy grows evenly
        lines = []
        for own, attended in groups:
            first = growth = 0
            if own:
                first, growth, steps = self._timing.decode_span(n * own, n * attended, steps)
                first += self._decode_rows_fs[own]
            lines.append((first, growth))
        firsts = [first for first, _ in lines]
        slowest = firsts.index(slowest_fs := max(firsts))
        grows_fs = lines[slowest][1]
        for place, (first, growth) in enumerate(lines):
            if growth > grows_fs:  # of those that are as slow, the first one counts
                steps = min(steps, (slowest_fs - first - (place < slowest)) // (growth - grows_fs) + 1)
        own, attended = groups[slowest]
        leads = n * slowest_fs - sum(firsts), n * grows_fs - sum([growth for _, growth in lines])
        if self._shared_fs is not None:
            slowest_fs += self._shared_fs[self._verify_tokens * decodes, decodes]
        prefix: Sequence[int] = ()
        at = 0
        if self.plan.experts is not None:
            prefix, at = self.experts_prefix(self._verify_tokens * decodes, step)
        tokens = self._verify_tokens * own
        span = DecodeSpan(steps, tokens, slowest_fs, grows_fs, prefix, at)
        return GroupSpan(span, slowest, n * own, n * attended, *leads)

    def experts_prefix(self, tokens: int, step: int) -> tuple[Sequence[int], int]:
        """(prefix, i): the experts of steps step .. step + n - 1 take prefix[i + n] - prefix[i], n up to `max_span`."""
        assert self.pools is not None
        if self.exact:
            return [0, self.experts_fs(tokens, step)], 0
        return self.pools.prefixes_fs[tokens], (self.offset + step) % POOL_SIZE

    def experts_fs(self, tokens: int, step: int) -> int:
        """Time of the experts of one step."""
        assert self.pools is not None
        if self.exact:
            features = self._drawn[step] = self.pools.exact(tokens, self.replica, step)
            return int(features[0])
        return self.pools.time_fs(tokens, (self.offset + step) % POOL_SIZE)

    def experts_features(self, steps: StepShape[IntArray], numbers: IntArray) -> IntArray:
        """(n, features): routed experts of executed steps (n,) of those numbers."""
        assert self.pools is not None
        tokens = self.plan.tokens_of(steps)
        if self.exact:
            drawn = [self._recall(t, step) for t, step in zip(tokens.tolist(), numbers.tolist(), strict=True)]
            return np.array(drawn, np.int64).reshape(-1, len(FEATURES))
        return self.pools.features(tokens, (self.offset + numbers) % POOL_SIZE)

    def features_of_layers(self, steps: StepShape[IntArray], layers: IntArray) -> IntArray:
        """(n, features), or mixed ones: of single steps (n,), given what was drawn for them at normal speed.

        Args:
            steps: (n,).
            layers: (n, micro-batches, layers, features).
        """
        assert self.pools is not None
        return self.pools.scaled(layers.sum(axis=(1, 2)))

    def _recall(self, tokens: int, step: int) -> IntArray:
        """The exact draw of a step: kept from when the engine asked for it, or drawn again."""
        assert self.pools is not None
        kept = self._drawn.pop(step, None)
        return self.pools.exact(tokens, self.replica, step) if kept is None else kept
