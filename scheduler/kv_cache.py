"""The KV cache of a replica: how many blocks its requests have, by groups of layers.

A request has the blocks of all its tokens in groups of layers that see the whole context, and no more than its window
touches in windowed ones: at most `KvGroups.window_blocks`. While its prompt is computed, these hold in addition what a
chunk brings; all blocks that a prompt needs in any of its steps are taken when it is admitted, as vLLM's limit for
admission has it.
"""

from __future__ import annotations

from typing import Any

from pimserve.device_models.kv_groups import NO_WINDOWS, KvGroups
from pimserve.scheduler.kv_tiers import KvTiers
from pimserve.scheduler.prefix_figures import PrefixFigures
from pimserve.scheduler.requests import RequestTable
from pimserve.scheduler.swap_space import SwapSpace
from pimserve.scheduler.tier_states import TiersState, tiers_state


class KvCache:
    """Blocks of one replica.

    Args:
        blocks: how many there are.
        block_size: tokens of a block.
        groups: how layers share them.
        chunk_tokens: of a prompt that a step computes at most; None: all.
        reserves: column of the request table with output tokens for which blocks are reserved when a request is
            admitted, so that nothing is ever preempted: output_tokens is an oracle, max_tokens what clients declare.
        most_tokens: that a request may have, which is what is reserved for one that declares nothing.
        lookahead_tokens: slots of each request beyond its tokens, for drafts of those that may follow.
        swap: host memory for the blocks of preempted requests; None: these are computed again.
    """

    prefixes = False  # whether it keeps what begins alike (`PrefixKvCache`)
    tiers: KvTiers | None = None  # below it

    def __init__(
        self,
        blocks: int,
        block_size: int,
        groups: KvGroups = NO_WINDOWS,
        chunk_tokens: int | None = None,
        *,
        reserves: str | None = None,
        most_tokens: int = 0,
        lookahead_tokens: int = 0,
        swap: SwapSpace | None = None,
    ) -> None:
        self.blocks = blocks
        self._lookahead = lookahead_tokens
        self.block_size = block_size
        self.groups = groups
        self.windowed = groups != NO_WINDOWS  # else a block for every `block_size` tokens
        self._chunk_tokens = 2**62 if chunk_tokens is None else chunk_tokens
        self._reserves = reserves
        self._most_tokens = most_tokens
        self.swap = swap
        self.clear()

    def clear(self) -> None:
        """Lose everything."""
        self.used = 0
        self._reserved = 0
        # Blocks of requests that were handed over, until they have been sent; of one that came again while the first
        # hand-over, which was lost, was still to end, those of both.
        self._sending: dict[int, list[int]] = {}
        if self.swap is not None:
            self.swap.clear()

    def blocks_of(self, tokens: int, *, prompt: bool = False) -> int:
        """Blocks of a request with so many tokens, of which the `prompt` may not be computed yet."""
        if not self.windowed:
            return -(-(tokens + self._lookahead) // self.block_size)
        new, slots = self._chunk_tokens if prompt else 1, self._lookahead
        return self.groups.blocks(tokens + slots, self.block_size, new + slots)

    def publish(self, *, wanted: bool, of_tiers: bool = False) -> None:
        """Whether somebody wants to know what becomes of blocks that are cached, as none are here, and in tiers."""

    def take_events(self) -> list[list[int]]:
        """What became of such blocks since it was asked last (`PrefixKvCache.take_events`)."""
        return []

    def bind(self, table: RequestTable) -> None:
        """Read this table from here on, which holds the same requests."""
        if self._reserves is not None:
            self._input, self._ahead = table.views["input_tokens"], table.views[self._reserves]

    def fits(self, request: int, tokens: int) -> bool:
        """Whether `admit` would take a request with a prompt of `tokens`; without prefix caching."""
        if self.blocks_of(tokens, prompt=True) > self.blocks - self.used:
            return False
        reserved = 0 if self._reserves is None else self._reservation(request, tokens, prompt=True)
        return reserved <= self.blocks - self._reserved

    def admit(self, request: int, tokens: int, *, prompt: bool) -> int:
        """Take the blocks of a request that has `tokens`, if they are free, and all that it will have are not reserved.

        Its `prompt` has to be computed, unless it brings its KV cache.

        Returns:
            How many of its tokens are there already, and need not be computed; -1 if it does not fit.
        """
        plain = -(-(tokens + self._lookahead) // self.block_size)
        blocks = self.blocks_of(tokens, prompt=prompt) if self.windowed else plain
        if blocks > self.blocks - self.used:
            return -1
        if self._reserves is not None and not self._reserve_for(request, tokens, prompt=prompt):
            return -1
        self.used += blocks
        return 0

    def cache(self, request: int, computed: int) -> None:
        """So many tokens of a request's context are computed, or are in the step that begins."""

    def grow(self, step: int) -> None:
        """Requests that decode have taken blocks, now, in all steps up to this one."""

    def computed(self, request: int, tokens: int) -> int:
        """The prompt of a request, all its `tokens`, is computed; returns the blocks that left its windows."""
        freed = self.blocks_of(tokens, prompt=True) - self.blocks_of(tokens)
        self.used -= freed
        if self._reserves is not None:
            self._reserved -= self._reserved_for_prompt(request, tokens)
        return freed

    def preempt(self, request: int, tokens: int, *, prompt: bool) -> None:
        """A request with `tokens` is preempted, as none is with reserves; its `prompt` may not be computed yet."""
        self.used -= self.blocks_of(tokens, prompt=prompt)

    def release(self, request: int, tokens: int) -> int:
        """A request with `tokens` leaves; returns the blocks that come free."""
        blocks = self.blocks_of(tokens)
        self.used -= blocks
        if self._reserves is not None:
            self._reserved -= self.blocks_of(self._most(request))
        return blocks

    def prefix_figures(self) -> PrefixFigures | None:
        """What was looked up and found so far, and is cached now; None where nothing is kept."""
        return None

    def tiers_state(self, figures: PrefixFigures, now_fs: int) -> TiersState | None:
        """What became of the tiers below it by now, when it has these figures; None: there are none.

        `now_fs` is not before the time to which its replica was advanced.
        """
        return None if self.tiers is None else tiers_state(self.tiers, figures, now_fs)

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
            **({} if self.swap is None else {"swapped": self.swap.state()}),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self.used = state["_used_blocks"]
        self._reserved = state["_reserved_blocks"]
        self._sending = {request: list(blocks) for request, blocks in state["held"]}
        if self.swap is not None:
            self.swap.restore(state["swapped"])

    def _most(self, request: int) -> int:
        """Tokens that a request may have, as far as it is known."""
        prompt: int = self._input[request]
        ahead: int = self._ahead[request]
        return prompt + ahead if ahead else self._most_tokens

    def _reserve_for(self, request: int, tokens: int, *, prompt: bool) -> bool:
        """Whether all blocks that a request will have are free beside what is reserved; they are reserved then."""
        reserved = self._reservation(request, tokens, prompt=prompt)
        if reserved > self.blocks - self._reserved:
            return False
        self._reserved += reserved
        return True

    def _reservation(self, request: int, tokens: int, *, prompt: bool) -> int:
        """Blocks that a request with `tokens` may have at once, from now on."""
        most_tokens = self._most(request)
        return self._reserve(tokens, most_tokens) if prompt else self.blocks_of(most_tokens)

    def _reserved_for_prompt(self, request: int, tokens: int) -> int:
        """Blocks that are reserved only while a prompt of so many tokens is computed."""
        most_tokens = self._most(request)
        return self._reserve(tokens, most_tokens) - self.blocks_of(most_tokens)

    def _reserve(self, tokens: int, most_tokens: int) -> int:
        """Blocks that a request has at most while its prompt of `tokens` is computed, and after."""
        later = self.blocks_of(most_tokens)
        if not self.windowed:
            return later
        size, slots = self.block_size, self._lookahead
        while_computed = self.groups.windowed * min(
            -(-(tokens + slots) // size), self.groups.window_blocks(size, self._chunk_tokens + slots)
        )
        full = self.groups.full * -(-(most_tokens + slots) // size)
        return max(later, full + while_computed)
