"""The queue of a replica in which a policy says who is next."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from typing import Any

from pimserve.scheduler.ordered_queue import OrderedQueue
from pimserve.scheduler.policy import Policy, QueuedRequest
from pimserve.scheduler.queue_classes import QueueClass
from pimserve.scheduler.requests import RequestTable

_Entry = tuple[int, int, int]  # the policy's number, arrival in ps, request


class PolicyQueue(OrderedQueue[_Entry]):
    """The lowest number first, among those that have arrived; preempted ones as vLLM has them with `priority`.

    That is: the running request that would be the last one in this order is preempted, and waits among the others by
    its number. Nobody is preempted for one that waits. The first one holds up all behind it while it does not fit.

    `_first` is a heap of those that have arrived, or were preempted.

    Args:
        table: requests of the run.
        reject: takes requests that cannot be served, when it is their turn.
        policy: gives numbers.
        classes: of requests, as `queue_classes` has them.
    """

    def __init__(
        self, table: RequestTable, reject: Callable[[int], None], policy: Policy, classes: Sequence[QueueClass]
    ) -> None:
        self._policy = policy
        super().__init__(table, reject, classes)

    def bind(self, table: RequestTable) -> None:
        """Read this table from here on, which holds the same requests."""
        super().bind(table)
        self._predicted = table.views["predicted_tokens"]

    def peek(self, now_fs: int) -> int:
        """Who is admitted next at that time, which is `next_fs` or later."""
        self.gather(now_fs)
        return self._first[0][2]

    def pop(self) -> None:
        """Take the one that `peek` told out of the queue."""
        heappop(self._first)
        self.next_fs = 0 if self._first else self._head_fs

    def victim(self, running: dict[int, int], now_fs: int) -> int:
        """The one that would be admitted last."""
        return max(map(self._entry, running))[2]

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        super().restore({**state, "first": [tuple(entry) for entry in state["first"]]})

    def _waiting_first(self) -> list[int]:
        return [request for _, _, request in sorted(self._first)]

    def _enter(self, request: int) -> None:
        heappush(self._first, self._entry(request))

    def _entry(self, request: int) -> _Entry:
        arrival_ps = self._arrival_ps[request]
        of_class = self._classes[self._class_id[request]]
        known = QueuedRequest(arrival_ps, self._input[request], self._predicted[request], *of_class)
        return self._policy.key(known), arrival_ps, request
