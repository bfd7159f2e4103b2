"""Who is admitted in a step of a replica, and what of which prompts is computed in it.

Running requests first (a decode token each, then prompts that were cut, by the token budget or as they are long), then
those that wait, while token budget, sequences and KV blocks last, as in vLLM's V1 scheduler. Where prompts go first, a
decode token takes nothing from a step's budget; where decodes do, one takes all of it.
"""

from __future__ import annotations

from bisect import insort
from operator import itemgetter
from typing import Any

from pimserve.device_models.plan import FS_PER_PS, ChunkShape
from pimserve.scheduler.config import SchedulerSpec
from pimserve.scheduler.decoding import Decoding
from pimserve.scheduler.kv_cache import KvCache
from pimserve.scheduler.request_queue import RequestQueue
from pimserve.scheduler.requests import FOREVER, RequestTable


class Admission:
    """Fills the steps of one replica.

    Args:
        queue: who waits.
        kv: where admitted requests have their blocks.
        decoding: whom those join that bring their KV cache.
        running: all running requests in order of admission, those with a prompt to compute at 0.
        replica: number of the replica.
        takes_over: whether requests that have tokens bring their KV cache, and decode at once.
    """

    def __init__(
        self,
        queue: RequestQueue[Any],
        kv: KvCache,
        decoding: Decoding,
        running: dict[int, int],
        replica: int,
        takes_over: bool,
    ) -> None:
        self._queue = queue
        self._kv = kv
        self._decoding = decoding
        self._running = running
        self._replica = replica
        self._takes_over = takes_over
        self.brings_some = takes_over or kv.swap is not None  # whether any may bring its KV cache
        self.partial: dict[int, tuple[int, int]] = {}  # requests by admission: prefill length, computed
        # Requests that have their blocks, and wait until the first of these are loaded: when, who, and tokens in them.
        self.loading: list[tuple[int, int, int]] = []
        # Requests that were preempted, or elsewhere, after their first token: when they had their last one.
        self.token_at_fs: dict[int, int] = {}
        # Requests that decode for the first time in the next step, and when they had their last tokens.
        self.joined: list[tuple[int, int]] = []

    def bind(self, table: RequestTable) -> None:
        """Read and write this table from here on, which holds the same requests."""
        self._input = table.views["input_tokens"]
        self._output = table.views["output_tokens"]
        self._emitted_tokens = table.views["emitted_tokens"]
        self._swapped_blocks = table.views["swapped_blocks"]
        self._replica_of = table.views["replica"]
        self._first_scheduled_ps = table.views["first_scheduled_ps"]

    def use(self, spec: SchedulerSpec) -> None:
        """Admit by these settings from here on."""
        self._budget = spec.chunk_tokens or FOREVER
        takes = {"prefill_first": 0, "decode_first": FOREVER}
        # Of the budget, by each that decodes; and how many of these leave no token to others.
        self._decode_tokens = takes.get(spec.batching, self._decoding.verify_tokens)
        self._most_decodes = -(-self._budget // self._decode_tokens) if self._decode_tokens else FOREVER
        self._most = spec.long_prefill_token_threshold or FOREVER  # tokens of one prompt in a step
        self._max_num_seqs = spec.max_num_seqs

    def schedule(self, step: int, now_fs: int, *, admit: bool) -> tuple[list[ChunkShape], list[int]]:
        """Chunks of prompts in a step, and requests whose prompt is complete with it; nobody joins without `admit`."""
        chunks: list[ChunkShape] = []
        completed: list[int] = []
        running, queue, kv, decoding = self._running, self._queue, self._kv, self._decoding
        tiers, at_once = kv.tiers, 0 if kv.prefixes else self._most  # tokens of a prompt that is computed in one go
        if tiers is not None:
            tiers.now_fs = now_fs
        budget = self._budget - decoding.count * self._decode_tokens
        if self.partial:
            for request, (length, computed) in list(self.partial.items()):
                if budget > 0:
                    budget = self._chunk(chunks, completed, request, length, computed, budget)
        if self.loading and admit:
            budget = self._loaded(chunks, completed, now_fs, budget)
        while admit and queue.next_fs <= now_fs and budget > 0 and len(running) < self._max_num_seqs:
            request = queue.peek(now_fs)
            length = self._input[request] + self._emitted_tokens[request]  # those that it had before, or elsewhere
            brings = self.brings_some and self.brings_kv(request)
            if brings and budget < decoding.verify_tokens:
                break
            there = kv.admit(request, length, prompt=not brings)
            if there < 0:
                break
            queue.pop()
            queue.tokens -= length
            self._replica_of[request] = self._replica
            if tiers is not None and tiers.ready_fs > now_fs:
                insort(self.loading, (tiers.ready_fs, request, there), key=itemgetter(0))  # among equals by admission
                continue
            if self._first_scheduled_ps[request] < 0:
                self._first_scheduled_ps[request] = now_fs // FS_PER_PS
            if brings:
                if kv.swap is not None:
                    self._swapped_blocks[request] += kv.swap.give_back(request)
                self._take_over(request, length - 1, step)
                budget -= decoding.verify_tokens
                continue
            running[request] = 0
            if length <= budget and length <= at_once:  # the usual case of _chunk
                chunks.append((length, 0))
                completed.append(request)
                budget -= length
            else:
                budget = self._chunk(chunks, completed, request, length, there, budget)
        return chunks, completed

    def has_prompt(self, now_fs: int, *, admit: bool) -> bool:
        """Whether the step that begins now can compute some of a prompt, where none brings its KV cache.

        Nobody joins without `admit`. Without prefix caching.
        """
        queue, decoding = self._queue, self._decoding
        if decoding.count >= self._most_decodes:
            return False
        if self.partial:
            return True
        if not admit or queue.next_fs > now_fs or len(self._running) >= self._max_num_seqs:
            return False
        request = queue.peek(now_fs)
        return self._kv.fits(request, self._input[request] + self._emitted_tokens[request])

    def looks_up(self, now_fs: int) -> bool:
        """Whether blocks may be looked up in the step that begins now, for somebody who waits."""
        return self._queue.next_fs <= now_fs and len(self._running) < self._max_num_seqs

    @property
    def has_free_slot(self) -> bool:
        """Whether fewer requests decode than may run."""
        return self._decoding.count < self._max_num_seqs

    def brings_kv(self, request: int) -> bool:
        """Whether a waiting request brings its KV cache: from another replica, or from host memory."""
        if self._kv.swap is not None and request in self._kv.swap.held:
            return True
        if not self._takes_over:
            return False
        elsewhere: bool = self._replica_of[request] != self._replica
        return elsewhere and self._emitted_tokens[request] > 0

    def awaited_blocks(self, queue: RequestQueue[Any]) -> int:
        """KV blocks that those in a queue will take where requests bring their KV cache."""
        if not self._takes_over:
            return 0
        waiting = queue.waiting()
        tokens = {request: self._input[request] + self._emitted_tokens[request] for request in waiting}
        return sum(self._kv.blocks_of(tokens[request], prompt=not self.brings_kv(request)) for request in waiting)

    def next_change_fs(self, now_fs: int) -> int:
        """When somebody comes who can be admitted; FOREVER if all have to wait until a request finishes."""
        if len(self._running) >= self._max_num_seqs or self._decoding.count >= self._most_decodes:
            return FOREVER
        next_fs = self._queue.next_change_fs(now_fs)
        return min(next_fs, self.next_loaded_fs(now_fs)) if self.loading else next_fs

    def next_loaded_fs(self, now_fs: int) -> int:
        """When the next blocks are there that somebody waits for, after now; FOREVER if nobody does."""
        return next((ready_fs for ready_fs, _, _ in self.loading if ready_fs > now_fs), FOREVER)

    def loads(self) -> list[int]:
        """Who waits for blocks that come from the tiers."""
        return [request for _, request, _ in self.loading]

    def loading_tokens(self) -> int:
        """Tokens of their prompts, and outputs so far."""
        return self._queue.tokens_of(self.loads())

    def open(self, now_fs: int) -> bool:
        """Whether one who comes may be admitted as things are: there is room, and nobody waits who is earlier."""
        if len(self._running) >= self._max_num_seqs or self._decoding.count >= self._most_decodes:
            return False
        return not self._queue.in_turn or self._queue.next_fs > now_fs

    def state(self) -> dict[str, Any]:
        """What is between two steps, as JSON can hold it."""
        return {
            "joined": self.joined,
            "partial": list(self.partial.items()),
            "loading": self.loading,
            "token_at": list(self.token_at_fs.items()),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self.joined = [(request, token_fs) for request, token_fs in state["joined"]]
        self.partial = {request: (length, computed) for request, (length, computed) in state["partial"]}
        self.loading[:] = [(ready_fs, request, there) for ready_fs, request, there in state["loading"]]
        self.token_at_fs.clear()
        self.token_at_fs.update(state["token_at"])

    def _loaded(self, chunks: list[ChunkShape], completed: list[int], now_fs: int, budget: int) -> int:
        """Those go on whose blocks are there, before all that wait; returns the budget left."""
        loading, running = self.loading, self._running
        while loading and loading[0][0] <= now_fs and budget > 0 and len(running) < self._max_num_seqs:
            _, request, there = loading.pop(0)
            if self._first_scheduled_ps[request] < 0:
                self._first_scheduled_ps[request] = now_fs // FS_PER_PS
            running[request] = 0
            length = self._input[request] + self._emitted_tokens[request]
            budget = self._chunk(chunks, completed, request, length, there, budget)
        return budget

    def _take_over(self, request: int, held: int, step: int) -> None:
        """A request that brings its KV cache decodes from this step on; it has its blocks, that of the step too."""
        self._kv.cache(request, held)
        self._decoding.join(request, held, step, self._output[request] - self._emitted_tokens[request])
        self.joined.append((request, self.token_at_fs.pop(request)))

    def _chunk(
        self, chunks: list[ChunkShape], completed: list[int], request: int, length: int, computed: int, budget: int
    ) -> int:
        """Compute what budget and threshold allow of a prompt; returns the budget left."""
        tokens = min(length - computed, budget, self._most)
        chunks.append((tokens, computed))
        self._kv.cache(request, computed + tokens)
        if computed + tokens == length:
            completed.append(request)
            self.partial.pop(request, None)
        else:
            self.partial[request] = length, computed + tokens
        return budget - tokens
