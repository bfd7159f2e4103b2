"""The KV cache of a replica: how many blocks its requests have, by groups of layers.

A request has the blocks of all its tokens in groups of layers that see the whole context, and no more than its window
touches in windowed ones: at most `KvGroups.window_blocks`. While its prompt is computed, these hold in addition what a
chunk brings; all blocks that a prompt needs in any of its steps are taken when it is admitted, as vLLM's limit for
admission has it.
"""

from __future__ import annotations

from typing import Any

from pimserve.device_models.kv_groups import NO_WINDOWS, KvGroups


class KvCache:
    """Blocks of one replica.

    Args:
        blocks: how many there are.
        block_size: tokens of a block.
        groups: how layers share them.
        chunk_tokens: of a prompt that a step computes at most; None: all.
        oracle: a request is admitted only if all tokens that it will ever have fit beside those of all others.
    """

    def __init__(
        self,
        blocks: int,
        block_size: int,
        groups: KvGroups = NO_WINDOWS,
        chunk_tokens: int | None = None,
        *,
        oracle: bool = False,
    ) -> None:
        self.blocks = blocks
        self.block_size = block_size
        self.groups = groups
        self.windowed = groups != NO_WINDOWS  # else a block for every `block_size` tokens
        self._chunk_tokens = 2**62 if chunk_tokens is None else chunk_tokens
        self._oracle = oracle
        self.clear()

    def clear(self) -> None:
        """Lose everything."""
        self.used = 0
        self._reserved = 0  # by oracle admission
        # Blocks of requests that were handed over, until they have been sent; of one that came again while the first
        # hand-over, which was lost, was still to end, those of both.
        self._sending: dict[int, list[int]] = {}

    def blocks_of(self, tokens: int, *, prompt: bool = False) -> int:
        """Blocks of a request with so many tokens, of which the `prompt` may not be computed yet."""
        if not self.windowed:
            return -(-tokens // self.block_size)
        return self.groups.blocks(tokens, self.block_size, self._chunk_tokens if prompt else 1)

    def admit(self, tokens: int, most_tokens: int, *, prompt: bool) -> bool:
        """Take the blocks of a request that has `tokens`, and will have `most_tokens`, if they are free.

        Its `prompt` has to be computed, unless it brings its KV cache.
        """
        blocks = self.blocks_of(tokens, prompt=prompt) if self.windowed else -(-tokens // self.block_size)
        if blocks > self.blocks - self.used:
            return False
        if self._oracle:
            reserved = self._reserve(tokens, most_tokens) if prompt else self.blocks_of(most_tokens)
            if reserved > self.blocks - self._reserved:
                return False
            self._reserved += reserved
        self.used += blocks
        return True

    def computed(self, tokens: int, most_tokens: int) -> int:
        """The prompt of a request, all its `tokens`, is computed; returns the blocks that left its windows."""
        freed = self.blocks_of(tokens, prompt=True) - self.blocks_of(tokens)
        self.used -= freed
        if self._oracle:
            self._reserved -= self._reserve(tokens, most_tokens) - self.blocks_of(most_tokens)
        return freed

    def preempt(self, tokens: int, *, prompt: bool) -> None:
        """A request with `tokens` is preempted, as no oracle lets happen; its `prompt` may not be computed yet."""
        self.used -= self.blocks_of(tokens, prompt=prompt)

    def release(self, tokens: int, most_tokens: int) -> int:
        """A request with `tokens` leaves; returns the blocks that it had."""
        blocks = self.blocks_of(tokens) if self.windowed else -(-tokens // self.block_size)
        self.used -= blocks
        if self._oracle:
            self._reserved -= self.blocks_of(most_tokens)
        return blocks

    def send(self, request: int, tokens: int) -> None:
        """A request leaves whose `tokens` keep their blocks until they have been sent on."""
        self._sending.setdefault(request, []).append(self.blocks_of(tokens))

    def sent(self, request: int) -> None:
        """They have been; of those that are sent twice, the first."""
        first, *others = self._sending.pop(request)
        self.used -= first
        if others:
            self._sending[request] = others

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
        self._sending = {request: list(blocks) for request, blocks in state["held"]}

    def _reserve(self, tokens: int, most_tokens: int) -> int:
        """Blocks that a request has at most while its prompt of `tokens` is computed, and after."""
        later = self.blocks_of(most_tokens)
        if not self.windowed:
            return later
        size = self.block_size
        while_computed = self.groups.windowed * min(
            -(-tokens // size), self.groups.window_blocks(size, self._chunk_tokens)
        )
        full = self.groups.full * -(-most_tokens // size)
        return max(later, full + while_computed)
