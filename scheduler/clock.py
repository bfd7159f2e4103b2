"""Simulated time of a run: which requests arrive in a window, where they go, and when the window ends.

The clock gives every shard an order per window and takes its report. Where windows end changes no bit of the result,
with one exception that belongs to the scenario: a router with a report interval sees the replicas as they were at the
last multiple of it (and what it has sent since), as routers of real clusters do. Without one it sees their exact state
at each arrival, for which all replicas have to be in one shard.

Where prefill and decode have replicas of their own, all of the former go through a window first, and what they hand
over is known when the latter do (`pool_orders.py`). Faults end windows, and take effect at the step boundary that
follows, up to which their replica is run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from pimserve.arrays import IntArray
from pimserve.device_models.plan import FS_PER_PS, FS_PER_S
from pimserve.scheduler.clients import Clients
from pimserve.scheduler.commands import Commands, Journal
from pimserve.scheduler.config import SchedulerSpec
from pimserve.scheduler.control import Control, ReplicaState, RunView
from pimserve.scheduler.departures import Move
from pimserve.scheduler.exact_routing import check_shards
from pimserve.scheduler.faults import Faults
from pimserve.scheduler.fleet import DECODE, PREFILL, Fleet
from pimserve.scheduler.handover import Handovers
from pimserve.scheduler.open_loop import Arrivals
from pimserve.scheduler.outcomes import cut_off
from pimserve.scheduler.pool_orders import PoolOrders
from pimserve.scheduler.request_numbers import RequestNumbers
from pimserve.scheduler.requests import FINISHED, FOREVER, RequestTable
from pimserve.scheduler.sessions import Sessions
from pimserve.scheduler.shard_port import NONE, Order, Report, ShardPort
from pimserve.scheduler.window import MeasuredWindow
from pimserve.scheduler.window_length import WindowLength

_LONGEST_FS = 10**6 * FS_PER_S  # a window


class Clock:
    """Drives the shards of a run from window to window.

    Args:
        fleet: the replicas.
        table: all requests, by arrival.
        shards: every replica is in one of them.
        faults: what happens to the replicas.
        stop_fs: no step starts at or after this time.
        report_fs: report interval of a router that looks at replicas; 0: exact state.
        control: watches and changes the run.
        journal: keeps its commands.
        clients: send requests when others have ended; None: all arrive at times of their own, or engines send them.
        checkpoint: called between windows; decides itself whether it is time to write one.
        window_wall_s: without a control, windows are made to last about this long; None: as long as possible.
        progress: called now and then with the number of requests that have left.
        flush: shards hand on executed steps at each window's end.
    """

    def __init__(
        self,
        fleet: Fleet,
        table: RequestTable,
        shards: Sequence[ShardPort],
        faults: Faults,
        *,
        stop_fs: int = FOREVER,
        report_fs: int = 0,
        clients: Clients | None = None,
        control: Control | None = None,
        journal: Journal | None = None,
        checkpoint: Callable[[Clock], None] | None = None,
        window_wall_s: float | None = None,
        progress: Callable[[int], None] | None = None,
        flush: bool = False,
    ) -> None:
        self.fleet = fleet
        self.table = table
        self.shards = shards
        self._by_reports = report_fs > 0 and not all(shard.writes_table for shard in shards)  # a router hears of tokens
        self.stop_fs = stop_fs
        self.report_fs = report_fs
        self.control = control
        self._journaled = journal is not None
        self.checkpoint = checkpoint
        self.progress = progress
        self.flush = flush
        self.faults = faults
        self._over = False  # nothing was left to happen when the state was kept from which this goes on
        self._entry = fleet.pools[0].numbers  # replicas that the router sends requests to
        self._pools = None if fleet.link is None else PoolOrders(fleet, fleet.link, faults, table)
        self.handovers: Handovers | None = None if self._pools is None else self._pools.handovers
        self.arrivals = Arrivals(table, fleet, stop_fs, clients)
        self._bounds = clients.bounds if isinstance(clients, Sessions) else None
        self.now_fs = self._left = 0
        self.window = 0  # windows that have ended
        closed = fleet.concurrency is not None or (clients is not None and clients.closed)
        self.commands = Commands(fleet, table, self.arrivals, shards, journal=journal, closed=closed)
        self._length = None if window_wall_s is None else WindowLength(window_wall_s, FS_PER_S, FS_PER_PS, _LONGEST_FS)
        self._states: list[ReplicaState | None] = [None] * fleet.replicas
        self._quiet_fs = FOREVER  # before this time nothing ends, given what had arrived by the end of the last window
        self._reported_fs = 0  # the last report before the window
        check_shards(fleet.spec, len(shards))

    @property
    def _exact(self) -> bool:
        """Whether requests are routed one by one from exact state."""
        return self.arrivals.looks and not self.report_fs and self.fleet.concurrency is None

    def run(self) -> None:
        """Serve all requests, or until `stop_fs`."""
        self.commands.begin(self.now_fs)
        while True:
            end = self._window_end()
            last = end >= self.stop_fs
            began, steps = time.perf_counter(), self._steps()
            left = self._advance(end, last=last)
            if self._length is not None:
                self._length.lasted(time.perf_counter() - began, self._steps() - steps)
            self.now_fs = end
            self.window += 1
            self.commands.changed = False
            if self.progress is not None:
                self.progress(self._left)
            if last:
                if self.fleet.concurrency is None:
                    left = np.concatenate([left, self.table.reject_unseen()])
                if self.control is not None:
                    steps_fs = max(ledger.clock_fs for shard in self.shards for ledger in shard.ledgers())
                    self.control.ended(self._view(left, self.end_fs(steps_fs)))
                return
            self.commands.replay(self.now_fs)
            if self.control is not None:
                self.control.barrier(self._view(left, self.now_fs))
            if self.checkpoint is not None:
                self.checkpoint(self)

    def latest_fs(self) -> int:
        """The latest time that any replica has reached."""
        return max([self.now_fs, *(shard.latest_fs() for shard in self.shards)])

    def end_fs(self, steps_fs: int) -> int:
        """When a run ended whose last step ended at `steps_fs`.

        Requests that are left waited on without a step: until the run was stopped, or until the last one had arrived.
        """
        if not len(cut_off(self.table.columns)):
            return steps_fs
        stopped = self.stop_fs < FOREVER
        return max(steps_fs, self.stop_fs if stopped else int(self.table["arrival_ps"].max()) * FS_PER_PS)

    def states(self) -> list[ReplicaState]:
        """State of every replica at the end of the last window."""
        return [state for state in self._states if state is not None]

    def _steps(self) -> int:
        return sum(state.steps for state in self.states())

    def state(self) -> dict[str, Any]:
        """Where the clock is, as JSON can hold it, but for table and shards."""
        return {
            "now_fs": self.now_fs,
            "window": self.window,
            "spec": self.commands.spec.model_dump(mode="json"),
            "length_fs": FS_PER_S if self._length is None else self._length.length_fs,
            "changed": self.commands.changed,
            "left": self._left,
            "numbers": self.table.numbers.state(),
            **self.arrivals.state(),
            "pools": None if self._pools is None else self._pools.state(),
            "faults": self.faults.state() if self.faults.any else None,
            "quiet_fs": self._quiet_fs,
            "over": bool(self.window) and not self._more(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self.now_fs, self.window = state["now_fs"], state["window"]
        self.commands.spec = SchedulerSpec.restored(state["spec"])
        self.arrivals.restore(state, self.commands.spec)
        if self._length is not None:
            self._length.length_fs = state["length_fs"]
        self.commands.changed = state["changed"]
        self.table.numbers = RequestNumbers.of_state(len(self.table), state["numbers"])
        if self._pools is not None:
            self._pools.restore(state["pools"])
        self.faults.restore(state["faults"])
        self._left, self._quiet_fs, self._over = state["left"], state["quiet_fs"], state["over"]

    def _window_end(self) -> int:
        """When the next window ends; `stop_fs` at the latest."""
        if not self._in_windows():
            return self.stop_fs
        end, clients = self.stop_fs, self.arrivals.clients
        if (fault_fs := self.faults.next_fs) is not None:  # it does not count if the run turns out to be over before
            end = min(end, fault_fs - 1 if fault_fs > self.now_fs + 1 else fault_fs)
        if self.control is not None:
            end = min(end, max(self.control.next_barrier_fs(self.now_fs), self.now_fs + 1))
        elif self._length is not None:
            end = min(end, self.now_fs + self._length.length_fs)
        if (told_fs := self.commands.next_fs(self.now_fs)) is not None:
            end = min(end, told_fs)
        reports = self.report_fs > 0 and (self.arrivals.looks or self.handovers is not None)
        if reports:
            self._reported_fs = self.now_fs // self.report_fs * self.report_fs
        if clients is not None:  # before anyone asks who arrives next
            clients.settle(self._answer_ps(self._known_fs(end) // FS_PER_PS))
        if reports:
            reported = self._after_idle() // self.report_fs * self.report_fs
            end = min(end, reported + self.report_fs)
            if self.now_fs < reported <= end:
                self._skip_reports(reported)
        return end if clients is None else self._safe(clients, end)

    def _known_fs(self, end_fs: int) -> int:
        """The time, at most about `end_fs`, before which all ends are known.

        Others come after the window's beginning, after the first arrival in it, or when the replicas say. Between pools
        a report lets some go on, and any command may.
        """
        ends_fs = [self._quiet_fs - 1, end_fs]  # somebody may end at that very time
        if self.faults.takers(self._entry):
            ends_fs += [at for at in (self.arrivals.next_fs, self.arrivals.again_fs) if at is not None]
        if self.handovers is not None:
            ends_fs.append(self.handovers.next_fs(self.now_fs))
        if (self.commands.changed or self.handovers is not None) and self._busy():
            now = self.commands.changed or self.now_fs == self._reported_fs
            ends_fs.append(self.now_fs if now else self._reported_fs + self.report_fs)
        return max(min(ends_fs), self.now_fs) + 1

    def _safe(self, clients: Clients, end_fs: int) -> int:
        """The time, at most `end_fs`, before which all arrivals are known."""
        known_fs = self._known_fs(end_fs)
        if (first_fs := self.arrivals.next_fs) is not None:
            known_fs = max(min(known_fs, first_fs + 1), self.now_fs + 1)
        known_ps = self._answer_ps(known_fs // FS_PER_PS)
        return min(end_fs, clients.safe_ps(known_ps, self.arrivals.next, -(-end_fs // FS_PER_PS)) * FS_PER_PS)

    def _answer_ps(self, finish_ps: int) -> int:
        """When whoever sends the next request after one that finished then reaches the router, but for a think time.

        Ends are known to the picosecond, of which this is the end.
        """
        return finish_ps + self.fleet.pools[0].plan.frontend_ps + 1

    def _skip_reports(self, until_fs: int) -> None:
        """Nothing happens until this report: those before it, and it, would all say that nothing is there."""
        self._reported_fs = until_fs
        self.arrivals.reset()
        if self._pools is not None:
            self._pools.reset()

    def _in_windows(self) -> bool:
        """Whether another window is wanted: something is left to happen, and somebody wants to see it in windows."""
        watched = self.control is not None or self._length is not None or self._journaled
        reported = self.report_fs > 0 and self.arrivals.looks and self.arrivals.next_fs is not None
        dependent = self.arrivals.clients is not None
        if not watched and not reported and not dependent and self.handovers is None and not self.faults.any:
            return False
        replays = self.commands.next_fs(self.now_fs) is not None
        return not self.window or replays or (not self._over and self._more())

    def _more(self) -> bool:
        """Whether anything is left to happen to any request, or to a replica before the run ends."""
        if self._unserved():
            return True
        if self.faults.next_fs is None:
            return False
        # A fault counts that comes by the end of the last step, as that is a step boundary too, or of waiting in vain.
        steps_fs = max(0 if state is None else state.clock_fs for state in self._states)
        return self.faults.next_fs <= self.end_fs(steps_fs)

    def _unserved(self) -> bool:
        """Whether anything is left to happen to any request."""
        if self._at_work() or (self._pools is not None and self._pools.to_hand_over):
            return True
        # In a closed loop every client has a request at work until the last one has left.
        to_come = self.fleet.concurrency is None and self.arrivals.left
        return (to_come or self.arrivals.waiting) and self.faults.any_left(self._entry)

    def _busy(self) -> bool:
        between = self.handovers is not None and (self.handovers.waiting > 0 or self.handovers.releases)
        return between or self.arrivals.waiting or self._at_work()

    def _at_work(self) -> bool:
        full = self._pools is not None and self._pools.full_for_good

        def waits_in_vain(state: ReplicaState) -> bool:
            return full and state.pool == PREFILL and state.clock_fs < self.now_fs

        return any(
            state is None or state.running or (state.waiting and not waits_in_vain(state)) for state in self._states
        )

    def _after_idle(self) -> int:
        """Now, or when the next request arrives if nothing happens until then."""
        arrives_fs = self.arrivals.next_fs
        last_step = any(state is not None and state.clock_fs > self.now_fs for state in self._states)  # is under way
        if not self.window or self._busy() or last_step or arrives_fs is None:
            return self.now_fs
        return max(self.now_fs, arrives_fs)

    def _advance(self, end: int, *, last: bool) -> IntArray:
        """Run a window that ends at `end`; returns the requests that finished or were rejected."""
        self._over = False
        conditions = () if end >= self.stop_fs else self.faults.due(end)
        targets, requests = self.faults.takers(self._entry), NONE
        moves: tuple[Move, ...] = ()
        if self.fleet.concurrency is None:
            requests, moves = self.arrivals.due(end, held=not targets)
            if self._pools is not None:
                requests, moves = self._pools.for_prefill(requests, moves)
        order = Order(
            self.window,
            end,
            requests,
            NONE if self._exact else self.arrivals.route(requests, targets, moves),
            last=last,
            spec=self.commands.spec if self.commands.changed else None,
            flush=self.flush,
            moves=moves,
            targets=None if len(targets) == len(self._entry) else tuple(targets),
            shown=self._shown(end),
            exact=self.faults.decides_at(end),
            first_tokens=bool(self.faults.slo_metrics) or (self._by_reports and self.arrivals.follows),
            sessions=self.arrivals.sessions_of(requests) if self._exact else (),
            conditions=conditions,
        )
        if self._bounds is not None:
            self._bounds.place(order.requests, order.replicas)
        if self._pools is None:
            return self._take(order, self._carry_out(order, self.shards))
        most = self.commands.spec.max_num_seqs
        return self._take(order, *self._pools.carry_out(order, self.shards, self._carry_out, self._reported_fs, most))

    def _shown(self, end_fs: int) -> bool:
        """Whether somebody comes, or may come, for whom the router looks at what replicas report then."""
        may_come = self.arrivals.next_fs is not None or self.arrivals.clients is not None or self.faults.any
        return may_come and self.arrivals.views and self.report_fs > 0 and not end_fs % self.report_fs

    def _carry_out(self, order: Order, shards: Sequence[ShardPort]) -> list[Report]:
        """Give each shard its part of an order; returns what they report."""
        for shard in shards:
            whole = len(self.shards) == 1  # pragma: no mutate (the part is the whole then)
            shard.send(order if whole else order.part(shard.replicas))
        return [shard.receive() for shard in shards]

    def _take(self, order: Order, reports: Sequence[Report], lost_on_the_way: Sequence[Move] = ()) -> IntArray:
        """Take over what the shards report at the window's end; returns the requests that finished or were rejected."""
        seen = not self.report_fs or order.until_fs % self.report_fs == 0  # by the router
        self.faults.took_effect(order.conditions, [effect for report in reports for effect in report.effects])
        for report in reports:
            self.arrivals.heard(report, order.until_fs, seen=seen)
            for state in report.states:
                up = self.faults.conditions[state.replica].up
                self._states[state.replica] = state if up else replace(state, up=False)
                if self._bounds is not None:
                    self._bounds.heard(state)
                if seen and self._pools is not None:
                    self._pools.reported(state)
                if seen and state.pool != DECODE:
                    self.arrivals.reported(state)
        for move in (*(move for report in reports for move in report.lost), *lost_on_the_way):
            self.arrivals.come_again(move, self.faults.requeue(move))
        left = np.concatenate([report.ended for report in reports])
        for metric in self.faults.slo_metrics:
            metric.heard(self.table, np.concatenate([report.first_tokens for report in reports]), left)
        self.faults.seen(order.until_fs, self.states())
        self._left += len(left)
        self._quiet_fs = min(report.quiet_fs for report in reports)
        if (clients := self.arrivals.clients) is not None and not clients.here:
            finish = self.table["finish_ps"]
            for request in left[self.table["status"][left] == FINISHED].tolist():
                clients.answered(request, self._answer_ps(int(finish[request])))
        return left

    def _view(self, left: IntArray, now_fs: int) -> RunView:
        """The run as it may be seen and changed."""
        closed = self.fleet.concurrency is not None
        return RunView(
            now_fs=now_fs,
            window=self.window,
            arrived=int((self.table["arrival_ps"] >= 0).sum()) if closed else self.arrivals.arrived(now_fs),
            table=self.table,
            left=left,
            replicas=self.states(),
            apply=partial(self.commands.take, now_fs=self.now_fs),
            ledgers=lambda: self.faults.ledgers([shard.ledgers() for shard in self.shards], self.states(), now_fs),
            measured=MeasuredWindow(*self.fleet.window_fs, closed=closed),
            clients=self.arrivals.clients,
            decisions=self.arrivals.decisions,
        )
