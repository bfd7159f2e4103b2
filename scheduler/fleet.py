"""The replicas of a run: what is alike among them, and where a fresh engine for each of them comes from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pimserve.device_models.plan import CostPlan
from pimserve.device_models.routing import ExpertPools, Routing
from pimserve.scheduler.config import SchedulerSpec
from pimserve.scheduler.costs import ReplicaCosts
from pimserve.scheduler.engine import Engine
from pimserve.scheduler.requests import RequestTable
from pimserve.scheduler.steplog import IntArray, StepLog

RowSink = Callable[
    [int, IntArray, IntArray], None
]  # replica, rows (n, columns of Rows), number of each one's first step


@dataclass(frozen=True, slots=True)
class Fleet:
    """Replicas of one kind and the settings that they share.

    Args:
        plan: cost of a step on a replica.
        spec: scheduler settings.
        kv_blocks: of a replica's KV cache.
        max_model_len: tokens of prompt and output together that a request may have.
        replicas: how many.
        routing: how tokens choose experts.
        seed: of expert routing.
        window_fs: steps that end in [start, end) are measured.
        concurrency: clients of a closed loop; None in an open one.
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

    def costs(self) -> ReplicaCosts:
        """Costs of replica 0, of which those of the others are made (`ReplicaCosts.of_replica`)."""
        experts = self.plan.experts
        pools = ExpertPools(experts, self.routing, self.seed) if experts is not None else None
        return ReplicaCosts(self.plan, pools, replica=0, seed=self.seed, exact=self.routing.mode == "exact")

    def clients(self, requests: int) -> int:
        """How many replicas, the first ones, get requests: in a closed loop, those that have clients."""
        if self.concurrency is None:
            return self.replicas
        return min(self.replicas, self.concurrency, max(1, requests))

    def closed_requests(self, replica: int, requests: int) -> range:
        """Of the requests of a closed loop, those of that replica's clients."""
        sharing = self.clients(requests)
        return range(replica, requests if replica < sharing else 0, sharing)

    def engine(
        self, costs: ReplicaCosts, table: RequestTable, on_rows: RowSink | None, rows_per_flush: int | None = None
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
            kv_blocks=self.kv_blocks,
            max_model_len=self.max_model_len,
            table=table,
            sink=log,
            closed=closed,
            concurrency=clients,
        )
        return engine, log
