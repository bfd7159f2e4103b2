"""The decoding requests of a replica, as sums: each gains one token in every step.

How many there are, the sum of their contexts, how many cross into a new KV block in which step, and a heap of the steps
in which they finish are all that a step, or a stretch of steps in which none of them joins or leaves, needs to know.
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heappop, heappush
from typing import Any


class Decoding:
    """Decoding requests.

    Args:
        running: all running requests in order of admission, and the step at whose start each will have finished; 0
            for those whose prompt is not computed yet.
        block_size: tokens of a KV block.
    """

    def __init__(self, running: dict[int, int], block_size: int) -> None:
        self._running = running
        self._block_size = block_size
        self.clear()

    def clear(self) -> None:
        """Nobody decodes."""
        self.count = 0
        self.context = 0  # sum of the tokens that they attend to in the next step
        self._finish_steps: list[tuple[int, int]] = []  # heap of (step, request)
        # How many cross into a new block in steps = i modulo the block size, twice over.
        self._crossings = [0] * (2 * self._block_size)

    def join(self, request: int, held: int, step: int, left: int) -> None:
        """A request with `held` KV tokens decodes from `step` on, for `left` tokens."""
        self.count += 1
        self.context += held + 1
        slot = (step - held) % self._block_size
        crossings = self._crossings
        crossings[slot] += 1
        crossings[slot + self._block_size] += 1
        self._running[request] = finish_step = step + left
        heappush(self._finish_steps, (finish_step, request))

    def leave(self, held: int, step: int) -> None:
        """A request with `held` KV tokens before `step` decodes no more."""
        self.count -= 1
        self.context -= held + 1
        slot = (step - held) % self._block_size
        crossings = self._crossings
        crossings[slot] -= 1
        crossings[slot + self._block_size] -= 1

    def advance(self, steps: int, step: int) -> Sequence[int]:
        """After `steps` more steps, `step` comes next: the requests that have all their tokens, each told once."""
        self.context += steps * self.count
        heap = self._finish_steps
        if not heap or heap[0][0] > step:
            return ()
        finished = []
        while heap and heap[0][0] <= step:
            finish_step, request = heappop(heap)
            if self._running.get(request) == finish_step:  # else it was preempted since
                finished.append(request)
        return finished

    def steps_to_finish(self, step: int) -> int:
        """Steps from `step` on until the first one has all its tokens."""
        heap, running = self._finish_steps, self._running
        while True:
            finish_step, request = heap[0]
            if running.get(request) == finish_step:
                return finish_step - step
            heappop(heap)  # preempted since it was pushed

    def growth(self, step: int) -> int:
        """KV blocks that they cross into in `step`."""
        return self._crossings[step % self._block_size]

    def steps_within(self, steps: int, step: int, free: int) -> tuple[int, int]:
        """(as many of `steps` from `step` on as `free` blocks allow, blocks that they take); the first has its own."""
        size = self._block_size
        cycles, rest = divmod(steps - 1, size)
        needed = cycles * self.count
        if needed + self.count > free:
            cycles = min(cycles, free // self.count)
            needed = cycles * self.count
            done = cycles * size
            while done < steps - 1:
                crossing = self._crossings[(step + 1 + done) % size]
                if needed + crossing > free:
                    break
                needed += crossing
                done += 1
            return done + 1, needed
        if rest:
            first = (step + 1) % size
            needed += sum(self._crossings[first : first + rest])
        return steps, needed

    def state(self) -> dict[str, Any]:
        """The sums, as JSON can hold them."""
        return {
            "_decodes": self.count,
            "_context": self.context,
            "finish_heap": self._finish_steps,
            "crossings": self._crossings,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`; `running` is as it was then."""
        self.count, self.context = state["_decodes"], state["_context"]
        self._finish_steps = [(step, request) for step, request in state["finish_heap"]]
        self._crossings = list(state["crossings"])
