"""What every queue of a replica does: requests come by arrival, and some wait in front of all that have yet to come."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from pimserve.device_models.plan import FS_PER_PS
from pimserve.scheduler.requests import FOREVER, SERVABLE, RequestTable

NOBODY = -1
_Entry = TypeVar("_Entry")


class RequestQueue(ABC, Generic[_Entry]):
    """The requests of a replica that are not admitted; it keeps their numbers, rows of the request table.

    `next_fs`: from when on somebody can be scheduled, maybe long ago; FOREVER if nobody waits. `tokens`: of prompts and
    outputs so far of all that wait; whoever lets one in, or puts one back, counts these.

    Args:
        table: requests of the run.
        reject: takes requests that cannot be served, when it is their turn.
    """

    in_turn = False  # whether whoever waits is admitted before all that come later

    def __init__(self, table: RequestTable, reject: Callable[[int], None]) -> None:
        self._reject = reject
        self.bind(table)
        self.tokens = 0
        self._inbox: deque[int] = deque()  # requests routed here, by arrival, behind
        self._head = NOBODY  # the next one that can be served, arrived or not
        self._head_fs = self.next_fs = FOREVER  # when it can be scheduled
        self._first: list[_Entry] = []  # those that wait in front of it
        self._coming: dict[int, int] = {}  # requests of the inbox that were elsewhere: from when they can be scheduled

    def bind(self, table: RequestTable) -> None:
        """Read this table from here on, which holds the same requests."""
        self._arrival_ps = table.views["arrival_ps"]
        self._reject_reason = table.views["reject_reason"]
        self._input = table.views["input_tokens"]
        self._emitted_tokens = table.views["emitted_tokens"]

    def __len__(self) -> int:
        """How many wait, or have yet to arrive."""
        return len(self._first) + (self._head >= 0) + len(self._inbox)

    def submit(self, requests: Sequence[int]) -> None:
        """Take requests, by arrival; of those that were elsewhere, some may come before others that are expected."""
        self.tokens += self.tokens_of(requests)
        if self._coming:
            for request in requests:
                self._insert(request)
        else:
            self._inbox.extend(requests)
        if self._head < 0:
            self._next_head()

    def expect(self, request: int, since_fs: int) -> None:
        """A request that will be submitted was elsewhere, and can be scheduled from `since_fs` on."""
        self._coming[request] = since_fs

    @abstractmethod
    def next_change_fs(self, now_fs: int) -> int:
        """When somebody comes who may be admitted before those that wait now; FOREVER if nobody does."""

    @abstractmethod
    def peek(self, now_fs: int) -> int:
        """Who is admitted next at that time, which is `next_fs` or later."""

    @abstractmethod
    def pop(self) -> None:
        """Take the one that `peek` told out of the queue."""

    @abstractmethod
    def victim(self, running: dict[int, int], now_fs: int) -> int:
        """Who of the running requests, the keys in order of admission, is preempted as the KV cache is full now."""

    @abstractmethod
    def put_back(self, request: int) -> None:
        """A request was preempted."""

    @abstractmethod
    def _waiting_first(self) -> list[int]:
        """Who waits in front of those that have yet to come, the next one first."""

    def waiting(self) -> list[int]:
        """All that wait or have yet to arrive, the next one first."""
        head = [self._head] if self._head >= 0 else []
        return [*self._waiting_first(), *head, *self._inbox]

    def arrive(self, before_fs: int) -> None:
        """Whoever arrives before that time was submitted."""

    def withdraw(self, request: int) -> None:
        """Give up one that has yet to come."""
        self.tokens -= self.tokens_of((request,))
        if request == self._head:
            self._next_head()
        else:
            self._inbox.remove(request)
            del self._coming[request]

    def drain(self) -> list[int]:
        """Give up all that wait, which are returned."""
        drained = self.waiting()
        self._first.clear()
        self._coming.clear()
        self._inbox.clear()
        self._next_head()
        self.tokens = 0
        return drained

    def state(self) -> dict[str, Any]:
        """Who waits, as JSON can hold it."""
        return {
            "_head": self._head,
            "_head_fs": self._head_fs,
            "inbox": list(self._inbox),
            "first": list(self._first),
            "coming": list(self._coming.items()),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self._head, self._head_fs = state["_head"], state["_head_fs"]
        self._inbox = deque(state["inbox"])
        self._first = list(state["first"])
        self.next_fs = 0 if self._first else self._head_fs
        self._coming = dict(state["coming"])
        self.tokens = self.tokens_of(self.waiting())

    def tokens_of(self, requests: Sequence[int]) -> int:
        """Their prompts, and outputs so far."""
        tokens: int = sum(map(self._input.__getitem__, requests)) + sum(map(self._emitted_tokens.__getitem__, requests))
        return tokens

    def _since_fs(self, request: int) -> int:
        """From when on one of the inbox can be scheduled."""
        since_fs: int = self._coming.get(request, self._arrival_ps[request] * FS_PER_PS)
        return since_fs

    def _insert(self, request: int) -> None:
        """Put one into the inbox, behind all that come no later: KV caches that were sent earlier may come after it."""
        since_fs, place = self._since_fs(request), len(self._inbox)
        while place and self._since_fs(self._inbox[place - 1]) > since_fs:
            place -= 1
        if not place and self._head >= 0 and self._head_fs > since_fs:
            self._inbox.appendleft(self._head)
            self._coming[self._head] = self._head_fs
            self._head, self._head_fs = NOBODY, FOREVER
        self._inbox.insert(place, request)

    def _next_head(self) -> None:
        """Find the next request of the inbox that can be served at all; those that cannot are rejected on the way."""
        inbox = self._inbox
        while inbox:
            request = inbox.popleft()
            if self._reject_reason[request] == SERVABLE:
                self._head = request
                if request in self._coming:
                    self._head_fs = self._coming.pop(request)
                else:
                    self._head_fs = self._arrival_ps[request] * FS_PER_PS
                break
            self.tokens -= self.tokens_of((request,))
            self._reject(request)
        else:
            self._head, self._head_fs = NOBODY, FOREVER
        self.next_fs = 0 if self._first else self._head_fs
