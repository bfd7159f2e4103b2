"""What plain Python costs on this machine in this minute: loops with nothing but the least that a simulator must do.

A simulator that takes every step by itself cannot be quicker than the counter loop; one that jumps from request to
request cannot be quicker than the heap loop. Both are lower bounds without batching limits, memory, or metrics.
"""

from __future__ import annotations

import random
import time
from heapq import heappop, heappush


def counter_loop_s(steps: int) -> float:
    """Seconds for `steps` steps that each move a clock by an affine function of a growing context."""
    base, slope, decodes = 6_000_000_000, 1_000, 6
    clock = context = 0
    began = time.perf_counter()
    for _ in range(steps):
        clock += base + slope * context
        context += decodes
    return time.perf_counter() - began


def heap_loop_s(requests: int) -> float:
    """Seconds for `requests` requests that each enter and leave a heap of finish steps, six at a time."""
    draw = random.Random(0)
    lengths = [draw.randrange(10, 400) for _ in range(requests)]
    heap: list[tuple[int, int]] = []
    clock = step = context = 0
    began = time.perf_counter()
    for request, length in enumerate(lengths):
        heappush(heap, (step + length, request))
        context += length
        if len(heap) > 6:
            finish, _ = heappop(heap)
            steps = finish - step
            clock += steps * (6_000_000_000 + 1_000 * context) + 1_000 * len(heap) * (steps * (steps - 1) // 2)
            context += steps * len(heap)
            step = finish
    return time.perf_counter() - began
