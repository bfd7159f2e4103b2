"""The replicas of a run: what is alike among them, and where a fresh engine for each of them comes from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pimserve.device_models.plan import CostPlan
from pimserve.device_models.routing import ExpertPools, Routing
from pimserve.scheduler.config import SchedulerSpec
from pimserve.scheduler.costs import ReplicaCosts
from pimserve.scheduler.engine import Engine
from pimserve.scheduler.handover import Link
from pimserve.scheduler.requests import RequestTable
from pimserve.scheduler.steplog import IntArray, StepLog

RowSink = Callable[
    [int, IntArray, IntArray], None
]  # replica, rows (n, columns of Rows), number of each one's first step
PREFILL, DECODE = "prefill", "decode"


@dataclass(frozen=True, slots=True)
class DecodePool:
    """Replicas that take requests over after their first token; `link` brings them the KV caches."""

    plan: CostPlan
    kv_blocks: int
    replicas: int
    link: Link


@dataclass(frozen=True, slots=True)
class Pool:
    """Replicas of one kind, `name` "", "prefill" or "decode"; `numbers` are theirs."""

    name: str
    plan: CostPlan
    kv_blocks: int
    numbers: range


@dataclass(frozen=True, slots=True)
class Fleet:
    """Replicas of one kind, or of two, and the settings that they share.

    Args:
        plan: cost of a step on a replica.
        spec: scheduler settings.
        kv_blocks: of a replica's KV cache.
        max_model_len: tokens of prompt and output together that a request may have, if the KV cache holds them.
        replicas: how many, those of `decode` too.
        routing: how tokens choose experts.
        seed: of expert routing.
        window_fs: steps that end in [start, end) are measured.
        concurrency: clients of a closed loop; None in an open one.
        decode: the last of the replicas, where they only decode, and the others only compute prompts; else None.
    """

    plan: CostPlan
    spec: SchedulerSpec
    kv_blocks: int
    max_model_len: int
    replicas: int
    routing: Routing
    seed: int
    window_fs: tuple[int, int]
    concurrency: int | None = None
    decode: DecodePool | None = None

    @property
    def pools(self) -> tuple[Pool, ...]:
        """The pools; requests come to the first one."""
        if self.decode is None:
            return (Pool("", self.plan, self.kv_blocks, range(self.replicas)),)
        first = self.replicas - self.decode.replicas
        return (
            Pool(PREFILL, self.plan, self.kv_blocks, range(first)),
            Pool(DECODE, self.decode.plan, self.decode.kv_blocks, range(first, self.replicas)),
        )

    @property
    def kv_tokens(self) -> int:
        """Tokens of one request that the KV cache holds, of every pool that it passes."""
        return min(pool.kv_blocks * self.spec.block_size // pool.plan.data_parallel for pool in self.pools)

    @property
    def most_tokens(self) -> int:
        """Tokens that a request may have, by `max_model_len` and the KV cache."""
        return min(self.max_model_len, self.kv_tokens)

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
            costs = self._costs(pool, replica) if alike is None else alike.of_replica(replica)
            made.append((pool, *self._engine(pool, costs, table, on_rows, rows_per_flush)))
        return made

    def _costs(self, pool: Pool, replica: int) -> ReplicaCosts:
        experts = pool.plan.experts
        pools = ExpertPools(experts, self.routing, self.seed) if experts is not None else None
        return ReplicaCosts(pool.plan, pools, replica=replica, seed=self.seed, exact=self.routing.mode == "exact")

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
            kv_blocks=pool.kv_blocks,
            max_model_len=self.most_tokens,
            table=table,
            log=log,
            closed=closed,
            concurrency=clients,
            pool=pool.name,
        )
        return engine, log
