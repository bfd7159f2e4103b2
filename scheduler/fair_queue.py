"""The queue of a replica that its tenants share fairly: next is who had the least service (VTC)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from typing import Any

from pimserve.scheduler.ordered_queue import OrderedQueue
from pimserve.scheduler.queue_classes import QueueClass
from pimserve.scheduler.requests import NEVER, RequestTable
from pimserve.scheduler.token_counters import TokenCounters

_NOBODY = -1
_Heap = list[tuple[int, int]]  # of (arrival in ps, request) of one tenant, none of them empty


class FairQueue(OrderedQueue[_Heap]):
    """The first request of the tenant whose counter is lowest; among equals, the one that arrived first.

    A tenant of whom nobody waited, and now somebody does, is lifted to the lowest counter of those who wait, or of the
    one who was admitted last where nobody does: what was not asked for is not made up for (Algorithm 2 of Sheng et al.,
    OSDI 2024). Who is preempted is the request that is last in this order, and waits in it again.

    `_first` has a heap of each tenant of whom somebody waits.

    Args:
        table: requests of the run.
        reject: takes requests that cannot be served, when it is their turn.
        classes: of requests, as `queue_classes` has them.
        counters: of the tenants of these classes.
    """

    def __init__(
        self,
        table: RequestTable,
        reject: Callable[[int], None],
        classes: Sequence[QueueClass],
        counters: TokenCounters,
    ) -> None:
        self.counters = counters
        self._admitted_last = _NOBODY  # tenant of whom a request left the queue last, for the first time or again
        super().__init__(table, reject, classes)

    def bind(self, table: RequestTable) -> None:
        """Read this table from here on, which holds the same requests."""
        super().bind(table)
        self._first_scheduled_ps = table.views["first_scheduled_ps"]

    def __len__(self) -> int:
        """How many wait, or have yet to arrive."""
        return super().__len__() + sum(len(heap) - 1 for heap in self._first)

    def tenant_of(self, request: int) -> int:
        """The number of its tenant."""
        class_id: int = self._class_id[request]
        return self.counters.tenants[class_id]

    def peek(self, now_fs: int) -> int:
        """Who is admitted next at that time, which is `next_fs` or later."""
        self.gather(now_fs)
        return self._next()[0][1]

    def pop(self) -> None:
        """Take the one that `peek` told out of the queue."""
        heap = self._next()
        _, request = heappop(heap)
        if not heap:
            self._first.remove(heap)
        self._admitted_last = tenant = self.tenant_of(request)
        if self._first_scheduled_ps[request] == NEVER:
            self.counters.admit(tenant, self._input[request])
        self.next_fs = 0 if self._first else self._head_fs

    def victim(self, running: dict[int, int], now_fs: int) -> int:
        """The one that would be admitted last."""
        self.gather(now_fs)  # before the victim waits too
        return max(map(self._order, running))[2]

    def steps_to_reorder(self) -> int | None:
        """Steps in which all decode on until another tenant may be next; None: none will be."""
        if len(self._first) < 2:
            return None
        head = self.tenant_of(self._next()[0][1])
        return self.counters.steps_to_pass(head, (tenant for tenant in self._waiting_tenants() if tenant != head))

    def state(self) -> dict[str, Any]:
        """Who waits, and what tenants had, as JSON can hold it."""
        return {**super().state(), "service": self.counters.service, "admitted_last": self._admitted_last}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        super().restore({**state, "first": [[tuple(entry) for entry in heap] for heap in state["first"]]})
        self.counters.service = list(state["service"])
        self._admitted_last = state["admitted_last"]

    def _waiting_first(self) -> list[int]:
        return [order[2] for order in sorted(self._order(request) for heap in self._first for _, request in heap)]

    def _waiting_tenants(self) -> list[int]:
        return [self.tenant_of(heap[0][1]) for heap in self._first]

    def _enter(self, request: int) -> None:
        tenant, entry = self.tenant_of(request), (self._arrival_ps[request], request)
        waiting = self._waiting_tenants()
        if tenant in waiting:
            heappush(self._first[waiting.index(tenant)], entry)
            return
        if waiting or self._admitted_last != _NOBODY:
            self.counters.lift(tenant, waiting or [self._admitted_last])
        self._first.append([entry])

    def _next(self) -> _Heap:
        return min(self._first, key=lambda heap: self._order(heap[0][1]))

    def _order(self, request: int) -> tuple[int, int, int]:
        return self.counters.service[self.tenant_of(request)], self._arrival_ps[request], request
