"""A router's own record of the requests that it has sent: what of their prompts is to be computed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from pimserve.loadgen.spec import PS_PER_S
from pimserve.scheduler.requests import NEVER, WAITING, RequestTable


class PrefillInFlight:
    """Tokens of prompts that were sent to each replica, and of which no first token has come yet.

    Of a prompt count those that the router took to be computed when it sent it. A server that passes answers on sees
    first tokens, and rejections, when they come.

    Args:
        table: requests of the run, of which it reads when they had their first token, and whether they were rejected.
    """

    def __init__(self, table: RequestTable) -> None:
        self._table = table
        self._waiting: dict[int, tuple[int, int, int, int]] = {}  # by request, as `state` says
        self._tokens: dict[int, int] = {}  # by replica
        self._seen: dict[int, tuple[int, int]] = {}  # by replica: tokens until first tokens, and the time, ps

    def on(self, replica: int) -> int:
        """Tokens in flight there."""
        return self._tokens.get(replica, 0)

    def tokens_per_s(self, replica: int) -> float:
        """Of requests that had their first token there: tokens that were in flight when they were sent, with their own,
        over the time that it took from then on; 0 if there was none yet."""
        tokens, time_ps = self._seen.get(replica, (0, 0))
        return tokens * PS_PER_S / time_ps if time_ps else 0.0

    def sent(self, request: int, replica: int, tokens: int, now_ps: int) -> None:
        """A request is sent there now, with so many tokens to compute; if it was elsewhere, it is there no more."""
        self._over(request)
        if self._table.views["first_token_ps"][request] == NEVER:  # else its cache was lost, and it had one before
            self._tokens[replica] = ahead = self._tokens.get(replica, 0) + tokens
            self._waiting[request] = (replica, tokens, ahead, now_ps)

    def update(self, at_ps: int) -> None:
        """What has come by that time is seen."""
        if not self._waiting:
            return
        requests = np.fromiter(self._waiting, np.int64, len(self._waiting))
        first, status = self._table["first_token_ps"][requests], self._table["status"][requests]
        seen = ((first != NEVER) & (first <= at_ps)) | ((first == NEVER) & (status != WAITING))
        for request, first_ps in zip(requests[seen].tolist(), first[seen].tolist(), strict=True):
            if first_ps != NEVER:
                replica, _, ahead, sent_ps = self._waiting[request]
                tokens, time_ps = self._seen.get(replica, (0, 0))
                self._seen[replica] = (tokens + ahead, time_ps + first_ps - sent_ps)
            self._over(request)

    def requests(self) -> Iterable[int]:
        """Those in flight, of which it will read what came of them."""
        return self._waiting

    def state(self) -> dict[str, Any]:
        """What is in flight, and what was seen, as JSON can hold it.

        By request that waits: its replica, its tokens, those in flight with them, and when it was sent, ps.
        """
        return {"waiting": list(self._waiting.items()), "seen": list(self._seen.items())}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`."""
        self._waiting = {
            request: (replica, tokens, ahead, sent_ps)
            for request, (replica, tokens, ahead, sent_ps) in state["waiting"]
        }
        self._seen = {replica: (tokens, time_ps) for replica, (tokens, time_ps) in state["seen"]}
        self._tokens.clear()
        for replica, tokens, *_ in self._waiting.values():
            self._tokens[replica] = self._tokens.get(replica, 0) + tokens

    def _over(self, request: int) -> None:
        before = self._waiting.pop(request, None)
        if before is not None:
            self._tokens[before[0]] -= before[1]
