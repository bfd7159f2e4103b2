"""Requests of one group of a replica's devices: a queue, running requests, and the KV cache that they share.

What vLLM calls an engine core: a replica has one, or one for each data-parallel group. It knows who runs and for how
long, and nothing of what steps cost: its replica's engine tells it when they end.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from pimserve.device_models.plan import FS_PER_PS, ChunkShape
from pimserve.scheduler.acceptance import Acceptance
from pimserve.scheduler.config import SchedulerSpec
from pimserve.scheduler.departures import Departures
from pimserve.scheduler.kv_cache import KvCache
from pimserve.scheduler.queue_classes import QueueClass
from pimserve.scheduler.queues import make_admission, make_queue
from pimserve.scheduler.requests import FOREVER, RequestTable
from pimserve.scheduler.sessions import Sessions
from pimserve.scheduler.steplog import StepLog


class EngineCore:
    """One of a replica.

    Args:
        spec: scheduler settings.
        kv: the KV cache, empty.
        table: requests of the run; the rows of those that are here are written.
        log: of the replica.
        departures: takes those who leave the replica.
        replica: its number.
        seed: of how many drafts are accepted.
        pool: "prefill": requests leave after their first token; "decode": they come with their KV cache; "": neither.
        sessions: told of ends here, if they are not routed; None: whoever follows is submitted as any other.
        classes: of requests, as queues know them.
    """

    # What each step asks for: of an object with 30 attributes or more, CPython looks each up in a dict.
    __slots__ = (
        "__dict__",
        "_emitted_tokens",
        "_first_token_ps",
        "_input",
        "_log",
        "_longest",
        "_output",
        "_token_at_fs",
        "admission",
        "clock",
        "decoding",
        "departures",
        "ended",
        "kv",
        "queue",
        "running",
        "step",
    )
    prefill_first = False  # whether steps have prompts alone while there are any
    prompt_steps = 0  # of prompts alone, which are not among those that `step` counts, as nobody decodes in them

    def __init__(
        self,
        spec: SchedulerSpec,
        *,
        kv: KvCache,
        table: RequestTable,
        log: StepLog,
        departures: Departures,
        replica: int,
        seed: int,
        pool: str = "",
        sessions: Sessions | None = None,
        classes: Sequence[QueueClass] = (QueueClass(),),
    ) -> None:
        self.clock = 0  # fs; start of the next step
        self.step = 0  # number of the next step of those that decode
        self.preempted: Counter[str] = Counter()  # how often, by cause (`requests.PREEMPTION_CAUSES`)
        self._log = log
        self._longest = log.longest if log.longest.wanted else None
        self._pool = pool
        self.kv = kv
        self.departures = departures
        self.queue = make_queue(spec, table, departures.reject, sessions, classes)
        # Running requests in admission order: the step at whose start it will have finished, or 0 while in prefill.
        self.running: dict[int, int] = {}
        drafts = None if pool == "prefill" else spec.speculative  # nobody decodes there
        acceptance = None if drafts is None else Acceptance(drafts, seed)
        decodes_at_once = pool == "decode"
        rooms = make_admission(self.queue, kv, self.running, replica, decodes_at_once, acceptance)
        self.decoding, self.admission = rooms
        self._token_at_fs = self.admission.token_at_fs
        self.ended: Callable[[int], None] | None = None  # told of each request that finishes

    def bind(self, table: RequestTable) -> None:
        """Write into this table from here on, which holds the same requests."""
        self._input = table.views["input_tokens"]
        self._output = table.views["output_tokens"]
        # A table of which rows are not known yet has 0 tokens for them.
        self._least_steps = max(1, -(-table.least_output // self.decoding.verify_tokens))
        self._first_token_ps = table.views["first_token_ps"]
        self._emitted_tokens = table.views["emitted_tokens"]
        self._preemptions = table.views["preemptions"]
        self._swaps, self._swapped_blocks = table.views["swaps"], table.views["swapped_blocks"]
        self._swap_space_full = table.views["swap_space_full"]
        self.kv.bind(table)
        self.queue.bind(table)
        self.admission.bind(table)

    def core_state(self) -> dict[str, Any]:
        """What it has in hand, as JSON can hold it; the rows of its requests are not in it."""
        return {
            "running": list(self.running.items()),
            "preempted": dict(self.preempted),
            **self.queue.state(),
            **self.decoding.state(),
            **self.kv.state(),
            **self.admission.state(),
        }

    def restore_core(self, state: dict[str, Any]) -> None:
        """Go on from `core_state`, before the step that comes next."""
        self.running.clear()
        self.running.update(state["running"])
        self.preempted = Counter(state["preempted"])
        for room in (self.queue, self.admission, self.kv):
            room.restore(state)
        ends = {request: finish_step - self.step for request, finish_step in self.running.items() if finish_step}
        held = {request: self._input[request] + self._output[request] - 1 - left for request, left in ends.items()}
        self.decoding.restore(state, self.step, held)

    def make_room(self) -> int:
        """Preempt requests until there are blocks for what the others cross into in this step; returns how many."""
        while (blocks := self.decoding.growth(self.step)) > self.kv.blocks - self.kv.used:
            self._preempt()
        return blocks

    def grow(self) -> bool:
        """Take the blocks that decoding requests cross into in the step that begins; whether it preempted anybody."""
        if not self.decoding.count:
            return False
        blocks = self.decoding.growth(self.step)
        if short := blocks > self.kv.blocks - self.kv.used:
            blocks = self.make_room()
        self.kv.used += blocks
        return short

    @property
    def steps(self) -> int:
        """How many there were."""
        return self.step + self.prompt_steps

    @property
    def has_work(self) -> bool:
        """Whether somebody waits, or has a prompt that was cut, as the step begins."""
        return self.queue.next_fs <= self.clock or bool(self.admission.partial)

    def steps_to_end(self) -> int:
        """Steps until the first one at whose end somebody may leave, of those who are here, whoever comes."""
        decoding, admission = self.decoding, self.admission
        steps = decoding.steps_to_change(self.step) if decoding.count else FOREVER
        if not admission.partial and not admission.loading and self.queue.next_fs == FOREVER:
            return steps
        # Whoever has been here before may lack one token.
        first = 1 if self._token_at_fs or self._pool == "prefill" else self._least_steps
        return first if first < steps else steps

    def schedule(self, *, admit: bool) -> tuple[list[ChunkShape], list[int]]:
        """Chunks of prompts in the step that begins, and requests whose prompt is complete with it."""
        return self.admission.schedule(self.step, self.clock, admit=admit) if self.has_work else ([], [])

    def late_fs(self) -> int:
        """Time by which tokens of the next step are late beside the step itself, which has passed on return.

        Here blocks go to host memory, and come back, before it; an engine may have others (`PrefillFirstEngine`).
        """
        if self.kv.swap is None:
            return 0
        waits_fs = self.kv.swap.wait_fs()
        self.clock += waits_fs
        return waits_fs

    def held_up(self, waits_fs: int, step_fs: int) -> None:
        """The step that begins now did not follow on the last one: those that decode wait longer for their tokens.

        Args:
            waits_fs: as `late_fs` has it: here, for copies.
            step_fs: time of the step.
        """
        joined, gap_fs = {request for request, _ in self.admission.joined}, waits_fs + step_fs
        held = [request for request, finish_step in self.running.items() if finish_step and request not in joined]
        self._log.joined([gap_fs] * len(held), step_fs, self.clock + step_fs)
        if self._longest is not None:
            for request in held:
                self._longest.waited(request, gap_fs)

    def join(self, step_fs: int) -> None:
        """Those that joined have their first token here at the end of the step that begins now."""
        end_fs = self.clock + step_fs
        joined = self.admission.joined
        self._log.joined([end_fs - token_fs for _, token_fs in joined], step_fs, end_fs)
        if self._longest is not None:
            for request, token_fs in joined:
                self._longest.waited(request, end_fs - token_fs)
        joined.clear()

    def decoded(self, steps: int, clock_fs: int) -> None:
        """So many steps are over, at that time: requests that have all their tokens leave."""
        self.clock = clock_fs
        self.step = step = self.step + steps
        if self.kv.tiers is not None:
            self.kv.tiers.end_step(clock_fs)
        for request in self.decoding.advance(steps, step):
            held = self._input[request] + self._output[request] - 1
            if self._longest is not None:
                self._emit(request, step)
            self._finish(request, held, self.decoding.leave(request, held, step))

    def complete(self, completed: Sequence[int], begin_fs: int) -> None:
        """Requests whose prompt a step from then on has computed have a token, and decode from the next step on."""
        kv, now, step = self.kv, self.clock, self.step
        for request in completed:
            if request in self._token_at_fs:
                emitted = self._emitted_tokens[request] + 1
                gap_fs = now - self._token_at_fs.pop(request)
                self._log.resumed(gap_fs, now)
                if self._longest is not None:
                    self._longest.waited(request, gap_fs)
            else:
                emitted = 1
                self._first_token_ps[request] = now // FS_PER_PS
                if self.departures.first_tokens is not None:
                    self.departures.first_tokens.append(request)
            left = self._output[request] - emitted
            held = self._input[request] + emitted - 1
            if kv.windowed:
                self.departures.freed_last += kv.computed(request, held)
            if not left:
                self._finish(request, held, held)
            elif self._pool == "prefill":
                del self.running[request]
                kv.send(request, held)
                self.departures.hand_over(request, now, emitted, begin_fs)
            else:
                self.decoding.join(request, held, step, left)

    def lose(self) -> tuple[int, list[int]]:
        """Lose the KV cache; returns the tokens that were there, or coming with requests, and who ran."""
        lost: int = sum(computed for _, computed in self.admission.partial.values())
        coming = [request for request in self.queue.waiting() if self.admission.brings_kv(request)]
        lost += sum(map(self.brought_tokens, coming))
        for request, finish_step in self.running.items():
            if finish_step:
                emitted = self._emit(request, finish_step)
                self._token_at_fs[request] = self.clock
                lost += self._input[request] + emitted - 1
        running = [*self.running, *self.admission.loads()]
        self.running.clear()
        self.admission.loading.clear()
        self.decoding.clear()
        self.kv.clear()
        self.admission.partial.clear()
        return lost, running

    def forget(self, at_fs: int) -> None:
        """Nothing is cached any more at that time, nor in tiers; nobody has blocks."""
        if self.kv.tiers is not None:
            self.kv.tiers.end_step(max(self.clock, at_fs))  # what was written until then was
        self.kv.clear()

    def brought_tokens(self, request: int) -> int:
        """Tokens of the KV cache that a request brings."""
        tokens: int = self._input[request] + self._emitted_tokens[request] - 1
        return tokens

    def settle(self) -> None:
        """Write down how far requests have come that the end of the run leaves unfinished."""
        for request, finish_step in self.running.items():
            if finish_step:
                self._emit(request, finish_step)

    def _emit(self, request: int, finish_step: int) -> int:
        """Write down how many tokens a request has that decodes; returns them."""
        emitted: int = self._output[request] - self.decoding.left(request, finish_step, self.step)
        if self._longest is not None:
            # What it came with it has not decoded here; of the first token nobody waits for another.
            tokens = emitted - max(1, self._emitted_tokens[request])
            self._tell_longest(request, self.decoding.steps_of(request, tokens, self.step))
        self._emitted_tokens[request] = emitted
        return emitted

    def _tell_longest(self, request: int, steps: int) -> None:
        """The request has decoded in the last so many steps."""
        assert self._longest is not None
        self._longest.decoded(request, self.step, steps)

    def _preempt(self) -> None:
        """Take a request off the device; it will recompute what it had, or has it in host memory."""
        request = self.queue.victim(self.running, self.clock)
        finish_step = self.running.pop(request)
        prompt = self._input[request]
        if finish_step:
            emitted = self._emit(request, finish_step)
            held = self.decoding.leave(request, prompt + emitted - 1, self.step)
            self._token_at_fs[request] = self.clock
        else:
            held = prompt + self._emitted_tokens[request]
            del self.admission.partial[request]
        self.queue.put_back(request)
        self.queue.tokens += self.queue.tokens_of((request,))
        self._preemptions[request] += 1
        self.kv.preempt(request, held, prompt=not finish_step)
        swap = self.kv.swap
        if swap is None or not finish_step:
            self.preempted["recompute"] += 1
        elif swap.take(request, blocks := self.kv.blocks_of(held)):
            self.preempted["swap"] += 1
            self._swaps[request] += 1
            self._swapped_blocks[request] += blocks
        else:
            self.preempted["swap_space_full"] += 1
            self._swap_space_full[request] += 1

    def _finish(self, request: int, held: int, slots: int) -> None:
        """A request that holds `held` KV tokens, and has blocks for `slots`, leaves with all its tokens."""
        del self.running[request]
        self.departures.finish(request, self.clock, self.kv.release(request, slots), held + 1)
        if self.ended is not None:
            self.ended(request)
