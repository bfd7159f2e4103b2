"""KV blocks of preempted requests in host memory, and the link to it.

As vLLM V0's preemption by swap: blocks are copied out before the step that needs their room, and back before the step
in which the request decodes on, one after the other over one link; the replica computes nothing meanwhile. Requests
whose prompt is not computed yet, and those for which there is no room in the space, compute again what they had.
"""

from __future__ import annotations

from typing import Any


class SwapSpace:
    """That of one replica.

    Args:
        blocks: KV blocks that it holds.
        fs_per_block: how long the link takes for one, either way.
    """

    def __init__(self, blocks: int, fs_per_block: int) -> None:
        self.blocks = blocks
        self.fs_per_block = fs_per_block
        self.clear()

    def clear(self) -> None:
        """Lose everything."""
        self.used = 0
        self.held: dict[int, int] = {}  # by request: its blocks
        self._copied = 0  # blocks, before the step that comes next

    def take(self, request: int, blocks: int) -> bool:
        """Copy out the blocks of a request, if there is room for them."""
        if blocks > self.blocks - self.used:
            return False
        self.held[request] = blocks
        self.used += blocks
        self._copied += blocks
        return True

    def give_back(self, request: int) -> int:
        """Copy in the blocks of a request; returns how many there are."""
        blocks = self.drop(request)
        self._copied += blocks
        return blocks

    def drop(self, request: int) -> int:
        """Forget a request, if it is here; returns its blocks."""
        blocks = self.held.pop(request, 0)
        self.used -= blocks
        return blocks

    def wait_fs(self) -> int:
        """How long the step that comes next waits for copies."""
        waits_fs = self._copied * self.fs_per_block
        self._copied = 0
        return waits_fs

    def state(self) -> list[Any]:
        """What it holds, and what the next step waits for, as JSON can hold it."""
        return [self._copied, *self.held.items()]

    def restore(self, state: list[Any]) -> None:
        """Go on from `state`."""
        self._copied, *held = state
        self.held = dict(held)
        self.used = sum(self.held.values())
