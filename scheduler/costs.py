"""A replica's view of its cost plan: memoised scalars for the engine's loop, and the same in numpy for its log."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import NamedTuple

import numpy as np

from pimserve.arrays import IntArray
from pimserve.device_models.evaluate import DecodeSpan, timing_of
from pimserve.device_models.experts import FEATURES
from pimserve.device_models.plan import ChunkShape, CostPlan
from pimserve.device_models.routing import POOL_SIZE, ExpertPools
from pimserve.device_models.slowdown import NORMAL, SlowPools, slow_plan
from pimserve.device_models.step import busiest_counts, row_counts

MAX_SPAN = 65_536  # steps that one log row may stand for
_CHUNKS_KEPT = 16_384

_MASK = 2**64 - 1


def replica_offset(seed: int, replica: int) -> int:
    """Where in its pools a replica starts: a hash of seed and replica (splitmix64 finaliser)."""
    x = (seed * 0x9E3779B97F4A7C15 + replica * 0xD1B54A32D192ED03 + 0x2545F4914F6CDD1D) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return (x ^ (x >> 31)) % POOL_SIZE


class MixedStep(NamedTuple):
    """A step with prompts in it. Fields as in `steplog.SpanColumns`."""

    duration_fs: int
    busiest_tokens: int
    anchor_tokens: int
    prefill_fs: int
    prefill_dram_pj: int
    prefill_compute_pj: int


class ReplicaCosts:
    """Times of steps on one replica.

    MoE outcomes of step k are entry (offset + k) mod POOL_SIZE of the pool for its token count: counter-based, so that
    they do not depend on what was asked before. In exact mode they are drawn from a stream keyed by seed, replica
    and k, one step at a time.
    """

    def __init__(self, plan: CostPlan, pools: ExpertPools | None, *, replica: int, seed: int, exact: bool) -> None:
        self.plan = plan
        self.pools = pools
        self._seed = seed
        self.replica = replica
        self.offset = replica_offset(seed, replica)
        self.exact = exact and pools is not None
        self.max_span = 1 if self.exact else POOL_SIZE if pools is not None else MAX_SPAN
        self._timing = timing_of(plan)
        self._decode_rows_fs: dict[int, int] = {}  # row terms of a decode step, by requests of the busiest group
        self._tokens_fs: dict[int, int] = {}
        self._outputs_fs: dict[int, int] = {}
        self._by_requests = any(term.rows not in {"tokens", "outputs"} for term in plan.rows)
        self._requests_fs: dict[tuple[int, int], int] = {}
        self._chunks: dict[ChunkShape, tuple[int, int, int]] = {}
        self._drawn: dict[int, IntArray] = {}

    def of_replica(self, replica: int) -> ReplicaCosts:
        """The costs of another replica of the same plan; what is memoised for the plan is shared."""
        other = copy(self)
        other.replica = replica
        other.offset = replica_offset(self._seed, replica)
        other._drawn = {}
        return other

    def slowed(self, thousandths: int) -> ReplicaCosts:
        """The costs of the same replica when all of its steps take `thousandths` / 1000 of the time."""
        if thousandths == NORMAL:
            return self
        pools = None if self.pools is None else SlowPools(self.pools, thousandths)
        return ReplicaCosts(
            slow_plan(self.plan, thousandths), pools, replica=self.replica, seed=self._seed, exact=self.exact
        )

    @property
    def frontend_ps(self) -> int:
        """Time between a client's sending a request and the scheduler's having it."""
        return self.plan.frontend_ps

    def mixed_step(
        self, step: int, decodes: int, context: int, prefill_tokens: int, chunks: Sequence[ChunkShape], outputs: int
    ) -> MixedStep:
        """The step of that number, in which chunks of prompts are computed.

        Args:
            step: its number.
            decodes: decoding requests.
            context: tokens that they attend to.
            prefill_tokens: of all chunks.
            chunks: of prompts.
            outputs: tokens that it emits.
        """
        plan, timing = self.plan, self._timing
        if len(chunks) == 1:
            chunk = chunks[0]
            time, dram, compute = self._chunks.get(chunk) or self._chunk(chunk)
            times = [time]
        else:
            times, dram, compute = [], 0, 0
            for chunk in chunks:
                time, chunk_dram, chunk_compute = self._chunks.get(chunk) or self._chunk(chunk)
                times.append(time)
                dram += chunk_dram
                compute += chunk_compute
        busiest, anchor, prefill = timing.prefill(decodes, chunks, times)
        tokens = decodes + prefill_tokens
        duration = timing.layers_fs(decodes, context, outputs, busiest, anchor, prefill)
        duration += self._rows(timing.row_tokens(tokens, busiest), -(-outputs // plan.data_parallel))
        if self._by_requests:
            duration += self._requests(decodes, len(chunks))
        if plan.experts is not None:
            duration += self.experts_fs(tokens, step)
        return MixedStep(duration, busiest, anchor, prefill, dram, compute)

    def decode_span(self, step: int, decodes: int, context: int, most: int) -> DecodeSpan:
        """At most `most` steps of decoding alone, the first of which has that number.

        `context` is what the requests attend to in the first step; it grows by `decodes` a step.
        """
        plan = self.plan
        share = -(-decodes // plan.data_parallel)
        rows_fs = self._decode_rows_fs.get(share)
        if rows_fs is None:
            rows_fs = self._decode_rows_fs[share] = self._rows(share, share) + self._requests(decodes, 0)
        first, growth, steps = self._timing.decode_span(decodes, context, min(most, self.max_span))
        if plan.experts is None:
            return DecodeSpan(steps, share, rows_fs + first, growth)
        prefix, at = self.experts_prefix(decodes, step)
        return DecodeSpan(steps, share, rows_fs + first, growth, prefix, at)

    def _rows(self, tokens: int, outputs: int) -> int:
        """Time of row terms that count tokens or outputs, for those of the busiest group."""
        by_tokens = self._tokens_fs.get(tokens)
        if by_tokens is None:
            by_tokens = self._tokens_fs[tokens] = self.plan.rows_fs(tokens, 0)
        by_outputs = self._outputs_fs.get(outputs)
        if by_outputs is None:
            by_outputs = self._outputs_fs[outputs] = self.plan.rows_fs(0, outputs)
        return by_tokens + by_outputs

    def _requests(self, decodes: int, prompts: int) -> int:
        """Time of row terms that count requests, for all groups' decoding requests and chunks of prompts."""
        time = self._requests_fs.get((decodes, prompts))
        if time is None:
            share = busiest_counts(row_counts(0, 0, decodes, prompts), 0, self.plan.data_parallel)
            time = self._requests_fs[decodes, prompts] = self.plan.rows_fs(0, 0, share["decodes"], share["prompts"])
        return time

    def _chunk(self, chunk: ChunkShape) -> tuple[int, int, int]:
        """(fs, dram pJ, compute pJ) of a chunk's attention, kept for the next of its kind."""
        if len(self._chunks) >= _CHUNKS_KEPT:
            self._chunks.clear()
        time = dram = compute = 0
        for term in self.plan.prefill:
            term_time, term_dram, term_compute = term.cost(chunk)
            time += term_time
            dram += term_dram
            compute += term_compute
        cost = self._chunks[chunk] = (time, dram, compute)
        return cost

    def experts_prefix(self, tokens: int, step: int) -> tuple[Sequence[int], int]:
        """(prefix, i): the experts of steps step .. step + n - 1 take prefix[i + n] - prefix[i], n up to `max_span`."""
        assert self.pools is not None
        if self.exact:
            return (0, self.experts_fs(tokens, step)), 0
        return self.pools.prefix_fs(tokens), (self.offset + step) % POOL_SIZE

    def experts_fs(self, tokens: int, step: int) -> int:
        """Time of the experts of one step."""
        assert self.pools is not None
        if self.exact:
            features = self._drawn[step] = self.pools.exact(tokens, self.replica, step)
            return int(features[0])
        return self.pools.time_fs(tokens, (self.offset + step) % POOL_SIZE)

    def experts_features(self, tokens: IntArray, steps: IntArray) -> IntArray:
        """(n, features): routed experts of executed steps with the given token counts and step numbers."""
        assert self.pools is not None
        if self.exact:
            drawn = [self._recall(t, step) for t, step in zip(tokens.tolist(), steps.tolist(), strict=True)]
            return np.array(drawn, np.int64).reshape(-1, len(FEATURES))
        return self.pools.features(tokens, (self.offset + steps) % POOL_SIZE)

    def _recall(self, tokens: int, step: int) -> IntArray:
        """The exact draw of a step: kept from when the engine asked for it, or drawn again."""
        assert self.pools is not None
        kept = self._drawn.pop(step, None)
        return self.pools.exact(tokens, self.replica, step) if kept is None else kept
