"""An engine in front of whose queue requests are judged as they arrive: taken, or rejected (`load_shedding.py`)."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import astuple
from typing import Any

from pimserve.device_models.plan import FS_PER_PS
from pimserve.scheduler.control import ReplicaState
from pimserve.scheduler.departures import Move
from pimserve.scheduler.engine import Engine
from pimserve.scheduler.load_shedding import LoadShedding
from pimserve.scheduler.requests import FOREVER, SERVABLE, RequestTable
from pimserve.scheduler.steplog import SpanColumns

_PREFILL_TOKENS = SpanColumns._fields.index("prefill_tokens")


class SheddingEngine(Engine):
    """Brings itself to each arrival, as a router does that sees replicas as they are, and judges the request there.

    Nothing that is judged by changes while requests decode, so that spans need not be cut. Requests that were taken
    once, and come from a replica that failed, are not judged again. Those that only waited for a replica are
    judged when they come to one.

    Args:
        engine: as `Engine`.
        shedding: judges.
    """

    def __init__(self, *engine: Any, shedding: LoadShedding, **settings: Any) -> None:  # noqa: ANN401 the base class's
        self._shedding = shedding
        self._pending: deque[tuple[int, int]] = deque()  # who has not been judged: (when it comes, fs; request)
        self._moved: dict[int, Move] = {}  # requests to come that were elsewhere, or waited for a replica
        self._hit_tokens = 0  # of the prefix cache, as far as the rate has them
        super().__init__(*engine, **settings)
        self._span = self._see

    def bind(self, table: RequestTable) -> None:
        """Write into this table from here on, which holds the same requests."""
        super().bind(table)
        self._arrival_ps, self._class_id = table.views["arrival_ps"], table.views["class_id"]
        self._reject_reason = table.views["reject_reason"]

    def in_hand(self) -> list[int]:
        """Requests that are here now: waiting, running or preempted."""
        return [*super().in_hand(), *(request for _, request in self._pending)]

    def expect(self, move: Move) -> None:
        """A request that will be submitted was elsewhere, or waited for a replica, before."""
        self._moved[move.request] = move

    def submit(self, requests: Sequence[int]) -> None:
        """Requests will come, by arrival."""
        for request in requests:
            move = self._moved.get(request)
            at_fs = self._arrival_ps[request] * FS_PER_PS if move is None else move.since_fs
            self._pending.append((at_fs, request))

    def advance(self, until_fs: int = FOREVER, *, lazily: bool = False) -> int:
        """As `Engine.advance`; who comes until then is judged, at that very time too."""
        pending = self._pending
        while pending and pending[0][0] < until_fs:
            quiet_fs = super().advance(pending[0][0], lazily=True)
            if self.paused:
                return quiet_fs
            self._judge(*pending.popleft())
        quiet_fs = super().advance(until_fs, lazily=lazily)
        if not self.paused:
            self.arrive(until_fs + 1)
        return min(quiet_fs, pending[0][0]) if pending else quiet_fs

    def arrive(self, before_fs: int) -> None:
        """Whoever arrives before that time, to which the engine was advanced, is judged."""
        self._judge_until(before_fs)
        super().arrive(before_fs)

    def next_end_fs(self) -> int:
        """As `Engine.next_end_fs`; who has not been judged may be rejected when it comes."""
        end_fs = super().next_end_fs()
        return min(end_fs, self._pending[0][0]) if self._pending else end_fs

    def seen_at(self, at_fs: int) -> ReplicaState:
        """As `Engine.seen_at`; who has come by then is judged first, and so is seen while a step is under way too."""
        self._judge_until(at_fs + 1)
        return super().seen_at(at_fs)

    def drain(self, at_fs: int, first: Sequence[int] = ()) -> int:
        """Requests that wait, or have not been judged, have to be served by another replica."""
        lost = super().drain(at_fs, first)
        while self._pending:
            request = self._pending.popleft()[1]
            move = self._moved.get(request)
            self.departures.lose(request, max(self.clock, at_fs), 0 if move is None else move.token_fs)
        self._moved.clear()
        return lost

    def state(self) -> dict[str, Any]:
        """What the engine has in hand, as JSON can hold it."""
        rate = self._shedding.rate
        return {
            **super().state(),
            "shed_pending": list(self._pending),
            "shed_moved": [astuple(move) for move in self._moved.values()],
            "shed_rate": [rate.seen, rate.last, self._hit_tokens],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        super().restore(state)
        self._pending = deque((at_fs, request) for at_fs, request in state["shed_pending"])
        self._moved = {move[0]: Move(*move) for move in state["shed_moved"]}
        rate = self._shedding.rate
        rate.seen, rate.last, self._hit_tokens = state["shed_rate"]

    def _judge_until(self, before_fs: int) -> None:
        while self._pending and self._pending[0][0] < before_fs:
            self._judge(*self._pending.popleft())

    def _judge(self, at_fs: int, request: int) -> None:
        """A request comes, at that time; all steps that begin before it were run."""
        move, loading = self._moved.pop(request, None), self.admission.loading
        if move is None or move.replica < 0:
            ahead = sum(length - computed for length, computed in self.admission.partial.values())
            ahead += self.admission.loading_tokens() - sum(there for _, _, there in loading)
            reason = self._reject_reason[request] or self._shedding.judge(
                self._class_id[request],
                self._input[request],
                len(self.queue) + len(loading),
                self.queue.tokens + ahead,
                waited_fs=at_fs - self._arrival_ps[request] * FS_PER_PS,
                under_way=self.clock > at_fs,
            )
            if reason != SERVABLE:
                self._reject_reason[request] = reason
                self.departures.reject(request)
                return
        if move is not None:
            super().expect(move)
        self.queue.submit((request,))

    def _see(self, row: tuple[int, ...]) -> None:
        """A span of steps goes into the log."""
        tokens = row[_PREFILL_TOKENS]
        # Of a request whose blocks are still being loaded, hits count with the next prompts that are computed.
        if tokens and (found := self.kv.prefix_figures()) is not None:
            hits = found.hit_tokens + found.preempted_hit_tokens
            tokens, self._hit_tokens = tokens + hits - self._hit_tokens, hits
        self._shedding.rate.step(tokens, row[-1])
        self._log.span(row)
