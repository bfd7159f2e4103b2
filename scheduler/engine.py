"""Continuous batching on one replica, in simulated time.

Every decoding request gains one token a step, so the engine keeps only sums over them (how many, their contexts, how
many cross a KV block in which step) and a heap of the steps in which they finish. Work per request is done when it
is admitted, has a chunk of its prompt computed, is preempted or finishes; a stretch of steps in which nothing of that
happens (a span) is advanced in closed form. All arithmetic is on integers, so that a span has exactly the bits of
its steps summed one by one.

What a step contains follows vLLM's V1 scheduler: running requests first (a decode token each, then the prompt that
was cut by the token budget), new ones from the head of the queue while token budget, sequences and KV blocks last.

Where prefill and decode have replicas of their own, a request leaves the one after its first token, its KV blocks when
they have been sent on, and joins the decoding requests of the other without any prompt to compute.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Any, Protocol

from pimserve.device_models.plan import FS_PER_PS, ChunkShape
from pimserve.scheduler.config import SchedulerSpec
from pimserve.scheduler.costs import ReplicaCosts
from pimserve.scheduler.requests import FINISHED, REJECTED, RequestTable

FOREVER = 2**200
_SPAN_FS_LIMIT = 2**60  # a log row's time must fit 64 bit
_NUMBERS = (
    *("clock", "step", "submitted", "finished", "_issued", "_left_last", "_head", "_head_fs"),
    *("_head_length", "_decodes", "_context", "_used_blocks", "_reserved_blocks", "_freed_last"),
)


@dataclass(frozen=True, slots=True)
class Move:
    """A request that goes from one replica to another.

    Args:
        request: its number.
        replica: where it was; -1 for a request that has only waited for a replica.
        since_fs: when it left there; when it can be scheduled, for the replica that it goes to.
        token_fs: when it had its last token, if it had any.
    """

    request: int
    replica: int
    since_fs: int
    token_fs: int


class StepSink(Protocol):
    """Takes what a replica has executed."""

    def span(self, row: tuple[int, ...]) -> None:
        """Take one row; columns as in `steplog.Rows`."""

    def resumed(self, gap_fs: int, at_fs: int) -> None:
        """Take the time between two tokens of a request that was preempted or moved between them."""

    def joined(self, gaps_fs: Sequence[int], step_fs: int, at_fs: int) -> None:
        """Take the times since their last tokens of requests that decode in a step for the first time, and its own."""

    def issued_all(self, at_fs: int) -> None:
        """A closed loop has issued its last request; from here on its concurrency falls."""


class Engine:
    """One replica.

    Args:
        costs: what steps cost here.
        spec: scheduler settings.
        kv_blocks: capacity of the KV cache.
        max_model_len: tokens of prompt and output together that a request may have.
        table: requests of the run; the engine writes its own rows.
        sink: takes executed steps.
        closed: in a closed loop, the requests that this replica's clients issue, each when another leaves.
        concurrency: how many of those are issued at time 0.
        pool: "prefill": requests leave after their first token; "decode": they come with their KV cache; "": neither.
    """

    def __init__(
        self,
        costs: ReplicaCosts,
        spec: SchedulerSpec,
        *,
        kv_blocks: int,
        max_model_len: int,
        table: RequestTable,
        sink: StepSink,
        closed: Sequence[int] | None = None,
        concurrency: int = 0,
        pool: str = "",
    ) -> None:
        self.spec = spec
        self.kv_blocks = kv_blocks
        self.max_model_len = max_model_len
        self.sink = sink
        self.closed = closed
        self.clock = 0  # fs; start of the next step
        self.step = 0  # number of the next step
        self.submitted = 0  # requests routed here, of which
        self.finished = 0  # have left, finished or rejected
        self.left: list[int] = []  # requests that are here no more, for whoever collects them, of which
        self.moved: list[Move] = []  # these are handed over to another replica
        self.lost: list[Move] = []  # and these have to be served by another from where they are
        self._hands_over = pool == "prefill"
        self._takes_over = pool == "decode"
        self.bind(table)
        self._take = sink.span
        self.use(spec)
        self.use_costs(costs)
        self._issued = 0  # of `closed`
        self._frontend_ps = costs.frontend_ps
        self._left_last = 0  # requests that left at `clock`, and if any did,
        self._freed_last = 0  # the blocks that they had
        self._inbox: list[int] = []  # requests routed here, by arrival, of which
        self._next_in = 0  # is the one after `_head`
        self._head = -1  # next request of the inbox that can be served, arrived or not; -1 for none known
        self._head_fs = FOREVER  # when it arrives
        self._head_length = 0  # tokens that it has so far
        self._coming: dict[int, int] = {}  # requests of the inbox that were elsewhere: from when they can be scheduled
        self._preempted: deque[int] = deque()
        # Running requests in admission order: the step at whose start it will have finished, or 0 while in prefill.
        self._running: dict[int, int] = {}
        self._emitted: dict[int, int] = {}  # tokens of requests that were preempted, or elsewhere
        self._partial: tuple[int, int, int] | None = None  # request, prefill length, computed
        self._decodes = 0
        self._context = 0  # sum over decoding requests of the tokens that they attend to in the next step
        self._used_blocks = 0
        self._reserved_blocks = 0  # oracle admission
        self._finish_heap: list[tuple[int, int]] = []
        # How many decoding requests cross into a new block in steps = i modulo the block size, twice over.
        self._crossings = [0] * (2 * spec.block_size)
        self._token_at: dict[int, int] = {}  # when those had their last one
        self._joined: list[int] = []  # when those that decode for the first time in the next step had theirs
        self._held: dict[int, int] = {}  # blocks of requests that were handed over, until they have been sent
        for _ in range(concurrency):
            self._issue(0)
        self._next_head()

    def bind(self, table: RequestTable) -> None:
        """Write into this table from here on, which holds the same requests."""
        self._arrival_ps = table.views["arrival_ps"]
        self._input = table.views["input_tokens"]
        self._output = table.views["output_tokens"]
        self._replica_of = table.views["replica"]
        self._first_scheduled_ps = table.views["first_scheduled_ps"]
        self._first_token_ps = table.views["first_token_ps"]
        self._finish_ps = table.views["finish_ps"]
        self._emitted_tokens = table.views["emitted_tokens"]
        self._status = table.views["status"]
        self._preemptions = table.views["preemptions"]

    def use(self, spec: SchedulerSpec) -> None:
        """Schedule by these settings from the next step on; block size and admission must stay."""
        self.spec = spec
        self._budget = spec.max_num_batched_tokens if spec.batching == "chunked" else FOREVER

    def use_costs(self, costs: ReplicaCosts) -> None:
        """Let steps cost this from the next one on."""
        self.costs = costs

    def outstanding(self, at_fs: int) -> int:
        """Requests routed here that have not left by `at_fs`; the engine must have been advanced to that time."""
        return self.submitted - self.finished + (self._left_last if self.clock > at_fs else 0)

    @property
    def load(self) -> tuple[int, int, int, int, int]:
        """(running, waiting, decoding, tokens that they attend to, KV blocks in use) before the next step."""
        running = len(self._running)
        return running, self.submitted - self.finished - running, self._decodes, self._context, self._used_blocks

    def room(self, at_fs: int) -> int:
        """KV blocks that are neither in use nor needed by requests that were routed here; below 0 if they are short."""
        needed = self._blocks(self._head_length) if self._head >= 0 else 0
        for request in (*self._inbox[self._next_in :], *self._preempted):
            needed += self._blocks(self._input[request] + self._emitted.get(request, 0))
        late = self._freed_last if self._left_last and self.clock > at_fs else 0
        return self.kv_blocks - self._used_blocks - needed - late

    def in_hand(self) -> list[int]:
        """Requests that are here now: waiting, running or preempted."""
        head = [self._head] if self._head >= 0 else []
        return [*head, *self._inbox[self._next_in :], *self._running, *self._preempted]

    def expect(self, move: Move) -> None:
        """A request that will be submitted was elsewhere before."""
        request = move.request
        self._coming[request] = move.since_fs
        if self._emitted_tokens[request]:
            self._emitted[request] = self._emitted_tokens[request]
            self._token_at[request] = move.token_fs

    def submit(self, requests: Sequence[int]) -> None:
        """Route requests here, by arrival; none may arrive before those routed here earlier."""
        self._inbox.extend(requests)
        self.submitted += len(requests)
        if self._head < 0:
            self._next_head()

    def state(self) -> dict[str, Any]:
        """What the engine has in hand, as JSON can hold it; the rows of its requests are not in it."""
        return {
            **{name: getattr(self, name) for name in _NUMBERS},
            "inbox": self._inbox[self._next_in :],
            "preempted": list(self._preempted),
            "running": list(self._running.items()),
            "emitted": list(self._emitted.items()),
            "token_at": list(self._token_at.items()),
            "coming": list(self._coming.items()),
            "held": list(self._held.items()),
            "joined": self._joined,
            "partial": self._partial,
            "finish_heap": self._finish_heap,
            "crossings": self._crossings,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        for name in _NUMBERS:
            setattr(self, name, state[name])
        self._inbox, self._next_in = list(state["inbox"]), 0
        self._preempted = deque(state["preempted"])
        self._running, self._emitted, self._token_at, self._coming, self._held = (
            dict(state[name]) for name in ("running", "emitted", "token_at", "coming", "held")
        )
        self._joined = list(state["joined"])
        self._partial = None if state["partial"] is None else tuple(state["partial"])
        self._finish_heap = [(step, request) for step, request in state["finish_heap"]]
        self._crossings = list(state["crossings"])

    def advance(self, until_fs: int = FOREVER, *, lazily: bool = False) -> int:
        """Run all steps that start before `until_fs`, or until nothing is left to do.

        Lazily, stop before a span of decode steps that ends after `until_fs`: it then need not be cut in two, should a
        request arrive in the middle of it.

        Returns:
            A time before which no request leaves from here on, given what is in the inbox now, fs.
        """
        while self.clock < until_fs:
            if not self._running and not self._preempted:
                if self._head_fs >= until_fs:
                    return self._head_fs
                self.clock = max(self.clock, self._head_fs)
            preempted = self._grow() if self._decodes else False
            if not (self._head_fs <= self.clock or self._partial is not None or self._preempted) or not (
                self._prompt_step(preempted)
            ):
                if not self._decodes:
                    return until_fs  # the cache is full of what has not been sent on
                ends = self._decode_span(until_fs, single=preempted, whole=lazily and not preempted)
                if ends > self.clock:
                    return ends
        return self.clock

    def release(self, request: int, at_fs: int) -> None:
        """A request's KV cache has been sent on: from that time on others can have its blocks."""
        self._used_blocks -= self._held.pop(request, 0)  # none, if the cache was lost meanwhile
        self.clock = max(self.clock, at_fs)

    def fail(self, at_fs: int) -> int:
        """Lose the KV cache, and all requests, at that time or at the end of the step; returns the tokens it held."""
        lost = self._partial[2] if self._partial is not None else 0
        for request, finish_step in self._running.items():
            if finish_step:
                emitted = self._output[request] - (finish_step - self.step)
                self._emitted[request] = self._emitted_tokens[request] = emitted
                self._token_at[request] = self.clock
                lost += self._input[request] + emitted - 1
        running = list(self._running)
        self._running.clear()
        self._finish_heap.clear()
        self._held.clear()
        self._partial = None
        self._decodes = self._context = self._used_blocks = self._reserved_blocks = self._left_last = 0
        self._crossings = [0] * len(self._crossings)
        self.drain(at_fs, running)
        return lost

    def drain(self, at_fs: int, first: Sequence[int] = ()) -> None:
        """Requests that wait have to be served by another replica, and before them those of `first`."""
        head = [self._head] if self._head >= 0 else []
        since = max(self.clock, at_fs)
        for request in (*first, *self._preempted, *head, *self._inbox[self._next_in :]):
            self.lost.append(Move(request, self.costs.replica, since, self._token_at.pop(request, 0)))
            self.left.append(request)
            self.finished += 1
            self._emitted.pop(request, None)
        self._preempted.clear()
        self._coming.clear()
        self._inbox, self._next_in = [], 0
        self._next_head()

    def settle(self) -> None:
        """Write down how far requests have come that the end of the run leaves unfinished."""
        for request, finish_step in self._running.items():
            so_far = self._output[request] - (finish_step - self.step) if finish_step else self._emitted.get(request, 0)
            self._emitted_tokens[request] = so_far

    def _blocks(self, tokens: int) -> int:
        return -(-tokens // self.spec.block_size)

    def _next_head(self) -> None:
        """Find the next request of the inbox that can be served at all; those that cannot are rejected on the way."""
        inbox, count = self._inbox, len(self._inbox)
        while self._next_in < count:
            request = inbox[self._next_in]
            self._next_in += 1
            length = self._input[request]
            if length < self.max_model_len:
                self._head = request
                if self._coming and request in self._coming:
                    self._head_fs = self._coming.pop(request)
                    self._head_length = length + self._emitted.get(request, 0)
                else:
                    self._head_fs = self._arrival_ps[request] * FS_PER_PS
                    self._head_length = length
                return
            self._reject(request)
        self._head = -1
        self._head_fs = FOREVER

    def _leave(self, at_ps: int) -> None:
        """A request has left; in a closed loop the next one arrives."""
        self.finished += 1
        self._left_last += 1
        if self.closed is not None:
            self._issue(at_ps + self._frontend_ps)
            if self._head < 0:
                self._next_head()

    def _issue(self, at_ps: int) -> None:
        """The next request of a closed loop reaches the scheduler, and with one that is rejected the next."""
        assert self.closed is not None
        while self._issued < len(self.closed):
            request = self.closed[self._issued]
            self._issued += 1
            self._arrival_ps[request] = at_ps
            if self._issued == len(self.closed):
                self.sink.issued_all(at_ps * FS_PER_PS)
            if self._input[request] < self.max_model_len:
                self._inbox.append(request)
                self.submitted += 1
                return
            self.submitted += 1
            self._reject(request)

    def _reject(self, request: int) -> None:
        self._status[request] = REJECTED
        self._replica_of[request] = self.costs.replica
        self.finished += 1
        self.left.append(request)

    def _grow(self) -> bool:
        """Allocate the blocks that decoding requests cross into in this step; True when one was preempted for it."""
        slot = self.step % self.spec.block_size
        crossings = self._crossings
        preempted = False
        while crossings[slot] > self.kv_blocks - self._used_blocks:
            self._preempt_last()
            preempted = True
        self._used_blocks += crossings[slot]
        return preempted

    def _preempt_last(self) -> None:
        """Take the request that was admitted last off the device; it will recompute what it had."""
        request, finish_step = self._running.popitem()
        prompt, output = self._input[request], self._output[request]
        if finish_step:
            emitted = output - (finish_step - self.step)
            held = prompt + emitted - 1
            self._decodes -= 1
            self._context -= prompt + emitted
            self._cross(held, -1)
            self._token_at[request] = self.clock
        else:
            emitted = self._emitted.get(request, 0)
            held = prompt + emitted
            self._partial = None
        self._emitted[request] = emitted
        self._emitted_tokens[request] = emitted
        self._preemptions[request] += 1
        self._used_blocks -= self._blocks(held)
        if self._reserved_blocks:
            self._reserved_blocks -= self._blocks(prompt + output)
        self._preempted.appendleft(request)

    def _cross(self, held: int, change: int) -> None:
        """Count in (or out) a decoding request that holds `held` KV tokens before the present step's growth."""
        block_size = self.spec.block_size
        slot = (self.step - held) % block_size
        self._crossings[slot] += change
        self._crossings[slot + block_size] += change

    def _schedule(self, preempted: bool) -> tuple[list[ChunkShape], list[int]]:
        """Chunks of prompts in this step, and the requests whose prompt is complete with it."""
        chunks: list[ChunkShape] = []
        completed: list[int] = []
        running, clock, block_size = self._running, self.clock, self.spec.block_size
        budget = self._budget - self._decodes
        if self._partial is not None and budget > 0:
            request, length, computed = self._partial
            budget = self._chunk(chunks, completed, request, length, computed, budget)
        if preempted:
            return chunks, completed
        oracle = self.spec.kv_admission == "oracle" and not self._hands_over  # where nothing grows
        most = self.spec.max_num_seqs
        while budget > 0 and len(running) < most:
            if self._preempted:
                request = self._preempted[0]
                length = self._input[request] + self._emitted.get(request, 0)
            elif self._head_fs <= clock:
                request = self._head
                length = self._head_length
            else:
                break
            blocks = -(-length // block_size)
            if blocks > self.kv_blocks - self._used_blocks:
                break
            if oracle:
                reserved = self._blocks(self._input[request] + self._output[request])
                if reserved > self.kv_blocks - self._reserved_blocks:
                    break
                self._reserved_blocks += reserved
            if self._preempted:
                self._preempted.popleft()
            else:
                self._replica_of[request] = self.costs.replica
                if self._first_scheduled_ps[request] < 0:  # else it was elsewhere before
                    self._first_scheduled_ps[request] = clock // FS_PER_PS
                self._next_head()
                if self._takes_over:
                    self._used_blocks += blocks
                    self._take_over(request)
                    budget -= 1
                    continue
            self._used_blocks += blocks
            running[request] = 0
            if length <= budget:  # the usual case of _chunk
                chunks.append((length, 0))
                completed.append(request)
                budget -= length
            else:
                budget = self._chunk(chunks, completed, request, length, 0, budget)
        return chunks, completed

    def _take_over(self, request: int) -> None:
        """A request that brings its KV cache decodes from this step on; it has its blocks, that of the step too."""
        emitted = self._emitted.pop(request)
        held = self._input[request] + emitted - 1
        self._decodes += 1
        self._context += held + 1
        self._cross(held, 1)
        self._running[request] = finish_step = self.step + self._output[request] - emitted
        heappush(self._finish_heap, (finish_step, request))
        self._joined.append(self._token_at.pop(request))

    def _join(self, begin_fs: int, end_fs: int) -> None:
        """Those that joined had their first token here."""
        self.sink.joined([end_fs - token_fs for token_fs in self._joined], end_fs - begin_fs, end_fs)
        self._joined.clear()

    def _hand_over(self, request: int, emitted: int, held: int) -> None:
        """A request whose prompt is computed goes on elsewhere; its blocks stay taken until they have been sent."""
        del self._running[request]
        self._held[request] = self._blocks(held)
        self._emitted_tokens[request] = emitted
        self._go(Move(request, self.costs.replica, self.clock, self.clock))

    def _go(self, move: Move) -> None:
        self.moved.append(move)
        self.left.append(move.request)
        if not self._left_last:
            self._freed_last = 0
        self._left_last += 1
        self.finished += 1

    def _chunk(
        self, chunks: list[ChunkShape], completed: list[int], request: int, length: int, computed: int, budget: int
    ) -> int:
        """Compute what the budget allows of a prompt; returns the budget left."""
        tokens = min(length - computed, budget)
        chunks.append((tokens, computed))
        if computed + tokens == length:
            completed.append(request)
            self._partial = None
        else:
            self._partial = (request, length, computed + tokens)
        return budget - tokens

    def _prompt_step(self, preempted: bool) -> bool:
        """One step with prompts in it; False when none can be computed now."""
        chunks, completed = self._schedule(preempted)
        if not chunks:
            return False
        decodes, context, used = self._decodes, self._context, self._used_blocks
        outputs = decodes + len(completed)
        tokens = chunks[0][0] if len(chunks) == 1 else sum([chunk[0] for chunk in chunks])
        mixed = self.costs.mixed_step(self.step, decodes, context, tokens, chunks, outputs)
        duration = mixed.duration_fs
        self._take(
            (
                *(self.clock // FS_PER_PS, self.clock % FS_PER_PS, 1, decodes, context, tokens, len(chunks), outputs),
                *(mixed.busiest_tokens, mixed.anchor_tokens, mixed.prefill_fs),
                *(mixed.prefill_dram_pj, mixed.prefill_compute_pj, used, used, duration),
            )
        )
        if self._joined:
            self._join(self.clock, self.clock + duration)
        self.clock = now = self.clock + duration
        self.step = step = self.step + 1
        self._context += decodes
        self._left_last = 0
        heap = self._finish_heap
        if heap and heap[0][0] <= step:
            self._retire()
        block_size, crossings = self.spec.block_size, self._crossings
        for request in completed:  # each emits a token, and decodes from the next step on
            emitted = self._emitted.pop(request, 0) + 1 if self._emitted else 1
            if emitted == 1:
                self._first_token_ps[request] = now // FS_PER_PS
            if self._token_at and request in self._token_at:
                self.sink.resumed(now - self._token_at.pop(request), now)
            left = self._output[request] - emitted
            held = self._input[request] + emitted - 1
            if not left:
                self._finish(request, held)
                continue
            if self._hands_over:
                self._hand_over(request, emitted, held)
                continue
            self._decodes += 1
            self._context += held + 1
            slot = (step - held) % block_size
            crossings[slot] += 1
            crossings[slot + block_size] += 1
            self._running[request] = finish_step = step + left
            heappush(heap, (finish_step, request))
        return True

    def _retire(self) -> None:
        """Requests that have all their tokens by now leave."""
        heap, step, running = self._finish_heap, self.step, self._running
        while heap and heap[0][0] <= step:
            finish_step, request = heappop(heap)
            if running.get(request) == finish_step:  # else it was preempted since
                held = self._input[request] + self._output[request] - 1
                self._decodes -= 1
                self._context -= held + 1
                self._cross(held, -1)
                self._finish(request, held)

    def _finish(self, request: int, held: int) -> None:
        """A request that holds `held` KV tokens leaves."""
        del self._running[request]
        blocks = -(-held // self.spec.block_size)
        self._used_blocks -= blocks
        self._freed_last = self._freed_last + blocks if self._left_last else blocks
        if self._reserved_blocks:
            self._reserved_blocks -= self._blocks(held + 1)
        now = self.clock // FS_PER_PS
        self._finish_ps[request] = now
        self._emitted_tokens[request] = self._output[request]
        self._status[request] = FINISHED
        self.left.append(request)
        self._leave(now)

    def _decode_span(self, until_fs: int, *, single: bool, whole: bool) -> int:
        """Steps in which only decoding goes on, up to the next one in which anything else can happen.

        Returns the time at which they end. With `whole`, steps that would end after `until_fs` are not run.
        """
        decodes, context = self._decodes, self._context
        span = self.costs.decode_span(self.step, decodes, context, 1 if single else self._steps_to_finish())
        steps, used = self._steps_with_blocks(span.steps)
        duration = span.duration_fs(steps)
        if steps > 1 or whole:
            change = self._next_change(until_fs)
            if whole and change == until_fs and self.clock + duration > until_fs:
                # Its first step has not grown yet.
                self._used_blocks -= self._crossings[self.step % self.spec.block_size]
                # Who arrives at that very time may join before the span ends, and leave first.
                return until_fs if self._head_fs == until_fs else self.clock + duration
            limit = change - self.clock
            if steps > 1 and (duration > limit or duration > _SPAN_FS_LIMIT):
                limit = min(limit, _SPAN_FS_LIMIT)
                steps, duration = span.first_reaching(limit, steps, duration)
                steps, used = self._steps_with_blocks(steps)
        now = self.clock
        if self._joined:
            self._join(now, now + span.duration_fs(1))
        self._take(
            (
                *(now // FS_PER_PS, now % FS_PER_PS, steps, decodes, context, 0, 0, decodes, span.busiest_tokens),
                *(0, 0, 0, 0, self._used_blocks, used, duration),
            )
        )
        self._used_blocks = used
        self.clock = now + duration
        self.step += steps
        self._context = context + steps * decodes
        self._left_last = 0
        if self._finish_heap[0][0] <= self.step:
            self._retire()
        return self.clock

    def _steps_to_finish(self) -> int:
        """Steps until the first decoding request has all its tokens."""
        heap, running = self._finish_heap, self._running
        while True:
            finish_step, request = heap[0]
            if running.get(request) == finish_step:
                return finish_step - self.step
            heappop(heap)  # preempted since it was pushed

    def _next_change(self, until_fs: int) -> int:
        """Time from which a new request could join, or `until_fs`: who waits already is blocked until one finishes."""
        if (
            self._head_fs >= until_fs
            or self._head_fs <= self.clock
            or self._preempted
            or len(self._running) >= self.spec.max_num_seqs
            or self._decodes >= self._budget
        ):
            return until_fs
        return self._head_fs

    def _steps_with_blocks(self, steps: int) -> tuple[int, int]:
        """(steps, blocks used then): as many of `steps` as the free blocks allow; the first has its blocks already."""
        size = self.spec.block_size
        free = self.kv_blocks - self._used_blocks
        cycles, rest = divmod(steps - 1, size)
        needed = cycles * self._decodes
        if needed + self._decodes > free:
            cycles = min(cycles, free // self._decodes)
            needed = cycles * self._decodes
            done = cycles * size
            while done < steps - 1:
                crossing = self._crossings[(self.step + 1 + done) % size]
                if needed + crossing > free:
                    break
                needed += crossing
                done += 1
            return done + 1, self._used_blocks + needed
        if rest:
            first = (self.step + 1) % size
            needed += sum(self._crossings[first : first + rest])
        return steps, self._used_blocks + needed
