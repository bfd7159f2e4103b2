"""Continuous batching on one replica, in simulated time.

Every decoding request gains one token a step, so the engine keeps only sums over them (how many, their contexts, how
many cross a KV block in which step) and a heap of the steps in which they finish. Work per request is done when it
is admitted, has a chunk of its prompt computed, is preempted or finishes; a stretch of steps in which nothing of that
happens (a span) is advanced in closed form. All arithmetic is on integers, so that a span has exactly the bits of
its steps summed one by one.

Where prefill and decode have replicas of their own, a request leaves the one after its first token, its KV blocks when
they have been sent on, and joins the decoding requests of the other without any prompt to compute. One that comes back,
as its KV cache was lost there, has a prompt of all its tokens, and leaves again with the next one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from pimserve.device_models.evaluate import Span
from pimserve.device_models.plan import FS_PER_PS
from pimserve.scheduler.config import SchedulerSpec
from pimserve.scheduler.control import ReplicaState
from pimserve.scheduler.costs import ReplicaCosts
from pimserve.scheduler.departures import Departures, Move
from pimserve.scheduler.engine_core import EngineCore
from pimserve.scheduler.growth_times import grow_by_step
from pimserve.scheduler.kv_cache import KvCache
from pimserve.scheduler.queue import ClosedLoop
from pimserve.scheduler.queue_classes import QueueClass
from pimserve.scheduler.requests import FOREVER, RequestTable
from pimserve.scheduler.sessions import Sessions
from pimserve.scheduler.steplog import StepLog

SPAN_FS_LIMIT = 2**60  # a log row's time must fit 64 bit


class _Left(NamedTuple):
    """A span of decode steps that was not run, as it would end too late; as often as not, nothing changes meanwhile.

    `of`: what it follows from.
    """

    of: tuple[ReplicaCosts, int, int, int, int, int]
    span: Span
    steps: int
    duration_fs: int


class Engine(EngineCore):
    """One replica.

    Args:
        costs: what steps cost here.
        spec: scheduler settings.
        kv: the KV cache, empty.
        table: requests of the run; the engine writes its own rows.
        log: takes executed steps.
        closed: in a closed loop, the requests that this replica's clients issue, each when another leaves.
        concurrency: how many of those are issued at time 0.
        pool: "prefill": requests leave after their first token; "decode": they come with their KV cache; "": neither.
        sessions: told of ends here, where others may follow on these; None: whoever follows is submitted as any other.
        classes: of requests, as queues know them.
    """

    def __init__(
        self,
        costs: ReplicaCosts,
        spec: SchedulerSpec,
        *,
        kv: KvCache,
        table: RequestTable,
        log: StepLog,
        closed: Sequence[int] | None = None,
        concurrency: int = 0,
        pool: str = "",
        sessions: Sessions | None = None,
        classes: Sequence[QueueClass] = (QueueClass(),),
    ) -> None:
        super().__init__(
            spec,
            kv=kv,
            table=table,
            log=log,
            departures=Departures(table, costs.replica),
            replica=costs.replica,
            seed=costs.seed,
            pool=pool,
            sessions=sessions,
            classes=classes,
        )
        self.costs = costs  # of steps from the next one on
        # Whether tokens may come later than their steps show: here, as blocks come from elsewhere.
        self._tokens_late = self.admission.brings_some or kv.tiers is not None
        self._until_fs = FOREVER  # of `advance`
        # From when on it must not look up what other replicas may still write (`TierTurns`), and whether it would have.
        self.looks_before_fs = FOREVER
        self.paused = False
        self._left: _Left | None = None
        self._span = log.span
        self._sessions = sessions
        self._closed: ClosedLoop | None = None
        if closed is not None:
            self._closed = ClosedLoop(closed, self.queue, table, self.departures.reject, log.issued_all)
            for _ in range(concurrency):
                self._closed.issue(0)
        if closed is not None or sessions is not None:
            self.ended = self._next_comes
        self.use(spec)
        self.bind(table)

    def bind(self, table: RequestTable) -> None:
        """Write into this table from here on, which holds the same requests."""
        super().bind(table)
        self.departures.bind(table)
        if self._closed is not None:
            self._closed.bind(table)

    def use(self, spec: SchedulerSpec) -> None:
        """Schedule by these settings from the next step on; policy, block size and admission must stay."""
        self.admission.use(spec)

    @property
    def cores(self) -> Sequence[EngineCore]:
        """Of its data-parallel groups, of which there is one."""
        return (self,)

    def next_end_fs(self) -> int:
        """Nobody who is here leaves after the last step and before that time, whoever comes, as no step takes less."""
        return min(FOREVER, self.clock + self.steps_to_end() * self.costs.least_step_fs)

    def outstanding(self, at_fs: int) -> int:
        """Requests routed here that have not left by `at_fs`; the engine must have been advanced to that time."""
        waiting = len(self.queue) + len(self.admission.loading)
        return waiting + len(self.running) + (self.departures.last if self.clock > at_fs else 0)

    def seen_at(self, at_fs: int) -> ReplicaState:
        """How the replica is before the next step, at the time to which it was advanced."""
        kv, decoding, gone = self.kv, self.decoding, self.departures
        late, late_tokens = (gone.freed_last, gone.tokens_last) if self.clock > at_fs else (0, 0)
        prefixes = kv.prefix_figures()
        in_prefill = sum(length for length, _ in self.admission.partial.values()) + self.admission.loading_tokens()
        return ReplicaState(
            replica=self.costs.replica,
            pool=self._pool,
            up=True,
            clock_fs=self.clock,
            steps=self.steps,
            running=len(self.running),
            waiting=len(self.queue) + len(self.admission.loading),
            decoding=decoding.count,
            context_tokens=decoding.context,
            kv_blocks_used=kv.used,
            kv_blocks=kv.blocks,
            left=gone.count,
            outstanding=self.outstanding(at_fs),
            spare_kv_blocks=kv.blocks - kv.used - late - self.admission.awaited_blocks(self.queue),
            tokens_in_flight=self.queue.tokens + in_prefill + decoding.context + late_tokens,
            kv_usage=(kv.used + late) / kv.blocks,
            prefix_cache=prefixes,
            kv_tiers=None if prefixes is None else kv.tiers_state(prefixes, max(at_fs, self.clock)),
            spec_decode=decoding.spec_decode,
            preemptions_by_cause=dict(self.preempted),
        )

    def arrive(self, before_fs: int) -> None:
        """Whoever arrives before that time, to which the engine was advanced, was submitted."""
        self.queue.arrive(before_fs)

    def publish(self, *, wanted: bool, of_tiers: bool) -> None:
        """As `KvCache.publish`."""
        self.kv.publish(wanted=wanted, of_tiers=of_tiers)

    def take_events(self) -> list[list[int]]:
        """As `KvCache.take_events`."""
        return self.kv.take_events()

    def in_hand(self) -> list[int]:
        """Requests that are here now: waiting, running or preempted."""
        return [*self.queue.waiting(), *self.admission.loads(), *self.running]

    def expect(self, move: Move) -> None:
        """A request that will be submitted was elsewhere before."""
        self.queue.expect(move.request, move.since_fs)
        if self._emitted_tokens[move.request]:
            self._token_at_fs[move.request] = move.token_fs

    def submit(self, requests: Sequence[int]) -> None:
        """Route requests here, by arrival; none may arrive before those routed here earlier."""
        self.queue.submit(requests)

    def state(self) -> dict[str, Any]:
        """What the engine has in hand, as JSON can hold it; the rows of its requests are not in it."""
        return {
            "clock": self.clock,
            "step": self.step,
            "_issued": 0 if self._closed is None else self._closed.issued,
            **self.departures.state(),
            **self.core_state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self.clock, self.step = state["clock"], state["step"]
        if self._closed is not None:
            self._closed.issued = state["_issued"]
        self.departures.restore(state)
        self.restore_core(state)

    def advance(self, until_fs: int = FOREVER, *, lazily: bool = False) -> int:
        """Run all steps that start before `until_fs`, or before somebody comes after an end here, who may come here.

        Stop, `paused`, before a step from `looks_before_fs` on that may look blocks up.
        Lazily, stop before a span of decode steps that ends after `until_fs`: it then need not be cut in two, should a
        request arrive in the middle of it.

        Returns:
            A time before which no request leaves from here on, given what is in the inbox now, fs.
        """
        queue, decoding, running, kv = self.queue, self.decoding, self.running, self.kv
        loading = self.admission.loading
        self._until_fs, self.paused = until_fs, False
        # In CPython 3.11, a built-in `min` of two takes as long as several of these.
        heeds_fs = self.costs.ends_fs if self.costs.ends_fs < self.looks_before_fs else self.looks_before_fs
        while self.clock < (until_fs := self._until_fs):
            next_fs = min(queue.next_fs, loading[0][0]) if loading else queue.next_fs
            if not running:
                if next_fs >= until_fs:
                    return next_fs
                self.clock = max(self.clock, next_fs)
            if self.clock >= heeds_fs:
                if self.clock >= self.looks_before_fs and self.admission.looks_up(self.clock):
                    self.paused = True
                    return self.clock
                if self.clock >= self.costs.ends_fs:
                    self._log.use(costs := self.costs.at(self.clock))
                    self.costs = costs
                    heeds_fs = min(self.looks_before_fs, costs.ends_fs)
            prompts = next_fs <= self.clock or bool(self.admission.partial)
            if prompts and self.prefill_first:
                if self._prompt_step(False):
                    continue
                prompts = False
            preempted = False
            if decoding.count:
                blocks = decoding.growth(self.step)  # that decoding requests cross into in this step
                if preempted := blocks > kv.blocks - kv.used:
                    blocks = self.make_room()
                kv.used += blocks
            if not prompts or not self._prompt_step(preempted):
                if preempted and not decoding.count:
                    continue  # what it gave back may do for another
                if not decoding.count:  # the cache is full of what has not been sent on, or loaded
                    change_fs = self.admission.next_change_fs(self.clock)
                    if change_fs >= until_fs:
                        return change_fs
                    self.clock = change_fs
                    continue
                ends = self._decode_span(until_fs, preempted, lazily)
                if ends > self.clock:
                    return ends
        return self.clock

    def release(self, request: int, at_fs: int) -> None:
        """A request's KV cache has been sent on: from that time on others can have its blocks."""
        self.kv.sent(request)
        self.clock = max(self.clock, at_fs)

    def revoke(self, request: int) -> None:
        """A request whose KV cache is on its way here does not come."""
        self.queue.withdraw(request)
        del self._token_at_fs[request]
        self.departures.count += 1

    def fail(self, at_fs: int) -> int:
        """Lose the KV cache, and all requests, at that time or at the end of the step.

        Returns:
            The tokens that it held, and that requests in the queue have brought, or were bringing.
        """
        if (tiers := self.kv.tiers) is not None:
            tiers.now_fs = max(self.clock, at_fs)  # until then, their links work
        lost, running = self.lose()
        self._left = None  # others may come to the same step, with as much in all
        self.departures.ended_nobody()
        self.drain(at_fs, running)
        return lost

    def drain(self, at_fs: int, first: Sequence[int] = ()) -> int:
        """Requests that wait have to be served by another replica, and before them those of `first`.

        Returns:
            The tokens that they had in host memory here.
        """
        since, swap, lost = max(self.clock, at_fs), self.kv.swap, 0
        for request in (*first, *self.queue.drain()):
            if swap is not None and swap.drop(request):
                lost += self._input[request] + self._emitted_tokens[request] - 1
            self.departures.lose(request, since, self._token_at_fs.pop(request, 0))
        return lost

    def _prompt_step(self, preempted: bool) -> bool:
        """One step with prompts in it; False when none can be computed now."""
        chunks, completed = self.admission.schedule(self.step, self.clock, admit=not preempted)
        if not chunks:
            return False
        decoding, kv = self.decoding, self.kv
        waits_fs = self.late_fs() if self._tokens_late else 0
        used, clock = kv.used, self.clock
        decodes, context = decoding.count, decoding.context
        emits = decodes if decoding.verify_tokens == 1 else decoding.emits(self.step)
        outputs = emits + len(completed)
        shape, duration = self.costs.prompt_step(self.step, decodes, context, chunks, outputs)
        if self._tokens_late:
            self._join(waits_fs, duration, duration)
        self._span((*divmod(clock, FS_PER_PS), *shape, used, used, duration))
        self.departures.ended_nobody()
        self.decoded(1, self.clock + duration)
        if completed:
            self.complete(completed, clock)
        return True

    def _next_comes(self, request: int) -> None:
        """A request has finished: in a closed loop the next one arrives, in sessions maybe those who follow."""
        if self._closed is not None:
            self._closed.issue(self.clock // FS_PER_PS + self.costs.frontend_ps)
        if self._sessions is not None:
            until_fs = self._sessions.finished(request, self.clock // FS_PER_PS)
            self._until_fs = until_fs if until_fs < self._until_fs else self._until_fs

    def _join(self, waits_fs: int, step_fs: int, first_fs: int) -> None:
        """Of those who join the step that begins now, or are held up by copies: their tokens come at its end."""
        if waits_fs:
            self.held_up(waits_fs, step_fs)
        if self.admission.joined:
            self.join(first_fs)

    def _decode_span(self, until_fs: int, single: bool, whole: bool) -> int:
        """Steps in which only decoding goes on, up to the next one in which anything else can happen.

        Returns the time at which they end. With `single`, or where copies hold it up, that is one. With `whole`, steps
        that would end after `until_fs` are not run.
        """
        waits_fs = 0
        if self._tokens_late and (waits_fs := self.late_fs()):
            single = True
        if single:
            whole = False
        kv, decoding, step, clock = self.kv, self.decoding, self.step, self.clock
        decodes, context, used = decoding.count, decoding.context, kv.used
        most = 1 if single else decoding.steps_to_change(step)
        if (left := self._left) is not None:
            self._left = None
            if left.of != (self.costs, step, decodes, context, most, used):
                left = None
        if left is not None:
            _, span, steps, duration = left
        else:
            span = self.costs.decode_span(step + self.prompt_steps, decodes, context, most)
            steps = decoding.steps_within(span.steps, step, kv.blocks - used)
            duration = span.duration_fs(steps)
        if steps > 1 or whole:
            joins_fs, ends_fs = self.admission.next_change_fs(clock), self.costs.ends_fs
            change_fs = joins_fs if joins_fs < ends_fs else ends_fs  # either ends a span
            if whole and (end_fs := clock + duration) > until_fs and change_fs >= until_fs:
                self._left = _Left((self.costs, step, decodes, context, most, used), span, steps, duration)
                kv.used -= decoding.growth(step)  # its first step has not grown yet
                # Who joins before the span ends may leave first.
                return end_fs if end_fs < change_fs else change_fs
            limit = (until_fs if until_fs < change_fs else change_fs) - clock
            limit = limit if limit < SPAN_FS_LIMIT else SPAN_FS_LIMIT
            if steps > 1 and duration > limit:
                steps, duration = span.first_reaching(limit, steps, duration)
        blocks = decoding.blocks_within(steps, step) if steps > 1 else 0
        if self._tokens_late:
            self._join(waits_fs, duration, span.duration_fs(1))
            if kv.tiers is not None:
                grow_by_step(kv, decoding, span, step, steps, clock)
        kv.used = used + blocks
        emits = decodes if decoding.verify_tokens == 1 else decoding.emits(step)
        ps, fs = divmod(clock, FS_PER_PS)
        shape = steps, decodes, context, 0, 0, emits, span.busiest_tokens, 0, 0, 0, 0, decodes, context, 0, emits
        self._span((ps, fs, *shape, used, kv.used, duration))
        self.departures.ended_nobody()
        self.decoded(steps, self.clock + duration)
        return self.clock
