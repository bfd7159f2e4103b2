"""Requests that leave a replica: they finish, are rejected, or go on elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pimserve.device_models.plan import FS_PER_PS
from pimserve.scheduler.requests import FINISHED, REJECTED, RequestTable


@dataclass(frozen=True, slots=True)
class Move:
    """A request that goes from one replica to another.

    Args:
        request: its number.
        replica: where it was; -1 for a request that has only waited for a replica.
        since_fs: when it left there; when it can be scheduled, for the replica that it goes to.
        token_fs: when it had its last token, if it had any.
        computing_fs: of one that is handed over, when the step began that computed the last of its prompt.
    """

    request: int
    replica: int
    since_fs: int
    token_fs: int
    computing_fs: int = 0


class Departures:
    """Who has left one replica.

    Args:
        table: requests of the run; how they left is written there.
        replica: number of the replica.
    """

    def __init__(self, table: RequestTable, replica: int) -> None:
        self._replica = replica
        self.bind(table)
        self.count = 0  # requests that have left, of which
        self.last = 0  # at the end of the last step
        self.freed_last = 0  # KV blocks that came free then
        self.tokens_last = 0  # prompts and outputs of those that left then
        self.left: list[int] = []  # requests that are here no more, for whoever collects them, of which
        self.moved: list[Move] = []  # these are handed over to another replica
        self.lost: list[Move] = []  # and these have to be served by another from where they are
        self.first_tokens: list[int] | None = None  # requests that had theirs, for whoever collects them; None: nobody

    def bind(self, table: RequestTable) -> None:
        """Write into this table from here on, which holds the same requests."""
        self._input = table.views["input_tokens"]
        self._output = table.views["output_tokens"]
        self._emitted_tokens = table.views["emitted_tokens"]
        self._finish_ps = table.views["finish_ps"]
        self._replica_of = table.views["replica"]
        self._status = table.views["status"]

    def ended_nobody(self) -> None:
        """A step ends, or has been lost: who leaves then is counted anew."""
        self.last = self.freed_last = self.tokens_last = 0

    def finish(self, request: int, at_fs: int, freed_blocks: int, tokens: int) -> None:
        """A request has all its tokens: so many, with its prompt."""
        self._finish_ps[request] = at_fs // FS_PER_PS
        self._emitted_tokens[request] = self._output[request]
        self._status[request] = FINISHED
        self.freed_last += freed_blocks
        self.tokens_last += tokens
        self.last += 1
        self.count += 1
        self.left.append(request)

    def reject(self, request: int) -> None:
        """A request cannot be served."""
        self._status[request] = REJECTED
        self._replica_of[request] = self._replica
        self.count += 1
        self.left.append(request)

    def hand_over(self, request: int, at_fs: int, emitted: int, computing_fs: int) -> None:
        """A request goes on elsewhere after its last token here, of the step that began at `computing_fs`."""
        self._emitted_tokens[request] = emitted
        self.moved.append(Move(request, self._replica, at_fs, at_fs, computing_fs))
        self.tokens_last += self._input[request] + emitted
        self.last += 1
        self.count += 1
        self.left.append(request)

    def lose(self, request: int, since_fs: int, token_fs: int) -> None:
        """A request has to be served elsewhere from where it is."""
        self.lost.append(Move(request, self._replica, since_fs, token_fs))
        self.count += 1
        self.left.append(request)

    def collected(self) -> None:
        """Somebody has taken note of all who are in `left`, `moved`, `lost` and `first_tokens`."""
        self.left.clear()
        self.moved.clear()
        self.lost.clear()
        if self.first_tokens is not None:
            self.first_tokens.clear()

    def state(self) -> dict[str, Any]:
        """How many have left, as JSON can hold it; nobody must be waiting to be collected."""
        return {"finished": self.count, "last": [self.last, self.freed_last, self.tokens_last]}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`, whatever a fresh replica has rejected."""
        self.collected()
        self.count = state["finished"]
        self.last, self.freed_last, self.tokens_last = state["last"]
