"""The KV cache of a replica: how many blocks its requests have."""

from __future__ import annotations

from typing import Any


class KvCache:
    """Blocks of one replica.

    Args:
        blocks: how many there are.
        block_size: tokens of a block.
        oracle: a request is admitted only if all tokens that it will ever have fit beside those of all others.
    """

    def __init__(self, blocks: int, block_size: int, *, oracle: bool = False) -> None:
        self.blocks = blocks
        self.block_size = block_size
        self._oracle = oracle
        self.clear()

    def clear(self) -> None:
        """Lose everything."""
        self.used = 0
        self._reserved = 0  # by oracle admission
        self._sending: dict[int, int] = {}  # blocks of requests that were handed over, until they have been sent

    def blocks_of(self, tokens: int) -> int:
        """Blocks that hold so many tokens of a request."""
        return -(-tokens // self.block_size)

    def admit(self, tokens: int, most_tokens: int) -> bool:
        """Take the blocks of a request that has `tokens`, and will have `most_tokens`, if they are free."""
        blocks = -(-tokens // self.block_size)
        if blocks > self.blocks - self.used:
            return False
        if self._oracle:
            reserved = self.blocks_of(most_tokens)
            if reserved > self.blocks - self._reserved:
                return False
            self._reserved += reserved
        self.used += blocks
        return True

    def release(self, tokens: int, most_tokens: int) -> int:
        """A request with `tokens` leaves, or is preempted; returns the blocks that it had."""
        blocks = -(-tokens // self.block_size)
        self.used -= blocks
        if self._oracle:
            self._reserved -= self.blocks_of(most_tokens)
        return blocks

    def send(self, request: int, tokens: int) -> None:
        """A request leaves whose `tokens` keep their blocks until they have been sent on."""
        self._sending[request] = self.blocks_of(tokens)

    def sent(self, request: int) -> None:
        """They have been, or were lost meanwhile."""
        self.used -= self._sending.pop(request, 0)

    @property
    def empty(self) -> bool:
        """Whether nobody has a block, or the promise of one."""
        return not (self.used or self._reserved or self._sending)

    def state(self) -> dict[str, Any]:
        """Who has what, as JSON can hold it."""
        return {
            "_used_blocks": self.used,
            "_reserved_blocks": self._reserved,
            "held": list(self._sending.items()),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self.used = state["_used_blocks"]
        self._reserved = state["_reserved_blocks"]
        self._sending = dict(state["held"])
