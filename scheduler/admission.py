"""Who is admitted in a step of a replica, and what of which prompts is computed in it.

Running requests first (a decode token each, then the prompt that was cut by the token budget), then those that wait,
while token budget, sequences and KV blocks last, as in vLLM's V1 scheduler.
"""

from __future__ import annotations

from typing import Any

from pimserve.device_models.plan import FS_PER_PS, ChunkShape
from pimserve.scheduler.config import SchedulerSpec
from pimserve.scheduler.decoding import Decoding
from pimserve.scheduler.kv_cache import KvCache
from pimserve.scheduler.queue import FcfsQueue
from pimserve.scheduler.requests import FOREVER, RequestTable


class Admission:
    """Fills the steps of one replica.

    Args:
        queue: who waits.
        kv: where admitted requests have their blocks.
        decoding: whom those join that bring their KV cache.
        running: all running requests in order of admission, those with a prompt to compute at 0.
        replica: number of the replica.
        takes_over: whether requests bring their KV cache, and decode at once.
    """

    def __init__(
        self,
        queue: FcfsQueue,
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
        self.partial: tuple[int, int, int] | None = None  # request, prefill length, computed
        # Requests that were preempted, or elsewhere, after their first token: when they had their last one.
        self.token_at_fs: dict[int, int] = {}
        self.joined_fs: list[int] = []  # last tokens of requests that decode for the first time in the next step

    def bind(self, table: RequestTable) -> None:
        """Read and write this table from here on, which holds the same requests."""
        self._input = table.views["input_tokens"]
        self._output = table.views["output_tokens"]
        self._emitted_tokens = table.views["emitted_tokens"]
        self._replica_of = table.views["replica"]
        self._first_scheduled_ps = table.views["first_scheduled_ps"]

    def use(self, spec: SchedulerSpec) -> None:
        """Admit by these settings from here on."""
        self._budget = spec.max_num_batched_tokens if spec.batching == "chunked" else FOREVER
        self._max_num_seqs = spec.max_num_seqs

    def schedule(self, step: int, now_fs: int, *, admit: bool) -> tuple[list[ChunkShape], list[int]]:
        """Chunks of prompts in a step, and requests whose prompt is complete with it; nobody joins without `admit`."""
        chunks: list[ChunkShape] = []
        completed: list[int] = []
        running, queue, kv = self._running, self._queue, self._kv
        budget = self._budget - self._decoding.count
        if self.partial is not None and budget > 0:
            budget = self._chunk(chunks, completed, *self.partial, budget)
        while admit and queue.next_fs <= now_fs and budget > 0 and len(running) < self._max_num_seqs:
            request = queue.peek()
            prompt = self._input[request]
            length = prompt + self._emitted_tokens[request]  # those that it had before, or elsewhere
            brings = self.brings_kv(request)
            if not kv.admit(length, prompt + self._output[request], prompt=not brings):
                break
            queue.pop()
            self._replica_of[request] = self._replica
            if self._first_scheduled_ps[request] < 0:
                self._first_scheduled_ps[request] = now_fs // FS_PER_PS
            if brings:
                self._take_over(request, length - 1, step)
                budget -= 1
                continue
            running[request] = 0
            if length <= budget:  # the usual case of _chunk
                chunks.append((length, 0))
                completed.append(request)
                budget -= length
            else:
                budget = self._chunk(chunks, completed, request, length, 0, budget)
        return chunks, completed

    def brings_kv(self, request: int) -> bool:
        """Whether a waiting request brings its KV cache: it has not been on this replica, where it was preempted."""
        return self._takes_over and self._replica_of[request] != self._replica

    def awaited_blocks(self) -> int:
        """KV blocks that those will take who wait where requests bring their KV cache."""
        waiting = self._queue.waiting() if self._takes_over else ()
        tokens = {request: self._input[request] + self._emitted_tokens[request] for request in waiting}
        return sum(self._kv.blocks_of(tokens[request], prompt=not self.brings_kv(request)) for request in waiting)

    def next_change_fs(self, now_fs: int) -> int:
        """When somebody comes who can be admitted; FOREVER if all have to wait until a request finishes."""
        if len(self._running) >= self._max_num_seqs or self._decoding.count >= self._budget:
            return FOREVER
        return self._queue.next_change_fs(now_fs)

    def state(self) -> dict[str, Any]:
        """What is between two steps, as JSON can hold it."""
        return {"joined": self.joined_fs, "partial": self.partial, "token_at": list(self.token_at_fs.items())}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self.joined_fs = list(state["joined"])
        self.partial = None if state["partial"] is None else tuple(state["partial"])
        self.token_at_fs.clear()
        self.token_at_fs.update(state["token_at"])

    def _take_over(self, request: int, held: int, step: int) -> None:
        """A request that brings its KV cache decodes from this step on; it has its blocks, that of the step too."""
        self._decoding.join(request, held, step, self._output[request] - self._emitted_tokens[request])
        self.joined_fs.append(self.token_at_fs.pop(request))

    def _chunk(
        self, chunks: list[ChunkShape], completed: list[int], request: int, length: int, computed: int, budget: int
    ) -> int:
        """Compute what the budget allows of a prompt; returns the budget left."""
        tokens = min(length - computed, budget)
        chunks.append((tokens, computed))
        if computed + tokens == length:
            completed.append(request)
            self.partial = None
        else:
            self.partial = (request, length, computed + tokens)
        return budget - tokens
