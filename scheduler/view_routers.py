"""Routers that see more of the replicas than how many requests they have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pimserve.scheduler.count_routers import LeastOutstanding
from pimserve.scheduler.least_in_turn import LeastInTurn
from pimserve.scheduler.router_protocol import LOAD, SESSION, ReplicaView, RequestView


class LeastTokens(LeastInTurn):
    """The replica with the fewest tokens in flight, prompts and outputs so far; among equals, the next in turn."""

    reason = LOAD

    def route(self, request: RequestView, replicas: Sequence[ReplicaView]) -> int:
        """Fewest tokens."""
        return self.least([replica.tokens_in_flight for replica in replicas])


class LeastKv(LeastInTurn):
    """The replica that uses the smallest share of its KV blocks; among equals, the next in turn.

    It goes by reports alone, as what it sends takes blocks only when it is admitted: between two reports, all requests
    go to one replica, unless several use the same.
    """

    reason = LOAD

    def route(self, request: RequestView, replicas: Sequence[ReplicaView]) -> int:
        """Least use."""
        return self.least([replica.kv_usage for replica in replicas])


class SessionAffinity:
    """The replica of the session's last turn, if it takes requests; of all others that with fewest outstanding."""

    def __init__(self) -> None:
        self.reason = ""
        self._others = LeastOutstanding()
        self._replica_of: dict[int, int] = {}  # sessions

    def state(self) -> dict[str, Any]:
        """Where sessions are, and whose turn it was."""
        return {"turn": self._others.state(), "replicas": list(self._replica_of.items())}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self._others.restore(state["turn"])
        self._replica_of = dict(state["replicas"])

    def route(self, request: RequestView, replicas: Sequence[ReplicaView]) -> int:
        """Where its session is."""
        if request.session is None:
            return self._least(replicas)
        before = self._replica_of.get(request.session)
        for place, replica in enumerate(replicas):
            if replica.replica == before:
                self.reason = SESSION
                return place
        place = self._least(replicas)
        self._replica_of[request.session] = replicas[place].replica
        return place

    def _least(self, replicas: Sequence[ReplicaView]) -> int:
        self.reason = LOAD
        return self._others.pick([replica.outstanding for replica in replicas])
