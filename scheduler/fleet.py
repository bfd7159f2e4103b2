"""The replicas of a run: what is alike among them, and where a fresh engine for each of them comes from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from pimserve.arrays import IntArray
from pimserve.device_models.kv_groups import NO_WINDOWS, KvGroups
from pimserve.device_models.plan import FS_PER_PS, FS_PER_S, CostPlan
from pimserve.device_models.routing import ExpertPools, Routing
from pimserve.errors import InputError
from pimserve.scheduler.conditional_disagg import ConditionalDisaggSpec
from pimserve.scheduler.config import SchedulerSpec
from pimserve.scheduler.costs import ReplicaCosts
from pimserve.scheduler.data_parallel import DataParallelEngine
from pimserve.scheduler.engine import Engine
from pimserve.scheduler.handover import Link
from pimserve.scheduler.kv_cache import KvCache
from pimserve.scheduler.kv_tiers import KvTiers
from pimserve.scheduler.length_predictor import LengthPredictor
from pimserve.scheduler.load_shedding import LoadShedding
from pimserve.scheduler.mixed_costs import make_costs
from pimserve.scheduler.prefill_first import PrefillFirstEngine, SheddingPrefillFirstEngine
from pimserve.scheduler.queue_classes import QueueClass
from pimserve.scheduler.requests import RequestTable
from pimserve.scheduler.retaining_prefix_cache import prefix_cache_of
from pimserve.scheduler.sessions import Sessions
from pimserve.scheduler.shared_kv_tier import SharedKvTier
from pimserve.scheduler.shedding_engine import SheddingEngine
from pimserve.scheduler.steplog import StepLog
from pimserve.scheduler.swap_space import SwapSpace

ReplicaEngine = Engine | DataParallelEngine
RowSink = Callable[
    [int, IntArray, IntArray], None
]  # replica, rows (n, fields of SpanColumns), number of each one's first step
PREFILL, DECODE = "prefill", "decode"


def _shedding_engine(caches: Sequence[KvCache], *, spec: SchedulerSpec, **rest: Any) -> SheddingEngine:  # noqa: ANN401 likewise
    (kv,) = caches
    kind = SheddingPrefillFirstEngine if spec.batching == "prefill_first" else SheddingEngine
    return kind(kv=kv, spec=spec, **rest)


def make_engine(caches: Sequence[KvCache], *, spec: SchedulerSpec, **rest: Any) -> ReplicaEngine:  # noqa: ANN401 as the engines have them
    """The engine of a replica whose groups have these KV caches, one or more."""
    if len(caches) > 1:
        return DataParallelEngine(kvs=caches, spec=spec, **rest)
    kind = PrefillFirstEngine if spec.batching == "prefill_first" else Engine
    return kind(kv=caches[0], spec=spec, **rest)


@dataclass(frozen=True, slots=True)
class Pool:
    """Replicas of one kind.

    Args:
        name: "" for all there are; "prefill", or "decode" for those that take requests over after their first token.
        plan: cost of a step on a replica.
        kv_capacity_tokens: tokens that layers which see the whole context can keep on a replica, if windows take none.
        replicas: how many.
        first: number of the first of them; pools are numbered one behind the other.
        kv_groups: how layers share the KV cache.
        device_kv_bytes_per_token: what a token takes of one device's KV cache; 0: nobody swaps.
        kv_blocks_override: blocks of a replica's KV cache, whatever their size; None: as many as those tokens fill.
        kv_bytes_per_token: of all layers of a group, once, however many devices have a copy.
        conditional: of a pool for decode, which prompts it computes itself; None: none.
    """

    name: str
    plan: CostPlan
    kv_capacity_tokens: int
    replicas: int = 1
    first: int = 0
    kv_groups: KvGroups = NO_WINDOWS
    kv_blocks_override: int | None = None
    kv_bytes_per_token: int = 0
    device_kv_bytes_per_token: float = 0.0
    conditional: ConditionalDisaggSpec | None = None

    @property
    def numbers(self) -> range:
        """Numbers of its replicas."""
        return range(self.first, self.first + self.replicas)

    def request_tokens(self, spec: SchedulerSpec) -> int:
        """Tokens of one request that a replica's KV cache holds: it lies in one data-parallel group."""
        if not self.kv_groups.windowed:
            return self.kv_capacity_tokens // self.plan.data_parallel - self.lookahead_tokens(spec)
        return self.request_tokens_in_blocks(spec)

    def request_tokens_in_blocks(self, spec: SchedulerSpec) -> int:
        """Of these, those that whole blocks hold; with windows all of them are."""
        blocks, parallel = self.kv_blocks(spec.block_size), self.plan.data_parallel
        chunk, slots = spec.chunk_tokens, self.lookahead_tokens(spec)
        chunk = None if chunk is None else chunk + slots
        return self.kv_groups.request_tokens(blocks, parallel, spec.block_size, chunk) - slots

    def lookahead_tokens(self, spec: SchedulerSpec) -> int:
        """KV slots of a request beyond its tokens, for drafts; of replicas for prefill, which verify none, 0."""
        return 0 if self.name == PREFILL else spec.lookahead_tokens

    def kv_tokens(self, block_size: int) -> int:
        """Tokens that the blocks of layers which see the whole context can keep, if windows take none."""
        return self.kv_blocks(block_size) * block_size // self.kv_groups.full

    def kv_blocks(self, block_size: int) -> int:
        """Blocks of that many tokens in a replica's KV cache.

        Raises:
            InputError: there is not one for each group of layers.
        """
        groups, blocks = self.kv_groups, self.kv_blocks_override
        if blocks is None:
            blocks = groups.pool_blocks(self.kv_capacity_tokens, block_size)
        blocks -= blocks % self.plan.engine_cores  # each has as many
        if blocks >= (groups.full + groups.windowed) * self.plan.engine_cores:
            return blocks
        if not groups.windowed:
            short = f"one block of {block_size} tokens exceeds the KV cache of {self.kv_capacity_tokens}"
        else:
            short = (
                f"the KV cache has {blocks} blocks of {block_size} tokens, and a request needs "
                f"{groups.full + groups.windowed}, one for each group of layers"
            )
        raise InputError("scheduler.block_size", short)

    def block_bytes(self, block_size: int) -> float:
        """Of a KV block of so many tokens, what one device has."""
        return self.device_kv_bytes_per_token * block_size / self.kv_groups.full

    def swap_space(self, spec: SchedulerSpec) -> SwapSpace | None:
        """Empty host memory for KV blocks, if these settings have any; devices copy their parts at once."""
        if spec.swap_gb_per_s is None or spec.swap_space_gb is None:
            return None
        size = self.block_bytes(spec.block_size)
        blocks = int(spec.swap_space_gb * 1e9 // size)
        return SwapSpace(blocks, max(1, round(size * FS_PER_S / (spec.swap_gb_per_s * 1e9))))

    def shared_tier(self, spec: SchedulerSpec) -> SharedKvTier | None:
        """The empty tier that the prefix caches of its replicas share, if these settings have any."""
        if self.name == DECODE or not spec.shares_tier:
            return None
        return SharedKvTier(spec.kv_tiers[-1], self.kv_bytes_per_token * spec.block_size, self.kv_groups)

    def kv_cache(
        self, spec: SchedulerSpec, most_tokens: int, shared: SharedKvTier | None = None, replica: int = 0
    ) -> KvCache:
        """The empty KV cache of an engine core, of one for prefill without reserves, as nothing grows there.

        Args:
            spec: scheduler settings.
            most_tokens: that a request may have.
            shared: the tier that it shares with the caches of other replicas; None: with none.
            replica: number of its replica.
        """
        size = spec.block_size
        make: Callable[..., KvCache]
        if spec.enable_prefix_caching:
            below = spec.kv_tiers if self.name != DECODE else ()  # who decodes is sent what it has not computed
            of_block = self.kv_bytes_per_token * size, size, self.kv_groups
            make = partial(
                prefix_cache_of(self.kv_groups, spec.prefix_cache_retention_interval),
                tiers=KvTiers(below, *of_block, shared=shared, replica=replica) if below else None,
                drop_last_hit=spec.speculative is not None and spec.speculative.drops_last_hit,
            )
        else:
            make = partial(KvCache, swap=self.swap_space(spec))
        return make(
            self.kv_blocks(size) // self.plan.engine_cores,
            size,
            self.kv_groups,
            spec.chunk_tokens,
            reserves=None if self.name == PREFILL else spec.reserves,
            most_tokens=most_tokens,
            lookahead_tokens=self.lookahead_tokens(spec),
        )

    def costs(self, routing: Routing, seed: int) -> ReplicaCosts:
        """What steps cost on the first replica; of others, `ReplicaCosts.of_replica`."""
        experts = self.plan.experts
        outcomes = ExpertPools(experts, routing, seed) if experts is not None else None
        return make_costs(self.plan, outcomes, replica=self.first, seed=seed, exact=routing.mode == "exact")


@dataclass(frozen=True, slots=True)
class Fleet:
    """Replicas of one kind, or of two, and the settings that they share.

    Args:
        pools: one, or those for prefill and for decode; requests come to the first one.
        spec: scheduler settings.
        max_model_len: tokens of prompt and output together that a request may have, if the KV cache holds them.
        routing: how tokens choose experts.
        seed: of expert routing, and of predicted output lengths.
        window_fs: steps that end in [start, end) are measured.
        concurrency: clients of a closed loop; None in an open one.
        link: between two pools, from the first to the second; else None.
        longest_gaps: whether the longest gap between tokens of each request is wanted.
        classes: of requests, as queues know them.
    """

    pools: tuple[Pool, ...]
    spec: SchedulerSpec
    max_model_len: int
    routing: Routing
    seed: int
    window_fs: tuple[int, int]
    concurrency: int | None = None
    link: Link | None = None
    longest_gaps: bool = False
    classes: tuple[QueueClass, ...] = (QueueClass(),)

    @property
    def predictor(self) -> LengthPredictor:
        """What predicts output lengths for policies."""
        return LengthPredictor(self.spec.prediction_error, self.seed)

    @property
    def replicas(self) -> int:
        """How many there are, in all pools."""
        return sum(pool.replicas for pool in self.pools)

    @property
    def kv_tokens(self) -> int:
        """Tokens of one request that the KV cache holds, of every pool that it passes."""
        return min(pool.request_tokens_in_blocks(self.spec) for pool in self.pools)

    @property
    def most_tokens(self) -> int:
        """Tokens that a request may have, by `max_model_len` and the KV cache."""
        return min(self.max_model_len, self.kv_tokens)

    @property
    def window_chunk_tokens(self) -> int | None:
        """Of a prompt that attention windows have KV blocks for in a step; None: of any."""
        return self.spec.chunk_tokens if any(pool.kv_groups.windowed for pool in self.pools) else None

    def clients(self, requests: int) -> int:
        """How many replicas, the first ones, get requests: in a closed loop, those that have clients."""
        if self.concurrency is None:
            return self.replicas
        return min(self.replicas, self.concurrency, max(1, requests))

    def closed_requests(self, replica: int, requests: int) -> range:
        """Of the requests of a closed loop, those of that replica's clients."""
        sharing = self.clients(requests)
        return range(replica, requests if replica < sharing else 0, sharing)

    def engines(
        self,
        replicas: Sequence[int],
        table: RequestTable,
        on_rows: RowSink | None,
        rows_per_flush: int | None = None,
        sessions: Sessions | None = None,
    ) -> list[tuple[Pool, ReplicaEngine, StepLog]]:
        """Fresh engines of these replicas, their pools and logs."""
        made: list[tuple[Pool, ReplicaEngine, StepLog]] = []
        shared = self.pools[0].shared_tier(self.spec)
        for replica in replicas:
            pool = next(pool for pool in self.pools if replica in pool.numbers)
            alike = next((engine.costs for other, engine, _ in made if other.name == pool.name), None)
            costs = (alike or pool.costs(self.routing, self.seed)).of_replica(replica)
            made.append((pool, *self._engine(pool, costs, shared, table, on_rows, rows_per_flush, sessions)))
        return made

    def _engine(
        self,
        pool: Pool,
        costs: ReplicaCosts,
        shared: SharedKvTier | None,
        table: RequestTable,
        on_rows: RowSink | None,
        rows_per_flush: int | None,
        sessions: Sessions | None,
    ) -> tuple[ReplicaEngine, StepLog]:
        """A fresh engine of the replica that `costs` are of, and its log."""
        replica = costs.replica

        def flushed(rows: IntArray, first_steps: IntArray) -> None:
            if on_rows is not None:
                on_rows(replica, rows, first_steps)

        log = StepLog(costs, self.window_fs, flushed, rows_per_flush, longest_gaps=self.longest_gaps)
        closed: Sequence[int] | None = None
        clients = 0
        if self.concurrency is not None:
            closed = self.closed_requests(replica, len(table))
            table["replica"][closed.start : closed.stop : closed.step] = replica
            clients = len(range(replica, self.concurrency, self.replicas))
        make: Callable[..., ReplicaEngine] = make_engine
        if self.spec.sheds and pool.name != DECODE:
            shedding = LoadShedding(self.spec, self.classes, pool.plan.frontend_ps * FS_PER_PS)
            make = partial(_shedding_engine, shedding=shedding)
        engine = make(
            [pool.kv_cache(self.spec, self.most_tokens, shared, replica) for _ in range(pool.plan.engine_cores)],
            costs=costs,
            spec=self.spec,
            table=table,
            log=log,
            closed=closed,
            concurrency=clients,
            pool=pool.name,
            sessions=sessions,
            classes=self.classes,
        )
        return engine, log
