"""Continuous batching on one replica whose attention is data-parallel: groups with requests of their own.

As vLLM serves it: each group is an engine core with its own queue, token budget, number of sequences and KV cache. A
request joins a group as it arrives (`group_dealing.py`), and stays there. Groups step together, as experts, whom the
tokens of all groups pass, make them wait for each other; they may wait with prompts, too (`attention_dp_balance.py`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from pimserve.device_models.plan import FS_PER_PS
from pimserve.scheduler.attention_dp_balance import AttentionDpBalance
from pimserve.scheduler.config import SchedulerSpec
from pimserve.scheduler.control import ReplicaState
from pimserve.scheduler.costs import GroupLoad, ReplicaCosts
from pimserve.scheduler.departures import Departures, Move
from pimserve.scheduler.engine import SPAN_FS_LIMIT
from pimserve.scheduler.engine_core import EngineCore
from pimserve.scheduler.group_dealing import GroupDealing
from pimserve.scheduler.group_events import GroupEvents
from pimserve.scheduler.kv_cache import KvCache
from pimserve.scheduler.prefix_figures import together
from pimserve.scheduler.queue import ClosedLoop, FcfsQueue
from pimserve.scheduler.queue_classes import QueueClass
from pimserve.scheduler.requests import FOREVER, RequestTable
from pimserve.scheduler.sessions import Sessions
from pimserve.scheduler.spec_decode_figures import drafts_together
from pimserve.scheduler.steplog import StepLog


class DataParallelEngine:
    """One replica, as `Engine` is one, with its arguments.

    Args:
        costs, table, log, closed, concurrency, pool, sessions, classes: as there.
        spec: scheduler settings, whose limits are those of each group.
        kvs: the KV cache of each group, empty.
    """

    def __init__(
        self,
        costs: ReplicaCosts,
        spec: SchedulerSpec,
        *,
        kvs: Sequence[KvCache],
        table: RequestTable,
        log: StepLog,
        closed: Sequence[int] | None = None,
        concurrency: int = 0,
        pool: str = "",
        sessions: Sessions | None = None,
        classes: Sequence[QueueClass] = (QueueClass(),),
    ) -> None:
        self.costs = costs  # of steps from the next one on
        self.clock = 0  # fs; start of the next step
        self.step = 0  # number of the next step
        self._until_fs = FOREVER  # of `advance`
        self._log = log
        self._pool = pool
        self._sessions = sessions
        self.departures = Departures(table, costs.replica)
        self.queue = FcfsQueue(table, self.departures.reject)  # of those that have yet to arrive, or to get a group
        self.cores = [
            EngineCore(
                spec,
                kv=kv,
                table=table,
                log=log,
                departures=self.departures,
                replica=costs.replica,
                seed=costs.seed,
                pool=pool,
                classes=classes,
            )
            for kv in kvs
        ]
        self._queues = [self.queue, *(core.queue for core in self.cores)]
        self._events = GroupEvents(self.cores)
        self._sending: dict[int, list[int]] = {}  # groups that a request was handed over by, while they have its blocks
        self._dealing = GroupDealing(self.queue, self.cores)
        rule = None if pool == "decode" else spec.attention_dp_balance
        self._balance = None if rule is None else AttentionDpBalance(rule, self.cores)
        self._closed: ClosedLoop | None = None
        if closed is not None:
            self._closed = ClosedLoop(closed, self.queue, table, self.departures.reject, log.issued_all)
            for _ in range(concurrency):
                self._closed.issue(0)
        if closed is not None or sessions is not None:
            for core in self.cores:
                core.ended = self._next_comes
        self.use(spec)
        self.bind(table)

    def bind(self, table: RequestTable) -> None:
        """Write into this table from here on, which holds the same requests."""
        self._dealing.bind(table)
        self.departures.bind(table)
        for core in self.cores:
            core.bind(table)
        if self._closed is not None:
            self._closed.bind(table)

    def use(self, spec: SchedulerSpec) -> None:
        """Schedule by these settings from the next step on; policy, block size and admission must stay."""
        for core in self.cores:
            core.admission.use(spec)

    @property
    def steps(self) -> int:
        """How many there were."""
        return self.step

    def next_end_fs(self) -> int:
        """As `Engine.next_end_fs`; who has no group yet may leave with the next step."""
        steps = 1 if len(self.queue) else min([core.steps_to_end() for core in self.cores])
        return min(FOREVER, self.clock + steps * self.costs.least_step_fs)

    def outstanding(self, at_fs: int) -> int:
        """Requests routed here that have not left by `at_fs`; the engine must have been advanced to that time."""
        here = sum(len(core.queue) + len(core.running) for core in self.cores)
        return len(self.queue) + here + (self.departures.last if self.clock > at_fs else 0)

    def seen_at(self, at_fs: int) -> ReplicaState:
        """How the replica is before the next step, at the time to which it was advanced: all groups together."""
        cores, gone = self.cores, self.departures
        late, late_tokens = (gone.freed_last, gone.tokens_last) if self.clock > at_fs else (0, 0)
        blocks, used = (sum(getattr(core.kv, name) for core in cores) for name in ("blocks", "used"))
        decoding, context = (sum(getattr(core.decoding, name) for core in cores) for name in ("count", "context"))
        in_prefill = sum(length for core in cores for length, _ in core.admission.partial.values())
        awaited = sum(core.admission.awaited_blocks(core.queue) for core in cores)
        awaited += cores[0].admission.awaited_blocks(self.queue)
        figures = [each for each in (core.kv.prefix_figures() for core in cores) if each is not None]
        drafts = [each for each in (core.decoding.spec_decode for core in cores) if each is not None]
        return ReplicaState(
            replica=self.costs.replica,
            pool=self._pool,
            up=True,
            clock_fs=self.clock,
            steps=self.steps,
            running=sum(len(core.running) for core in cores),
            waiting=len(self.queue) + sum(len(core.queue) for core in cores),
            decoding=decoding,
            context_tokens=context,
            kv_blocks_used=used,
            kv_blocks=blocks,
            left=gone.count,
            outstanding=self.outstanding(at_fs),
            spare_kv_blocks=blocks - used - late - awaited,
            tokens_in_flight=sum(queue.tokens for queue in self._queues) + in_prefill + context + late_tokens,
            kv_usage=(used + late) / blocks,
            prefix_cache=together(figures) if figures else None,
            spec_decode=drafts_together(drafts) if drafts else None,
            preemptions_by_cause=dict(sum((core.preempted for core in cores), Counter[str]())),
        )

    def arrive(self, before_fs: int) -> None:
        """As `Engine.arrive`: nobody is looked at before a step."""

    def publish(self, *, wanted: bool, of_tiers: bool) -> None:
        """As `KvCache.publish`; there are no tiers."""
        self._events.publish(wanted=wanted)

    def take_events(self) -> list[list[int]]:
        """As `KvCache.take_events`: a block is stored here while any group has it."""
        return self._events.take()

    def in_hand(self) -> list[int]:
        """Requests that are here now: waiting, running or preempted."""
        of_groups = (request for core in self.cores for request in (*core.queue.waiting(), *core.running))
        return [*self.queue.waiting(), *of_groups]

    def expect(self, move: Move) -> None:
        """A request that will be submitted was elsewhere before."""
        self._dealing.expect(move)

    def submit(self, requests: Sequence[int]) -> None:
        """Route requests here, by arrival; none may arrive before those routed here earlier."""
        self.queue.submit(requests)

    def state(self) -> dict[str, Any]:
        """What the engine has in hand, as JSON can hold it; the rows of its requests are not in it."""
        return {
            "clock": self.clock,
            "step": self.step,
            "_issued": 0 if self._closed is None else self._closed.issued,
            "caching": self._events.state(),
            "sending": list(self._sending.items()),
            "balance": None if self._balance is None else self._balance.state(),
            **self.departures.state(),
            **self._dealing.state(),
            "cores": [core.core_state() for core in self.cores],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self.step = state["step"]
        self._events.restore(state["caching"])
        self._sending = {request: list(places) for request, places in state["sending"]}
        if self._closed is not None:
            self._closed.issued = state["_issued"]
        if self._balance is not None:
            self._balance.restore(state["balance"])
        self.departures.restore(state)
        self._dealing.restore(state)
        for core, core_state in zip(self.cores, state["cores"], strict=True):
            core.step = self.step
            core.restore_core(core_state)
        self._at(state["clock"])

    def advance(self, until_fs: int = FOREVER, *, lazily: bool = False) -> int:
        """As `Engine.advance` does."""
        cores = self.cores
        self._until_fs = until_fs
        while self.clock < (until_fs := self._until_fs):
            if self.queue.next_fs <= self.clock:
                self._dealing.deal(self.clock + 1, self.clock)
            if not any(core.running for core in cores):
                next_fs = min(self.queue.next_fs, *(core.queue.next_fs for core in cores))
                if next_fs >= until_fs:
                    return next_fs
                if next_fs > self.clock:
                    self._at(next_fs)
                    self._dealing.deal(next_fs + 1, next_fs)
            if self.clock >= self.costs.ends_fs:
                self._log.use(costs := self.costs.at(self.clock))
                self.costs = costs
            preempted = [core.grow() for core in cores]
            held = self._balance is not None and self._balance.holds(preempted)
            if not held and any(core.has_work for core in cores) and self._prompt_step(preempted):
                continue
            if not any(core.decoding.count for core in cores):  # caches are full of what has not been sent on
                if any(preempted):
                    continue  # what they gave back may do for others
                change_fs = min(self.queue.next_fs, *(core.admission.next_change_fs(self.clock) for core in cores))
                if change_fs >= until_fs:
                    return change_fs
                self._at(change_fs)
                continue
            single = held or any(preempted)
            ends = self._decode_span(until_fs, single=single, whole=lazily and not single)
            if ends > self.clock:
                return ends
        return self.clock

    def release(self, request: int, at_fs: int) -> None:
        """As `Engine.release`; of a request that came again, to whatever group, the KV cache that it left first."""
        first, *others = self._sending.pop(request)
        self.cores[first].kv.sent(request)
        if others:
            self._sending[request] = others
        self._at(max(self.clock, at_fs))

    def revoke(self, request: int) -> None:
        """A request whose KV cache is on its way here does not come."""
        self._dealing.withdraw(request)
        self.departures.count += 1

    def fail(self, at_fs: int) -> int:
        """As `Engine.fail` does, in all groups."""
        first = self.cores[0]
        lost = sum(map(first.brought_tokens, filter(first.admission.brings_kv, self.queue.waiting())))
        running = []
        for core in self.cores:
            lost_here, ran = core.lose()
            lost += lost_here
            running += ran
        self.departures.ended_nobody()
        self._sending.clear()
        self._dealing.gone_last = [0] * len(self.cores)
        self.drain(at_fs, running)
        return lost

    def drain(self, at_fs: int, first: Sequence[int] = ()) -> int:
        """As `Engine.drain` does; nobody has tokens in host memory here."""
        since = max(self.clock, at_fs)
        waiting = [request for core in self.cores for request in core.queue.drain()]
        for request in (*first, *waiting, *self.queue.drain()):
            tokens = (core.admission.token_at_fs.pop(request, 0) for core in self.cores)
            self.departures.lose(request, since, max(self._dealing.token_at_fs.pop(request, 0), *tokens))
        return 0

    def settle(self) -> None:
        """Write down how far requests have come that the end of the run leaves unfinished."""
        for core in self.cores:
            core.settle()

    def _at(self, clock_fs: int) -> None:
        """The next step begins then, in all groups."""
        self.clock = clock_fs
        for core in self.cores:
            core.clock = clock_fs

    def _prompt_step(self, preempted: Sequence[bool]) -> bool:
        """One step with prompts in it; False when none can be computed now."""
        cores, clock = self.cores, self.clock
        loads: list[GroupLoad] = []
        complete: list[list[int]] = []
        for core, short in zip(cores, preempted, strict=True):
            chunks, completed = core.schedule(admit=not short)
            decoding = core.decoding
            outputs = decoding.emits(self.step) + len(completed)
            loads.append(GroupLoad(decoding.count, decoding.context, chunks, outputs))
            complete.append(completed)
        if not any(load.chunks for load in loads):
            return False
        used = sum([core.kv.used for core in cores])
        shape, duration, waited_fs = self.costs.groups_step(self.step, loads)
        self._join(duration)
        self._log.span((*divmod(clock, FS_PER_PS), *shape, used, used, duration))
        self._end_step(1, duration, waited_fs, complete)
        return True

    def _join(self, step_fs: int) -> None:
        for core in self.cores:
            if core.admission.joined:
                core.join(step_fs)

    def _end_step(
        self, steps: int, duration_fs: int, waited_fs: int, complete: Sequence[Sequence[int]] | None = None
    ) -> None:
        """So many steps are over, which took so long: requests that have all their tokens leave.

        `waited_fs`: how long groups waited for the slowest, together. `complete`: of each, whose prompt was computed.
        """
        self._log.waited_fs += waited_fs
        if self._balance is not None:
            self._balance.passed(steps)
        self.clock += duration_fs
        self.step += steps
        self.departures.ended_nobody()
        for place, core in enumerate(self.cores):
            running, moved = len(core.running), len(self.departures.moved)
            core.decoded(steps, self.clock)
            if complete is not None:
                core.complete(complete[place], self.clock - duration_fs)
            for move in self.departures.moved[moved:]:
                self._sending.setdefault(move.request, []).append(place)
            self._dealing.gone_last[place] = running - len(core.running)

    def _next_comes(self, request: int) -> None:
        """As `Engine` does after an end."""
        if self._closed is not None:
            self._closed.issue(self.clock // FS_PER_PS + self.costs.frontend_ps)
        if self._sessions is not None:
            self._until_fs = min(self._until_fs, self._sessions.finished(request, self.clock // FS_PER_PS))

    def _decode_span(self, until_fs: int, *, single: bool, whole: bool) -> int:
        """As `Engine` does, up to the next step in which anything else can happen in any group."""
        cores, step, clock = self.cores, self.step, self.clock
        decoding = [core for core in cores if core.decoding.count]
        most = 1 if single else min([core.decoding.steps_to_change(step) for core in decoding])
        groups = [(core.decoding.count, core.decoding.context) for core in cores]
        paced = self.costs.groups_span(step, groups, most)
        span, steps = paced.span, paced.span.steps
        for core in decoding:
            steps = core.decoding.steps_within(steps, step, core.kv.blocks - core.kv.used)
        duration = span.duration_fs(steps)
        if steps > 1 or whole:
            joins_fs = min(self.costs.ends_fs, *(core.admission.next_change_fs(clock) for core in cores))
            limit_fs = min(joins_fs, until_fs, clock + duration)
            joins_fs = self._dealing.deal_until_one_joins(limit_fs, joins_fs, clock)
            if whole and joins_fs >= until_fs and clock + duration > until_fs:
                for core in decoding:
                    core.kv.used -= core.decoding.growth(step)  # its first step has not grown yet
                return min(joins_fs, self.queue.next_fs, clock + duration)
            limit = min(until_fs, joins_fs) - clock
            if steps > 1 and (duration > limit or duration > SPAN_FS_LIMIT):
                steps, duration = span.first_reaching(min(limit, SPAN_FS_LIMIT), steps, duration)
        self._join(span.duration_fs(1))
        used = sum([core.kv.used for core in cores])
        for core in decoding:
            core.kv.used += core.decoding.blocks_within(steps, step)
        decodes, context = map(sum, zip(*groups, strict=True))
        emits = sum([core.decoding.emits(step) for core in decoding])
        shape = steps, decodes, context, 0, 0, emits, span.busiest_tokens, 0, 0, 0, 0
        slowest = paced.decodes, paced.context, 0, len(cores) * cores[paced.slowest].decoding.emits(step)
        used_last = sum([core.kv.used for core in cores])
        self._log.span((*divmod(clock, FS_PER_PS), *shape, *slowest, used, used_last, duration))
        self._end_step(steps, duration, paced.waited_fs(steps))
        return self.clock
