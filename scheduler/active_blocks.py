"""A router's own record of the KV blocks that prompts fill which it has sent, until they leave."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from pimserve.scheduler.prefix_index import leading
from pimserve.scheduler.requests import NEVER, WAITING, RequestTable


class ActiveBlocks:
    """Blocks of prompts on each replica, those that several requests there begin with counted once.

    Whoever has a block has all before it too, so that those in common are found by halving.

    Args:
        table: requests of the run, of which it reads when they finished, or whether they were rejected.
    """

    def __init__(self, table: RequestTable) -> None:
        self._table = table
        self._sent: dict[int, tuple[int, Sequence[int], int]] = {}  # by request: replica, ids, blocks without an id
        self._known: dict[int, dict[int, int]] = {}  # by replica and id, how many requests have that block
        self._others: dict[int, int] = {}  # by replica, blocks without an id

    def with_prompt(self, replica: int, blocks: Sequence[int], prompt_blocks: int) -> int:
        """Blocks on a replica if a prompt of so many went there, which begins with these."""
        known = self._known.get(replica, {})
        return len(known) + self._others.get(replica, 0) + prompt_blocks - leading(blocks, known)

    def sent(self, request: int, replica: int, blocks: Sequence[int], prompt_blocks: int) -> None:
        """A request is sent there; if it was elsewhere, it is there no more."""
        self._over(request)
        others = prompt_blocks - len(blocks)
        self._sent[request] = (replica, blocks, others)
        known = self._known.setdefault(replica, {})
        for block in blocks:
            known[block] = known.get(block, 0) + 1
        self._others[replica] = self._others.get(replica, 0) + others

    def update(self, at_ps: int) -> None:
        """Who has left by that time is seen."""
        if not self._sent:
            return
        requests = np.fromiter(self._sent, np.int64, len(self._sent))
        finish, status = self._table["finish_ps"][requests], self._table["status"][requests]
        for request in requests[(status != WAITING) & ((finish == NEVER) | (finish <= at_ps))].tolist():
            self._over(request)

    def requests(self) -> Iterable[int]:
        """Those that have not left, as far as was seen."""
        return self._sent

    def state(self) -> list[Any]:
        """Who is where, as JSON can hold it."""
        return [[request, replica, list(blocks), others] for request, (replica, blocks, others) in self._sent.items()]

    def restore(self, state: Sequence[Any]) -> None:
        """Go on from `state`."""
        for request, replica, blocks, others in state:
            self.sent(request, replica, blocks, len(blocks) + others)

    def _over(self, request: int) -> None:
        before = self._sent.pop(request, None)
        if before is None:
            return
        replica, blocks, others = before
        known = self._known[replica]
        for block in blocks:
            if known[block] == 1:
                del known[block]
            else:
                known[block] -= 1
        self._others[replica] -= others
