"""The replicas of a run: what is alike among them, and where a fresh engine for each of them comes from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pimserve.arrays import IntArray
from pimserve.device_models.kv_groups import NO_WINDOWS, KvGroups
from pimserve.device_models.plan import CostPlan
from pimserve.device_models.routing import ExpertPools, Routing
from pimserve.errors import InputError
from pimserve.scheduler.config import SchedulerSpec
from pimserve.scheduler.costs import ReplicaCosts
from pimserve.scheduler.engine import Engine
from pimserve.scheduler.handover import Link
from pimserve.scheduler.kv_cache import KvCache
from pimserve.scheduler.mixed_costs import make_costs
from pimserve.scheduler.requests import RequestTable
from pimserve.scheduler.steplog import StepLog

RowSink = Callable[
    [int, IntArray, IntArray], None
]  # replica, rows (n, fields of SpanColumns), number of each one's first step
PREFILL, DECODE = "prefill", "decode"


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
        kv_blocks_override: blocks of a replica's KV cache, whatever their size; None: as many as those tokens fill.
    """

    name: str
    plan: CostPlan
    kv_capacity_tokens: int
    replicas: int = 1
    first: int = 0
    kv_groups: KvGroups = NO_WINDOWS
    kv_blocks_override: int | None = None

    @property
    def numbers(self) -> range:
        """Numbers of its replicas."""
        return range(self.first, self.first + self.replicas)

    def request_tokens(self, spec: SchedulerSpec) -> int:
        """Tokens of one request that a replica's KV cache holds: it lies in one data-parallel group."""
        if not self.kv_groups.windowed:
            return self.kv_capacity_tokens // self.plan.data_parallel
        return self.request_tokens_in_blocks(spec)

    def request_tokens_in_blocks(self, spec: SchedulerSpec) -> int:
        """Of these, those that whole blocks hold; with windows all of them are."""
        blocks, parallel = self.kv_blocks(spec.block_size), self.plan.data_parallel
        return self.kv_groups.request_tokens(blocks, parallel, spec.block_size, spec.chunk_tokens)

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
        if blocks >= groups.full + groups.windowed:
            return blocks
        if not groups.windowed:
            short = f"one block of {block_size} tokens exceeds the KV cache of {self.kv_capacity_tokens}"
        else:
            short = (
                f"the KV cache has {blocks} blocks of {block_size} tokens, and a request needs "
                f"{groups.full + groups.windowed}, one for each group of layers"
            )
        raise InputError("scheduler.block_size", short)

    def kv_cache(self, spec: SchedulerSpec) -> KvCache:
        """The empty KV cache of a replica; of one for prefill, in which nothing grows, no oracle is asked."""
        oracle = spec.kv_admission == "oracle" and self.name != PREFILL
        return KvCache(
            self.kv_blocks(spec.block_size), spec.block_size, self.kv_groups, spec.chunk_tokens, oracle=oracle
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
        seed: of expert routing.
        window_fs: steps that end in [start, end) are measured.
        concurrency: clients of a closed loop; None in an open one.
        link: between two pools, from the first to the second; else None.
    """

    pools: tuple[Pool, ...]
    spec: SchedulerSpec
    max_model_len: int
    routing: Routing
    seed: int
    window_fs: tuple[int, int]
    concurrency: int | None = None
    link: Link | None = None

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
    ) -> list[tuple[Pool, Engine, StepLog]]:
        """Fresh engines of these replicas, their pools and logs."""
        made: list[tuple[Pool, Engine, StepLog]] = []
        for replica in replicas:
            pool = next(pool for pool in self.pools if replica in pool.numbers)
            alike = next((engine.costs for other, engine, _ in made if other.name == pool.name), None)
            costs = (alike or pool.costs(self.routing, self.seed)).of_replica(replica)
            made.append((pool, *self._engine(pool, costs, table, on_rows, rows_per_flush)))
        return made

    def _engine(
        self,
        pool: Pool,
        costs: ReplicaCosts,
        table: RequestTable,
        on_rows: RowSink | None,
        rows_per_flush: int | None,
    ) -> tuple[Engine, StepLog]:
        """A fresh engine of the replica that `costs` are of, and its log."""
        replica = costs.replica

        def flushed(rows: IntArray, first_steps: IntArray) -> None:
            if on_rows is not None:
                on_rows(replica, rows, first_steps)

        log = StepLog(costs, self.window_fs, flushed, rows_per_flush)
        closed: Sequence[int] | None = None
        clients = 0
        if self.concurrency is not None:
            closed = self.closed_requests(replica, len(table))
            table["replica"][closed.start : closed.stop : closed.step] = replica
            clients = len(range(replica, self.concurrency, self.replicas))
        engine = Engine(
            costs,
            self.spec,
            kv=pool.kv_cache(self.spec),
            table=table,
            log=log,
            closed=closed,
            concurrency=clients,
            pool=pool.name,
        )
        return engine, log
