"""Queues in which those that come may be served before those that wait."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import TypeVar

from pimserve.scheduler.queue_classes import QueueClass
from pimserve.scheduler.request_queue import RequestQueue
from pimserve.scheduler.requests import RequestTable

_Entry = TypeVar("_Entry")


class OrderedQueue(RequestQueue[_Entry]):
    """Some order of those that have arrived, or were preempted, which are all in `_first`.

    Args:
        table: requests of the run.
        reject: takes requests that cannot be served, when it is their turn.
        classes: of requests, as `queue_classes` has them.
    """

    def __init__(self, table: RequestTable, reject: Callable[[int], None], classes: Sequence[QueueClass]) -> None:
        self._classes = classes
        super().__init__(table, reject)

    def bind(self, table: RequestTable) -> None:
        """Read this table from here on, which holds the same requests."""
        super().bind(table)
        self._class_id = table.views["class_id"]

    def next_change_fs(self, now_fs: int) -> int:
        """When the next one arrives, whoever waits."""
        self.gather(now_fs)
        return self._head_fs

    def put_back(self, request: int) -> None:
        """A request was preempted."""
        self._enter(request)
        self.next_fs = 0

    def gather(self, now_fs: int) -> None:
        """Whoever has arrived by now waits among the others."""
        while self._head_fs <= now_fs:
            self._enter(self._head)
            self._next_head()

    @abstractmethod
    def _enter(self, request: int) -> None:
        """A request waits in `_first`."""
