"""The decoding requests of a replica, as sums: each gains one token in every step.

How many there are, the sum of their contexts, how many KV blocks they take in which step, and a heap of the steps in
which they finish are all that a step, or a stretch of steps in which none of them joins or leaves, needs to know.

A request takes a block of every group of layers when it crosses into one, until its windows hold all that they ever
will: from then on, windowed groups drop a block for each that they take. When that comes, a stretch of steps ends.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from heapq import heapify, heappop, heappush
from typing import Any

from pimserve.device_models.kv_groups import KvGroups
from pimserve.scheduler.spec_decode_figures import SpecDecodeFigures


class Decoding:
    """Decoding requests.

    Args:
        running: all running requests in order of admission, and the step at whose start each will have finished; 0
            for those whose prompt is not computed yet.
        block_size: tokens of a KV block.
        groups: how layers share them.
        in_order: those that end together are told in order of admission.
    """

    verify_tokens = 1  # of each that pass through the layers in a step
    spec_decode: SpecDecodeFigures | None = None  # what came of drafts, where there are some

    def __init__(self, running: dict[int, int], block_size: int, groups: KvGroups, *, in_order: bool = False) -> None:
        self._running = running
        self._in_order = in_order
        self._block_size = block_size
        self._full = groups.full
        self._windowed = groups.windowed
        self._window_tokens = groups.window_blocks(block_size) * block_size if groups.windowed else 0  # that fill it
        self.clear()

    def clear(self) -> None:
        """Nobody decodes."""
        self.count = 0
        self.context = 0  # sum of the tokens that they attend to in the next step
        self._finish_steps: list[tuple[int, int]] = []  # heap of (step, request)
        # Blocks that they take in steps = i modulo the block size, and those of all i.
        self._crossings = [0] * self._block_size
        self._per_cycle = 0
        # Heap of (the step in which its windows are full, the one in which it has finished) of those who take for them.
        self._filling: list[tuple[int, int, int]] = []

    def join(self, request: int, held: int, step: int, left: int) -> None:
        """A request with `held` KV tokens decodes from `step` on, for `left` tokens."""
        self.count += 1
        self.context += held + 1
        self._running[request] = finish_step = step + left
        heappush(self._finish_steps, (finish_step, request))
        blocks = self._full
        if held < self._window_tokens:
            blocks += self._windowed
            heappush(self._filling, (step + self._window_tokens - held, finish_step, request))
        self._crossings[(step - held) % self._block_size] += blocks
        self._per_cycle += blocks

    def leave(self, request: int, held: int, step: int) -> int:
        """A request with `held` KV tokens before `step` decodes no more; returns those that it has blocks for."""
        self.count -= 1
        self.context -= held + 1
        blocks = self._full + self._windowed if held < self._window_tokens else self._full
        self._crossings[(step - held) % self._block_size] -= blocks
        self._per_cycle -= blocks
        return held

    def left(self, _request: int, finish_step: int, step: int) -> int:
        """Tokens that a request has to emit from `step` on, which will have finished at the start of `finish_step`."""
        return finish_step - step

    def steps_of(self, _request: int, tokens: int, _step: int) -> int:
        """Steps before this one in which it decoded its last `tokens`."""
        return tokens

    def emits(self, _step: int) -> int:
        """Tokens that they emit in the next step."""
        return self.count

    def advance(self, steps: int, step: int) -> Sequence[int]:
        """After `steps` more steps, `step` comes next: the requests that have all their tokens, each told once."""
        self.context += steps * self.count
        if self._filling and self._filling[0][0] <= step:
            self._fill(step)
        heap = self._finish_steps
        if not heap or heap[0][0] > step:
            return ()
        finished = []
        while heap and heap[0][0] <= step:
            entry = finish_step, request = heappop(heap)
            if heap and heap[0] == entry:
                continue  # preempted, and back before the next step: there twice
            if self._running.get(request) == finish_step:  # else it was preempted since
                finished.append(request)
        if self._in_order and len(finished) > 1:
            together = set(finished)
            return [request for request in self._running if request in together]
        return finished

    def steps_to_change(self, step: int) -> int:
        """Steps from `step` on until the first one has all its tokens, or full windows."""
        heap, filling, running = self._finish_steps, self._filling, self._running
        while running.get(heap[0][1]) != heap[0][0]:
            heappop(heap)  # preempted since it was pushed
        while filling and running.get(filling[0][2]) != filling[0][1]:
            heappop(filling)
        return (min(heap[0][0], filling[0][0]) if filling else heap[0][0]) - step

    def growth(self, step: int) -> int:
        """KV blocks that they take in `step`."""
        return self._crossings[step % self._block_size]

    def growths(self, step: int, steps: int) -> list[tuple[int, int]]:
        """(how many steps after `step`, KV blocks) of each of the next `steps`, but the first one, that takes some."""
        size = self._block_size
        first = sorted(((at - step - 1) % size + 1, blocks) for at, blocks in enumerate(self._crossings) if blocks)
        cycles = range(0, steps - 1, size)
        return [(cycle + later, blocks) for cycle in cycles for later, blocks in first if cycle + later < steps]

    def steps_within(self, steps: int, step: int, free: int) -> int:
        """As many of `steps` from `step` on as `free` blocks allow; the first one has its own."""
        size, per_cycle = self._block_size, self._per_cycle
        cycles = (steps - 1) // size
        if (cycles + 1) * per_cycle <= free:
            return steps
        cycles = min(cycles, free // per_cycle)
        needed = cycles * per_cycle
        done = cycles * size
        while done < steps - 1:
            needed += self._crossings[(step + 1 + done) % size]
            if needed > free:
                break
            done += 1
        return done + 1

    def blocks_within(self, steps: int, step: int) -> int:
        """KV blocks that they take in so many steps from `step` on, but for the first one."""
        size = self._block_size
        cycles, rest = divmod(steps - 1, size)
        needed = cycles * self._per_cycle
        if rest:
            first = (step + 1) % size
            needed += sum(self._crossings[first : first + rest])
            if first + rest > size:
                needed += sum(self._crossings[: first + rest - size])
        return needed

    def state(self) -> dict[str, Any]:
        """The sums, as JSON can hold them."""
        return {
            "_decodes": self.count,
            "_context": self.context,
            "finish_heap": self._finish_steps,
            "crossings": self._crossings,
        }

    def restore(self, state: dict[str, Any], step: int, held: Mapping[int, int]) -> None:
        """Go on from `state` before `step`; `running` is as it was then, and decoding requests hold so many tokens."""
        self.count, self.context = state["_decodes"], state["_context"]
        self._finish_steps = [(step, request) for step, request in state["finish_heap"]]
        self._crossings = list(state["crossings"])
        self._per_cycle = sum(self._crossings)
        self._filling = [
            (step + self._window_tokens - tokens, self._running[request], request)
            for request, tokens in held.items()
            if tokens < self._window_tokens
        ]
        heapify(self._filling)

    def _fill(self, step: int) -> None:
        """Windows that are full at the start of `step` take no more."""
        heap = self._filling
        while heap and heap[0][0] <= step:
            entry = full_step, finish_step, request = heappop(heap)
            if heap and heap[0] == entry:
                continue  # likewise
            if self._running.get(request) == finish_step:  # else it has left since
                self._crossings[full_step % self._block_size] -= self._windowed
                self._per_cycle -= self._windowed
