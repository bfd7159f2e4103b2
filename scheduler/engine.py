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
from typing import Any

from pimserve.device_models.plan import FS_PER_PS
from pimserve.scheduler.admission import Admission
from pimserve.scheduler.config import SchedulerSpec
from pimserve.scheduler.control import ReplicaState
from pimserve.scheduler.costs import ReplicaCosts
from pimserve.scheduler.decoding import Decoding
from pimserve.scheduler.departures import Departures, Move
from pimserve.scheduler.kv_cache import KvCache
from pimserve.scheduler.queue import ClosedLoop, FcfsQueue
from pimserve.scheduler.requests import FOREVER, RequestTable
from pimserve.scheduler.steplog import StepLog

_SPAN_FS_LIMIT = 2**60  # a log row's time must fit 64 bit


class Engine:
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
    ) -> None:
        self.costs = costs  # of steps from the next one on
        self.clock = 0  # fs; start of the next step
        self.step = 0  # number of the next step
        self._log = log
        self._span = log.span
        self._pool = pool
        self.kv = kv
        self.departures = Departures(table, costs.replica)
        self.queue = FcfsQueue(table, self.departures.reject)
        # Running requests in admission order: the step at whose start it will have finished, or 0 while in prefill.
        self.running: dict[int, int] = {}
        self.decoding = Decoding(self.running, kv.block_size, kv.groups)
        takes_over = pool == "decode"
        self.admission = Admission(self.queue, kv, self.decoding, self.running, costs.replica, takes_over)
        self._token_at_fs = self.admission.token_at_fs
        self._closed: ClosedLoop | None = None
        if closed is not None:
            self._closed = ClosedLoop(closed, self.queue, table, self.departures.reject, log.issued_all)
            for _ in range(concurrency):
                self._closed.issue(0)
        self.use(spec)
        self.bind(table)

    def bind(self, table: RequestTable) -> None:
        """Write into this table from here on, which holds the same requests."""
        self._input = table.views["input_tokens"]
        self._output = table.views["output_tokens"]
        self._first_token_ps = table.views["first_token_ps"]
        self._emitted_tokens = table.views["emitted_tokens"]
        self._preemptions = table.views["preemptions"]
        self.queue.bind(table)
        self.admission.bind(table)
        self.departures.bind(table)
        if self._closed is not None:
            self._closed.bind(table)

    def use(self, spec: SchedulerSpec) -> None:
        """Schedule by these settings from the next step on; block size and admission must stay."""
        self.admission.use(spec)

    def outstanding(self, at_fs: int) -> int:
        """Requests routed here that have not left by `at_fs`; the engine must have been advanced to that time."""
        return len(self.queue) + len(self.running) + (self.departures.last if self.clock > at_fs else 0)

    def seen_at(self, at_fs: int) -> ReplicaState:
        """How the replica is before the next step, at the time to which it was advanced."""
        kv, decoding, gone = self.kv, self.decoding, self.departures
        late = gone.freed_last if self.clock > at_fs else 0
        return ReplicaState(
            replica=self.costs.replica,
            pool=self._pool,
            up=True,
            clock_fs=self.clock,
            steps=self.step,
            running=len(self.running),
            waiting=len(self.queue),
            decoding=decoding.count,
            context_tokens=decoding.context,
            kv_blocks_used=kv.used,
            kv_blocks=kv.blocks,
            left=gone.count,
            outstanding=self.outstanding(at_fs),
            spare_kv_blocks=kv.blocks - kv.used - late - self.admission.awaited_blocks(),
        )

    def in_hand(self) -> list[int]:
        """Requests that are here now: waiting, running or preempted."""
        return [*self.queue.waiting(), *self.running]

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
            "running": list(self.running.items()),
            "_issued": 0 if self._closed is None else self._closed.issued,
            **self.departures.state(),
            **self.queue.state(),
            **self.decoding.state(),
            **self.kv.state(),
            **self.admission.state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self.clock, self.step = state["clock"], state["step"]
        self.running.clear()
        self.running.update(state["running"])
        if self._closed is not None:
            self._closed.issued = state["_issued"]
        for room in (self.departures, self.queue, self.admission, self.kv):
            room.restore(state)
        ends = {request: finish_step - self.step for request, finish_step in self.running.items() if finish_step}
        held = {request: self._input[request] + self._output[request] - 1 - left for request, left in ends.items()}
        self.decoding.restore(state, self.step, held)

    def advance(self, until_fs: int = FOREVER, *, lazily: bool = False) -> int:
        """Run all steps that start before `until_fs`, or until nothing is left to do.

        Lazily, stop before a span of decode steps that ends after `until_fs`: it then need not be cut in two, should a
        request arrive in the middle of it.

        Returns:
            A time before which no request leaves from here on, given what is in the inbox now, fs.
        """
        queue, decoding, running, kv = self.queue, self.decoding, self.running, self.kv
        while self.clock < until_fs:
            next_fs = queue.next_fs
            if not running:
                if next_fs >= until_fs:
                    return next_fs
                self.clock = max(self.clock, next_fs)
            if self.clock >= self.costs.ends_fs:
                self._log.use(costs := self.costs.at(self.clock))
                self.costs = costs
            preempted = False
            if decoding.count:
                blocks = decoding.growth(self.step)  # that decoding requests cross into in this step
                if preempted := blocks > kv.blocks - kv.used:
                    blocks = self._make_room()
                kv.used += blocks
            if not (next_fs <= self.clock or self.admission.partial is not None) or not self._prompt_step(preempted):
                if not decoding.count:
                    return until_fs  # the cache is full of what has not been sent on
                ends = self._decode_span(until_fs, single=preempted, whole=lazily and not preempted)
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
        lost: int = self.admission.partial[2] if self.admission.partial is not None else 0
        coming = [request for request in self.queue.waiting() if self.admission.brings_kv(request)]
        lost += sum(self._input[request] + self._emitted_tokens[request] - 1 for request in coming)
        for request, finish_step in self.running.items():
            if finish_step:
                emitted = self._emitted_tokens[request] = self._output[request] - (finish_step - self.step)
                self._token_at_fs[request] = self.clock
                lost += self._input[request] + emitted - 1
        running = list(self.running)
        self.running.clear()
        self.decoding.clear()
        self.kv.clear()
        self.departures.last = self.departures.freed_last = 0
        self.admission.partial = None
        self.drain(at_fs, running)
        return lost

    def drain(self, at_fs: int, first: Sequence[int] = ()) -> None:
        """Requests that wait have to be served by another replica, and before them those of `first`."""
        since = max(self.clock, at_fs)
        for request in (*first, *self.queue.drain()):
            self.departures.lose(request, since, self._token_at_fs.pop(request, 0))

    def settle(self) -> None:
        """Write down how far requests have come that the end of the run leaves unfinished."""
        for request, finish_step in self.running.items():
            if finish_step:
                self._emitted_tokens[request] = self._output[request] - (finish_step - self.step)

    def _make_room(self) -> int:
        """Preempt requests until there are blocks for what the others cross into in this step; returns how many."""
        while (blocks := self.decoding.growth(self.step)) > self.kv.blocks - self.kv.used:
            self._preempt()
        return blocks

    def _preempt(self) -> None:
        """Take a request off the device; it will recompute what it had."""
        request = self.queue.victim(self.running)
        finish_step = self.running.pop(request)
        prompt = self._input[request]
        if finish_step:
            emitted = self._emitted_tokens[request] = self._output[request] - (finish_step - self.step)
            held = prompt + emitted - 1
            self.decoding.leave(held, self.step)
            self._token_at_fs[request] = self.clock
        else:
            held = prompt + self._emitted_tokens[request]
            self.admission.partial = None
        self.queue.put_back(request)
        self._preemptions[request] += 1
        self.kv.preempt(held, prompt=not finish_step)

    def _join(self, step_fs: int) -> None:
        """Those that joined have their first token here at the end of the step that begins now."""
        end_fs = self.clock + step_fs
        joined_fs = self.admission.joined_fs
        self._log.joined([end_fs - token_fs for token_fs in joined_fs], step_fs, end_fs)
        joined_fs.clear()

    def _prompt_step(self, preempted: bool) -> bool:
        """One step with prompts in it; False when none can be computed now."""
        chunks, completed = self.admission.schedule(self.step, self.clock, admit=not preempted)
        if not chunks:
            return False
        decoding, used, clock = self.decoding, self.kv.used, self.clock
        decodes, context = decoding.count, decoding.context
        outputs = decodes + len(completed)
        shape, duration = self.costs.prompt_step(self.step, decodes, context, chunks, outputs)
        self._span((*divmod(clock, FS_PER_PS), *shape, used, used, duration))
        if self.admission.joined_fs:
            self._join(duration)
        self._end_step(1, duration)
        if completed:
            self._complete(completed)
        return True

    def _end_step(self, steps: int, duration_fs: int) -> None:
        """So many steps are over, which took so long: requests that have all their tokens leave."""
        self.clock += duration_fs
        self.step = step = self.step + steps
        gone = self.departures
        gone.last = gone.freed_last = 0
        for request in self.decoding.advance(steps, step):
            held = self._input[request] + self._output[request] - 1
            self.decoding.leave(held, step)
            self._finish(request, held)

    def _complete(self, completed: list[int]) -> None:
        """Requests whose prompt was computed have emitted a token, and decode from the next step on."""
        kv, now, step = self.kv, self.clock, self.step
        for request in completed:
            if request in self._token_at_fs:
                emitted = self._emitted_tokens[request] + 1
                self._log.resumed(now - self._token_at_fs.pop(request), now)
            else:
                emitted = 1
                self._first_token_ps[request] = now // FS_PER_PS
            left = self._output[request] - emitted
            held = self._input[request] + emitted - 1
            if kv.windowed:
                self.departures.freed_last += kv.computed(held, held + 1 + left)
            if not left:
                self._finish(request, held)
            elif self._pool == "prefill":
                del self.running[request]
                kv.send(request, held)
                self.departures.hand_over(request, now, emitted)
            else:
                self.decoding.join(request, held, step, left)

    def _finish(self, request: int, held: int) -> None:
        """A request that holds `held` KV tokens leaves with all its tokens; in a closed loop the next one arrives."""
        del self.running[request]
        self.departures.finish(request, self.clock, self.kv.release(held, held + 1))
        if self._closed is not None:
            self._closed.issue(self.clock // FS_PER_PS + self.costs.frontend_ps)

    def _decode_span(self, until_fs: int, *, single: bool, whole: bool) -> int:
        """Steps in which only decoding goes on, up to the next one in which anything else can happen.

        Returns the time at which they end. With `whole`, steps that would end after `until_fs` are not run.
        """
        kv, decoding, step, clock = self.kv, self.decoding, self.step, self.clock
        decodes, context, used = decoding.count, decoding.context, kv.used
        span = self.costs.decode_span(step, decodes, context, 1 if single else decoding.steps_to_change(step))
        steps, blocks = decoding.steps_within(span.steps, step, kv.blocks - used)
        duration = span.duration_fs(steps)
        if steps > 1 or whole:
            # What ends the costs ends a span as someone who joins does.
            joins_fs = min(self.admission.next_change_fs(clock), self.costs.ends_fs)
            if whole and joins_fs >= until_fs and clock + duration > until_fs:
                kv.used -= decoding.growth(step)  # its first step has not grown yet
                # Who arrives at that very time may join before the span ends, and leave first.
                return until_fs if joins_fs == until_fs else clock + duration
            limit = min(until_fs, joins_fs) - clock
            if steps > 1 and (duration > limit or duration > _SPAN_FS_LIMIT):
                steps, duration = span.first_reaching(min(limit, _SPAN_FS_LIMIT), steps, duration)
                steps, blocks = decoding.steps_within(steps, step, kv.blocks - used)
        if self.admission.joined_fs:
            self._join(span.duration_fs(1))
        kv.used = used + blocks
        begin = divmod(clock, FS_PER_PS)
        row = (*begin, steps, decodes, context, 0, 0, decodes, span.busiest_tokens, 0, 0, 0, 0, used, kv.used, duration)
        self._span(row)
        self._end_step(steps, duration)
        return self.clock
