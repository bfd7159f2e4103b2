"""A KV cache that keeps the blocks of requests that have left, for those whose tokens begin alike.

As vLLM V1 has it. A full block is known by an id that stands for all tokens up to its end. A request that is admitted
finds the leading ids of its tokens in the cache, but for its last token, which is always computed; a prompt's blocks
are cached from the step in which they are computed on, those of decoded tokens when the request leaves its blocks. A
request that brings its KV cache takes over what is there of it already, and the rest is cached too. What
a request leaves goes, from its last block to its first, to the end of a queue of all free blocks, cached or not; blocks
that are needed come from its head, and what was cached in them is forgotten (least recently used first). So cached
blocks are free, and nothing of it changes how many are.

Growth while requests decode is counted as it happens (`used`), and taken from the queue before anything else is done to
it: in between, nobody looks.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import asdict, replace
from typing import Any

from pimserve.device_models.kv_groups import NO_WINDOWS, KvGroups
from pimserve.scheduler.known_blocks import KnownBlocks
from pimserve.scheduler.kv_cache import KvCache
from pimserve.scheduler.kv_tiers import KvTiers
from pimserve.scheduler.prefix_figures import PrefixFigures
from pimserve.scheduler.requests import RequestTable

_DUPLICATE = -1  # a block whose tokens another one is cached with


class PrefixKvCache(KvCache):
    """Blocks of one replica; `KvCache` for requests whose ids the table tells.

    Args:
        blocks: how many there are.
        block_size: tokens of a block.
        groups, chunk_tokens: as in `KvCache`; here without windows (`windowed_prefix_cache.py` is with them).
        reserves, most_tokens: as in `KvCache`; what is hit is reserved as all else is.
        tiers: where blocks are looked up that are not here; None: nowhere.
        lookahead_tokens: as in `KvCache`; what is in these slots is never cached.
        drop_last_hit: the last block that is found is computed again, as vLLM does where a layer drafts from what the
            model's last layer made of the token before, which no cache keeps (its `use_eagle`).
    """

    prefixes = True

    def __init__(
        self,
        blocks: int,
        block_size: int,
        groups: KvGroups = NO_WINDOWS,
        chunk_tokens: int | None = None,
        *,
        reserves: str | None = None,
        most_tokens: int = 0,
        tiers: KvTiers | None = None,
        lookahead_tokens: int = 0,
        drop_last_hit: bool = False,
    ) -> None:
        self.tiers = tiers
        self._drop_last_hit = drop_last_hit
        self._figures = PrefixFigures()
        self._events: list[int] | None = None  # that nobody has taken; None: nobody wants any
        self._queued = self.used = 0  # so that nothing has grown when it is cleared first
        super().__init__(
            blocks,
            block_size,
            groups,
            chunk_tokens,
            reserves=reserves,
            most_tokens=most_tokens,
            lookahead_tokens=lookahead_tokens,
        )

    def prefix_figures(self) -> PrefixFigures:
        """What it was asked for so far, and holds now."""
        self._take_growth()
        return replace(self._figures)

    def publish(self, *, wanted: bool, of_tiers: bool = False) -> None:
        """As `KvCache.publish`; whoever takes it first hears of blocks that are cached already."""
        self._events = self._cached() if wanted else None
        if self.tiers is not None:
            self.tiers.publish(wanted=wanted and of_tiers)

    def take_events(self) -> list[list[int]]:
        """What became of blocks since, in turn: the id of one that was stored, -1 - id of one that was removed.

        First of those here, then of each tier from the first on, if that is wanted too. Nothing where nobody wants it.
        """
        if self._events is None:
            return []
        self._take_growth()
        events, self._events = self._events, []
        return [events] if self.tiers is None else [events, *self.tiers.take_events()]

    def bind(self, table: RequestTable) -> None:
        """Take ids of this table from here on, which holds the same requests."""
        super().bind(table)
        self._blocks = KnownBlocks(table)

    def clear(self) -> None:
        """Lose everything; figures stay."""
        self._take_growth()
        if self._events is not None:
            self._events += [-1 - block for block in self._cached()]
        super().clear()
        self._figures.cached_blocks = 0
        if self.tiers is not None:
            self.tiers.clear()
        self._holders: dict[int, int] = {}  # by id of a cached block that is not free: how many requests hold it
        self._held: dict[int, list[int]] = {}  # by request: ids of its blocks, the first ones of all that it has
        self._held_to_send: dict[int, list[list[int]]] = {}  # the same of those in `_sending`, in that order
        self._preempted: set[int] = set()  # requests that have not left since
        # The queue of free blocks, and how many they are: ids of cached ones; under keys below 0, others in a row.
        self._free: OrderedDict[int, int] = OrderedDict({-1: self.blocks})
        self._queued = self.blocks  # blocks in it
        self._next_key = -2

    def admit(self, request: int, tokens: int, *, prompt: bool) -> int:
        """As `KvCache.admit`: the tokens that need no new blocks, and of a prompt not be computed, or -1."""
        self._take_growth()
        size, holders, free, tiers = self.block_size, self._holders, self._free, self.tiers
        if tiers is not None:
            tiers.look()
        hit: list[int] = []
        below: list[int] = []  # of these, blocks that come from the tiers
        idle = 0  # blocks that nobody holds
        for block in self._ids(request, 0, (tokens - 1) // size):
            if block in free:
                idle += 1
            elif block not in holders:
                if tiers is None or block not in tiers:
                    break
                below.append(block)
            hit.append(block)
        sure = len(hit) if tiers is None else tiers.found_alone(hit, below)
        if self._drop_last_hit and hit:
            sure = max(sure - 1, 0)
            last = hit.pop()
            if last in free:
                idle -= 1
            elif last not in holders:
                below.pop()
        new = -(-(tokens + self._lookahead) // size) - len(hit) + len(below)
        # Room is asked for as if a tier that is shared had nothing, so that who fits hangs on no other replica.
        spared = sum(block in holders for block in hit[sure:]) if sure < len(hit) else 0
        if new + idle + spared > self.blocks - self.used:
            return -1
        if self._reserves is not None and not self._reserve_for(request, tokens, prompt=prompt):
            return -1
        for block in hit:
            if block in free:
                del free[block]
                holders[block] = 1
            else:
                holders[block] = holders.get(block, 0) + 1
        if tiers is not None:
            tiers.admit(hit, below, preempted=request in self._preempted)
        self._queued -= idle
        self._take(new)
        self.used += new + idle
        self._held[request] = hit
        if prompt:
            self._figures.count(tokens, len(hit) * size, preempted=request in self._preempted)
        self._figures.cached_blocks += len(below)
        if self._events is not None:
            self._events += below
        return len(hit) * size

    def cache(self, request: int, computed: int) -> None:
        """So many tokens of a request's context are in the step that begins, or were before."""
        new = self._cache(request, computed)
        if self.tiers is not None:
            self.tiers.compute(new)

    def grow(self, step: int) -> None:
        """As `KvCache.grow`."""
        self._take_growth()

    def preempt(self, request: int, tokens: int, *, prompt: bool) -> None:
        """As `KvCache.preempt`."""
        self._take_growth()
        if not prompt:
            self._cache(request, tokens)
        self._give_back(self._leave(request), self.blocks_of(tokens))
        self._preempted.add(request)

    def release(self, request: int, tokens: int) -> int:
        """As `KvCache.release`; blocks that others hold too do not come free."""
        self._cache(request, tokens)
        self._preempted.discard(request)
        if self._reserves is not None:
            self._reserved -= self.blocks_of(self._most(request))
        return self._give_back(self._leave(request), self.blocks_of(tokens))

    def send(self, request: int, tokens: int) -> None:
        """As `KvCache.send`; the blocks are held, by others too, until then. For tiers, the request leaves now."""
        super().send(request, tokens)
        self._preempted.discard(request)
        self._held_to_send.setdefault(request, []).append(self._leave(request))

    def sent(self, request: int) -> None:
        """As `KvCache.sent`; what is cached stays so."""
        self._take_growth()
        blocks, *others = self._sending.pop(request)
        held, *others_held = self._held_to_send.pop(request)
        if others:
            self._sending[request], self._held_to_send[request] = others, others_held
        self._give_back(held, blocks)

    def state(self) -> dict[str, Any]:
        """Who has what, as JSON can hold it."""
        return {
            **super().state(),
            "prefix_holders": list(self._holders.items()),
            "prefix_held": list(self._held.items()),
            "prefix_held_to_send": list(self._held_to_send.items()),
            "prefix_preempted": sorted(self._preempted),
            "prefix_free": list(self._free.items()),
            "prefix_queued": self._queued,
            "prefix_next_key": self._next_key,
            "prefix_figures": asdict(self._figures),
            "prefix_events": self._events,
            **({} if self.tiers is None else {"prefix_tiers": self.tiers.state()}),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        super().restore(state)
        self._holders = dict(state["prefix_holders"])
        self._held = {request: list(blocks) for request, blocks in state["prefix_held"]}
        self._held_to_send = {request: [list(each) for each in held] for request, held in state["prefix_held_to_send"]}
        self._preempted = set(state["prefix_preempted"])
        self._free = OrderedDict((key, count) for key, count in state["prefix_free"])
        self._queued, self._next_key = state["prefix_queued"], state["prefix_next_key"]
        for name, value in state["prefix_figures"].items():
            setattr(self._figures, name, value)
        self._events = state["prefix_events"]
        if self.tiers is not None:
            self.tiers.restore(state["prefix_tiers"])

    def _cached(self) -> list[int]:
        """Ids of all blocks that are cached."""
        return [*self._holders, *(block for block in self._free if block >= 0)]

    def _ids(self, request: int, first: int, end: int) -> list[int]:
        """Ids of a request's blocks from `first` on, before `end`, as far as they are known; all different."""
        return self._blocks.ids(request, first, end).tolist()

    def _cache(self, request: int, computed: int) -> list[int]:
        """A request has computed so many tokens: the blocks that are cached with it."""
        self._take_growth()
        held, holders, free = self._held[request], self._holders, self._free
        ids = self._ids(request, len(held), computed // self.block_size)
        if holders.keys().isdisjoint(ids) and free.keys().isdisjoint(ids):
            holders.update(dict.fromkeys(ids, 1))
            held += ids
            self._figures.cached_blocks += len(ids)
            if self._events is not None:
                self._events += ids
            return ids
        new: list[int] = []
        for block in ids:
            if block in holders or block in free:
                held.append(_DUPLICATE)
            else:
                holders[block] = 1
                held.append(block)
                new.append(block)
        self._figures.cached_blocks += len(new)
        if self._events is not None:
            self._events += new
        return new

    def _leave(self, request: int) -> list[int]:
        """Ids of blocks that a request held, which needs them no more."""
        held = self._held.pop(request)
        if self.tiers is not None:
            self.tiers.leave([block for block in held if block != _DUPLICATE])
        return held

    def _give_back(self, held: list[int], blocks: int) -> int:
        """So many blocks of a request, of which it `held` the first by their ids, the last one first.

        Returns:
            How many come free.
        """
        holders, free, full = self._holders, self._free, self.groups.full  # groups: a block each under an id
        freed = others = blocks // full - len(held)
        for block in reversed(held):
            if block == _DUPLICATE:
                others += 1
                freed += 1
            elif (left := holders[block] - 1) == 0:
                if others:
                    self._append(others * full)
                    others = 0
                del holders[block]
                free[block] = full
                freed += 1
            else:
                holders[block] = left
        self._append(others * full)
        freed *= full
        self.used -= freed
        self._queued += freed
        return freed

    def _append(self, others: int) -> None:
        """So many blocks that are not cached go to the end of the queue."""
        if others:
            self._free[self._next_key] = others
            self._next_key -= 1

    def _take_growth(self) -> None:
        """Requests that decode have taken blocks since; those of a step that was put off again are not given back."""
        if (grown := self._queued - (self.blocks - self.used)) > 0:
            self._take(grown)

    def _take(self, blocks: int) -> None:
        """So many from the head of the queue."""
        free, evicted = self._free, []
        self._queued -= blocks
        while blocks:
            key, count = free.popitem(last=False)
            if key >= 0:
                evicted.append(key)
                blocks -= 1
                if self._events is not None:
                    self._events.append(-1 - key)
            elif count > blocks:
                free[key] = count - blocks
                free.move_to_end(key, last=False)
                blocks = 0
            else:
                blocks -= count
        self._figures.evicted_blocks += len(evicted)
        self._figures.cached_blocks -= len(evicted)
        if self.tiers is not None:
            self.tiers.displace(evicted)
