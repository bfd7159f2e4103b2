"""A replica's view of its cost plan: memoised scalars for the engine's loop, and the same in numpy for its log."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy

import numpy as np

from pimserve.arrays import IntArray
from pimserve.device_models.evaluate import DecodeSpan, Span, step_fs, step_of
from pimserve.device_models.experts import FEATURES
from pimserve.device_models.memo import Memo
from pimserve.device_models.plan import ChunkShape, CostPlan
from pimserve.device_models.routing import POOL_SIZE, ExpertPools
from pimserve.device_models.slowdown import NORMAL, SlowPools, slow_plan
from pimserve.device_models.step import StepShape, StepTuple
from pimserve.scheduler.requests import FOREVER

MAX_SPAN = 65_536  # steps that one log row may stand for
_CHUNKS_KEPT = 16_384

_MASK = 2**64 - 1


def replica_offset(seed: int, replica: int) -> int:
    """Where in its pools a replica starts: a hash of seed and replica (splitmix64 finaliser)."""
    x = (seed * 0x9E3779B97F4A7C15 + replica * 0xD1B54A32D192ED03 + 0x2545F4914F6CDD1D) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return (x ^ (x >> 31)) % POOL_SIZE


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
        self._seed = seed
        self.replica = replica
        self.offset = replica_offset(seed, replica)
        self.exact = exact and pools is not None
        self.max_span = 1 if self.exact else POOL_SIZE if pools is not None else MAX_SPAN
        self._timing, groups = plan.timing, plan.data_parallel
        # Row terms by what they count: tokens of the busiest group, the rest of all groups; of a decode step together.
        self._tokens_fs: Memo[int, int] = Memo(lambda tokens: plan.rows_fs(tokens, 0, 0, 0))
        self._outputs_fs: Memo[int, int] = Memo(lambda outputs: plan.rows_fs(0, -(-outputs // groups), 0, 0))
        self._requests_fs: Memo[tuple[int, int], int] = Memo(
            lambda counts: plan.rows_fs(0, 0, *(-(-count // groups) for count in counts))  # decodes, prompts
        )
        self._decode_rows_fs: Memo[int, int] = Memo(lambda share: plan.rows_fs(share, share, share, 0))
        self._by_requests = any(term.rows not in {"tokens", "outputs"} for term in plan.rows)
        self._chunk_cost = Memo(plan.chunk_cost, _CHUNKS_KEPT).__getitem__
        self._drawn: dict[int, IntArray] = {}

    def of_replica(self, replica: int) -> ReplicaCosts:
        """The costs of another replica of the same plan; what is memoised for the plan is shared."""
        other = copy(self)
        other.replica = replica
        other.offset = replica_offset(self._seed, replica)
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
            slow_plan(self.plan, thousandths), pools, replica=self.replica, seed=self._seed, exact=self.exact
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
        timing = self._timing
        shape = step_of(timing, decodes, context, chunks, outputs, self._chunk_cost)
        _, _, _, tokens, prompts, _, busiest, _, _, _, _ = shape
        tokens += decodes
        rows_fs = self._tokens_fs[busiest if timing.rows_of_busiest else tokens] + self._outputs_fs[outputs]
        if self._by_requests:
            rows_fs += self._requests_fs[decodes, prompts]
        return shape, step_fs(timing, shape, rows_fs, 0 if self.pools is None else self.experts_fs(tokens, step))

    def decode_span(self, step: int, decodes: int, context: int, most: int) -> Span:
        """At most `most` steps of decoding alone, the first of which has that number.

        `context` is what the requests attend to in the first step; it grows by `decodes` a step.
        """
        plan = self.plan
        share = -(-decodes // plan.data_parallel)
        first, growth, steps = self._timing.decode_span(decodes, context, min(most, self.max_span))
        first += self._decode_rows_fs[share]
        if plan.experts is None:
            return DecodeSpan(steps, share, first, growth)
        prefix, at = self.experts_prefix(decodes, step)
        return DecodeSpan(steps, share, first, growth, prefix, at)

    def experts_prefix(self, tokens: int, step: int) -> tuple[Sequence[int], int]:
        """(prefix, i): the experts of steps step .. step + n - 1 take prefix[i + n] - prefix[i], n up to `max_span`."""
        assert self.pools is not None
        if self.exact:
            return (0, self.experts_fs(tokens, step)), 0
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
        tokens = steps.tokens
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
