"""Which prompts are computed on the replicas that decode, though there is a pool for prefill.

The rule is that of NVIDIA Dynamo's conditional disaggregation (`PyDisaggregatedRouter.prefill_remote` in
examples/llm/components/disagg_router.py of ai-dynamo/dynamo, which has the defaults too): a prompt goes to the pool for
prefill if it is longer than `max_local_prefill_tokens`, and fewer requests than `max_prefill_queue_size` wait there.
The queue is that of the whole pool, as its replicas last reported it, and all that were sent there since.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from pimserve.arrays import IntArray
from pimserve.device_models.plan import FS_PER_PS
from pimserve.scheduler.control import ReplicaState
from pimserve.scheduler.departures import Move
from pimserve.scheduler.requests import PREFILL_QUEUE, REMOTE, SERVABLE, SHORT_PROMPT, RequestTable


class ConditionalDisaggSpec(BaseModel):
    """Prompts that are computed where their tokens are generated: short ones, and those that would wait for others.

    Left out: none. Without prefix caching and load shedding.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_local_prefill_tokens: Annotated[int, Field(ge=0, le=2**31 - 1)] = Field(
        1000, description="prompts of up to so many tokens stay on a decode replica"
    )
    max_prefill_queue_size: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = Field(
        2, description="longer ones stay too while as many requests wait for the prefill pool; null: these never do"
    )


class ConditionalDisagg:
    """Decides of each request where its prompt is computed, as it comes.

    One that has tokens already, and comes again as its KV cache was lost, goes to the pool for prefill; one that no
    replica can serve too, which is rejected there.

    Args:
        spec: the rule.
        table: all requests; what was decided is written there.
    """

    def __init__(self, spec: ConditionalDisaggSpec, table: RequestTable) -> None:
        self._spec = spec
        self._table = table
        self.reset()

    def reset(self) -> None:
        """Nobody waits for the pool for prefill."""
        self._queued: dict[int, int] = {}  # by replica, as it last reported
        self._sent = 0  # since

    def reported(self, state: ReplicaState) -> None:
        """How a prefill replica is; all of them report at the same time."""
        self._queued[state.replica] = state.waiting
        self._sent = 0

    def split(self, requests: IntArray, moves: Sequence[Move]) -> tuple[IntArray, tuple[Move, ...], list[Move]]:
        """Who goes to the pool for prefill, and those who do not, from when on they can be scheduled.

        Args:
            requests: all that come, in order of time.
            moves: of those among them that were elsewhere, or have waited.

        Returns:
            Requests for the pool for prefill, those of `moves` among them, and all others.
        """
        since = {move.request: move.since_fs for move in moves}
        arrival = self._table.views["arrival_ps"]
        remote, local = [], []
        for request in requests.tolist():
            self._table["local_prefill"][request] = why = self._why_local(request)
            if why == REMOTE:
                self._sent += 1
                remote.append(request)
            else:
                local.append(Move(request, -1, since.get(request, arrival[request] * FS_PER_PS), 0))
        sent = set(remote)
        return np.array(remote, np.int64), tuple(move for move in moves if move.request in sent), local

    def _why_local(self, request: int) -> int:
        views = self._table.views
        if views["emitted_tokens"][request] or views["reject_reason"][request] != SERVABLE:
            return REMOTE
        if views["input_tokens"][request] <= self._spec.max_local_prefill_tokens:
            return SHORT_PROMPT
        most = self._spec.max_prefill_queue_size
        full = most is not None and sum(self._queued.values()) + self._sent >= most
        return PREFILL_QUEUE if full else REMOTE

    def state(self) -> dict[str, Any]:
        """What it knows of the queue, as JSON can hold it."""
        return {"queued": list(self._queued.items()), "sent": self._sent}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self._queued, self._sent = dict(state["queued"]), state["sent"]
