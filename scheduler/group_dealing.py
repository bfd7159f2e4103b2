"""Which data-parallel group of a replica a request joins: that with the least of waiting x 4 + running, as in vLLM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pimserve.device_models.plan import FS_PER_PS
from pimserve.scheduler.departures import Move
from pimserve.scheduler.engine_core import EngineCore
from pimserve.scheduler.queue import FcfsQueue
from pimserve.scheduler.requests import RequestTable

WAITING_WEIGHT = 4  # of one that waits, as vLLM weighs it against one that runs


class GroupDealing:
    """Gives each request, when it arrives, to a group.

    Args:
        queue: those that have yet to arrive, or to get a group.
        cores: the groups.
    """

    def __init__(self, queue: FcfsQueue, cores: Sequence[EngineCore]) -> None:
        self.queue = queue
        self._cores = cores
        self.gone_last = [0] * len(cores)  # of each group, requests that left at the end of the last step
        self.token_at_fs: dict[int, int] = {}  # of those in `queue` that were elsewhere after their first token

    def bind(self, table: RequestTable) -> None:
        """Read this table from here on, which holds the same requests."""
        self._emitted_tokens = table.views["emitted_tokens"]
        self.queue.bind(table)

    def expect(self, move: Move) -> None:
        """A request that will be submitted was elsewhere before."""
        self.queue.expect(move.request, move.since_fs)
        if self._emitted_tokens[move.request]:
            self.token_at_fs[move.request] = move.token_fs

    def withdraw(self, request: int) -> None:
        """Give up one that has yet to come, and was elsewhere after its first token."""
        self.queue.withdraw(request)
        del self.token_at_fs[request]

    def deal(self, before_fs: int, now_fs: int) -> None:
        """Give all that arrive before that time, while groups are as they are now, a group each."""
        queue = self.queue
        while (since_fs := queue.next_fs) < before_fs:
            request = queue.peek(since_fs)
            core = self._least_loaded(since_fs, now_fs)
            queue.pop()
            queue.tokens -= queue.tokens_of((request,))
            core.queue.expect(request, since_fs)
            if request in self.token_at_fs:
                core.admission.token_at_fs[request] = self.token_at_fs.pop(request)
            core.queue.submit((request,))

    def deal_until_one_joins(self, limit_fs: int, joins_fs: int, now_fs: int) -> int:
        """Give those that arrive before `limit_fs`, until when nothing changes, a group each: up to one who may join.

        Returns when that one comes, else `joins_fs`.
        """
        queue = self.queue
        while (since_fs := queue.next_fs) < limit_fs:
            if self._least_loaded(since_fs, now_fs).admission.open(now_fs):
                return since_fs
            self.deal(since_fs + 1, now_fs)
        return joins_fs

    def _least_loaded(self, since_fs: int, now_fs: int) -> EngineCore:
        """The group that a request joins which comes then; those who leave in the same picosecond have left."""
        under_way = now_fs // FS_PER_PS > since_fs // FS_PER_PS
        loads = [
            WAITING_WEIGHT * len(core.queue) + len(core.running) + (gone if under_way else 0)
            for core, gone in zip(self._cores, self.gone_last, strict=True)
        ]
        return self._cores[loads.index(min(loads))]

    def state(self) -> dict[str, Any]:
        """Who has yet to arrive, as JSON can hold it."""
        return {"gone_last": self.gone_last, "token_at": list(self.token_at_fs.items()), **self.queue.state()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self.gone_last, self.token_at_fs = list(state["gone_last"]), dict(state["token_at"])
        self.queue.restore(state)
