"""A KV cache that keeps the blocks of requests that have left, for models some of whose layers have attention windows.

As vLLM V1's hybrid KV cache manager has it. Groups of layers take blocks from one pool, and a block of each kind of
group is known by the id of all tokens up to its end. Groups that see the whole context find leading blocks, as without
windows; windowed ones need the last blocks before the end of what is found, as many as the window of the next token
touches. Where these are missing, less is found. A request that is admitted takes over these alone of the windowed
groups; what falls out of its windows while it is computed, or decodes, goes to the queue of free blocks at once, cached
as it is, before all that the request holds until it leaves.

Groups of one kind are alike: they have blocks under the same ids, in the queue one beside the other, and when one of
these is needed for something else, the id is forgotten in all. A block of a window has one holder, so that how many
blocks a request has does not hang on others: who finds one that somebody holds has a copy, and of several with the same
tokens the one that was computed or found last is cached.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import astuple, replace
from typing import Any

from pimserve.device_models.kv_groups import KvGroups
from pimserve.scheduler.prefix_cache import PrefixKvCache
from pimserve.scheduler.prefix_figures import PrefixFigures
from pimserve.scheduler.window_falls import DUPLICATE, WindowBlocks, WindowFalls


class WindowedPrefixKvCache(PrefixKvCache):
    """Blocks of one replica, as `PrefixKvCache` has them, of which some groups of layers keep a window.

    Args:
        blocks, block_size, groups, chunk_tokens: as in `KvCache`.
        settings: as in `PrefixKvCache`; tiers know blocks of windows by ~id.
    """

    def __init__(
        self,
        blocks: int,
        block_size: int,
        groups: KvGroups,
        chunk_tokens: int | None,
        **settings: Any,  # noqa: ANN401 as there
    ) -> None:
        self._window_blocks = groups.window_blocks(block_size)  # that a step needs which adds one token
        self._turn = 0
        self._evicted = 0  # ids of windows' blocks that were forgotten
        self.falls = WindowFalls(block_size, self._window_blocks, self._fell)
        super().__init__(blocks, block_size, groups, chunk_tokens, **settings)

    def prefix_figures(self) -> PrefixFigures:
        """What it was asked for so far, and holds now."""
        found, groups = super().prefix_figures(), self.groups
        cached = len(self._owners) + len(self._keys)
        return replace(
            found,
            evicted_blocks=groups.full * found.evicted_blocks + groups.windowed * self._evicted,
            cached_blocks=groups.full * found.cached_blocks + groups.windowed * cached,
        )

    def clear(self) -> None:
        """Lose everything; figures stay."""
        super().clear()
        self.falls.clear()
        self.windows: dict[int, WindowBlocks] = {}  # by request
        self._windows_to_send: dict[int, list[WindowBlocks]] = {}  # the same of those in `_sending`, in that order
        self._owners: dict[int, WindowBlocks] = {}  # by id of a cached block of windows: who holds it,
        self._keys: dict[int, int] = {}  # or its key in the queue of free blocks
        self._free_ids: dict[int, int] = {}  # the other way round

    def admit(self, request: int, tokens: int, *, prompt: bool) -> int:
        """As `KvCache.admit`: the tokens that need no new blocks, and of a prompt not be computed, or -1."""
        self.falls.tell(self.falls.now + 1)  # requests that decode have grown in the step that begins
        self._take_growth()
        groups, size, holders, free = self.groups, self.block_size, self._holders, self._free
        ids, blocks = self._ids(request, 0, (tokens - 1) // size), -(-tokens // size)
        if self.tiers is not None:
            self.tiers.look()
        first, end = self._found(ids)
        if prompt:
            in_window = min(blocks - first, groups.window_blocks(size, self._chunk_tokens))
        else:
            in_window = min(blocks, self._window_blocks)
            first = max(first, blocks - in_window)
        hit, of_window = ids[:end], ids[first:end]
        idle = sum(block in free for block in hit)  # that nobody holds
        below = [] if self.tiers is None else [block for block in hit if block not in free and block not in holders]
        needed = groups.full * (blocks - end + len(below) + idle) + groups.windowed * in_window
        if needed + self._spared(ids, blocks, needed) > self.blocks - self.used:
            return -1
        if self._reserves is not None and not self._reserve_for(request, tokens, prompt=prompt):
            return -1
        shared_end = 0 if below else self._shared_end(ids, end)
        if self.tiers is not None:
            missing = [~block for block in of_window if block not in self._owners and block not in self._keys]
            used, preempted = [*hit, *(~block for block in of_window)], request in self._preempted
            self.tiers.admit(used, [*below, *missing], preempted=preempted)
        for block in hit:
            holders[block] = holders.get(block, 0) + 1
            free.pop(block, None)
        self.windows[request] = window = WindowBlocks(self._turn, first, in_window, shared_end)
        self._turn += 1
        idle_in_window = sum(self._take_over(window, block) for block in of_window)
        self._queued -= groups.full * idle + groups.windowed * idle_in_window
        self._take(groups.full * (blocks - end + len(below)) + groups.windowed * (in_window - idle_in_window))
        self.used += needed
        self._held[request] = hit
        if prompt:
            self._figures.count(tokens, end * size, preempted=request in self._preempted)
        self._figures.cached_blocks += len(below)
        if self._events is not None:
            self._events += below
        return end * size

    def cache(self, request: int, computed: int) -> None:
        """As `KvCache.cache`; where a chunk needs more blocks than windows have, it takes the place of the oldest."""
        self.falls.tell(self.falls.now + 1)
        self._take_growth()
        window = self.windows[request]
        if (fall := -(-computed // self.block_size) - window.first - window.blocks) > 0:
            self._shift(window, fall)
            self._take(fall * self.groups.windowed)
        super().cache(request, computed)

    def grow(self, step: int) -> None:
        """As `KvCache.grow`."""
        self.falls.tell(step + 1)
        self._take_growth()

    def computed(self, request: int, tokens: int) -> int:
        """As `KvCache.computed`: what left the windows is free, cached as it is."""
        self._take_growth()
        window = self.windows[request]
        fall = max(0, window.blocks - self._window_blocks)
        self._shift(window, fall)
        window.blocks -= fall
        freed = fall * self.groups.windowed
        self.used -= freed
        if self._reserves is not None:
            self._reserved -= self._reserved_for_prompt(request, tokens)
        return freed

    def preempt(self, request: int, tokens: int, *, prompt: bool) -> None:
        """As `KvCache.preempt`."""
        self._take_growth()
        if not prompt:
            self._cache_all(request, tokens)
        self._depart(request, tokens)
        self._preempted.add(request)

    def release(self, request: int, tokens: int) -> int:
        """As `KvCache.release`; blocks that others hold too do not come free."""
        self._take_growth()
        self._cache_all(request, tokens)
        self._preempted.discard(request)
        if self._reserves is not None:
            self._reserved -= self.blocks_of(self._most(request))
        return self._depart(request, tokens)

    def send(self, request: int, tokens: int) -> None:
        """As `PrefixKvCache.send`."""
        super().send(request, tokens)
        self._windows_to_send.setdefault(request, []).append(self.windows.pop(request))

    def sent(self, request: int) -> None:
        """As `PrefixKvCache.sent`."""
        self._take_growth()
        window, *others = self._windows_to_send.pop(request)
        if others:
            self._windows_to_send[request] = others
        self._sending[request][0] -= self._give_back_window(window)
        super().sent(request)

    def state(self) -> dict[str, Any]:
        """Who has what, as JSON can hold it."""
        return {
            **super().state(),
            "prefix_windows": [(request, astuple(window)) for request, window in self.windows.items()],
            "prefix_windows_to_send": [
                (request, [astuple(window) for window in sent]) for request, sent in self._windows_to_send.items()
            ],
            "prefix_window_keys": list(self._keys.items()),
            "prefix_window_evicted": self._evicted,
            "prefix_turn": self._turn,
            "prefix_told": self.falls.told,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`; of who decodes, `falls` is told next."""
        super().restore(state)
        self.windows = {request: WindowBlocks(*of_request) for request, of_request in state["prefix_windows"]}
        self._windows_to_send = {
            request: [WindowBlocks(*window) for window in sent] for request, sent in state["prefix_windows_to_send"]
        }
        everyone = [*self.windows.values(), *(window for sent in self._windows_to_send.values() for window in sent)]
        self._owners = {block: window for window in everyone for block in window.ids if block != DUPLICATE}
        self._keys = dict(state["prefix_window_keys"])
        self._free_ids = {key: block for block, key in self._keys.items()}
        self._evicted, self._turn = state["prefix_window_evicted"], state["prefix_turn"]
        self.falls.told = state["prefix_told"]

    def _spared(self, ids: list[int], blocks: int, needed: int) -> int:
        """Blocks that a prompt of so many needs less, as a tier that is shared has some; room is asked for as if not.

        So who fits hangs on no other replica.
        """
        if self.tiers is None or self.tiers.part is None:
            return 0
        groups = self.groups
        first, end = self._found(ids, alone=True)
        held = sum(block in self._holders for block in ids[:end])
        in_window = min(blocks - first, groups.window_blocks(self.block_size, self._chunk_tokens))
        return groups.full * (blocks - held) + groups.windowed * in_window - needed

    def _found(self, ids: list[int], *, alone: bool = False) -> tuple[int, int]:
        """Of blocks with these ids, where what is found ends, and where what it needs of windows begins.

        `alone`: if a tier that is shared had nothing.
        """
        holders, free, owners, keys = self._holders, self._free, self._owners, self._keys
        below = self.tiers.own if alone and self.tiers is not None else self.tiers
        end = len(ids)
        for place, block in enumerate(ids):
            if block not in holders and block not in free and (below is None or block not in below):
                end = place
                break
        first = end
        while first > 0 and end - first < self._window_blocks - 1:
            first -= 1
            block = ids[first]
            if block not in owners and block not in keys and (below is None or ~block not in below):
                end = first
        return first, end

    def _shared_end(self, ids: list[int], end: int) -> int:
        """Where full groups' blocks with these ids end on the device, all up to `end` are there; 0: at `end`."""
        return 0

    def _take_over(self, window: WindowBlocks, block: int) -> bool:
        """The next block of a window is that of this id, or a copy of it, or comes from below; whether it was free."""
        key = self._keys.pop(block, None)
        if key is not None:
            del self._free_ids[key], self._free[key]
        elif block in self._owners:
            self._take_name(window.end, block)
        self._owners[block] = window
        window.ids.append(block)
        return key is not None

    def _take_name(self, place: int, block: int) -> None:
        """Who holds the block of this id, at this place of its context, holds one that is not cached from here on."""
        owner = self._owners[block]
        owner.ids[place - owner.first] = DUPLICATE

    def _cache(self, request: int, computed: int) -> list[int]:
        """As `PrefixKvCache._cache`, and of windows."""
        new = super()._cache(request, computed)
        window = self.windows[request]
        ids = self._ids(request, window.end, computed // self.block_size)
        in_window = self._cache_window(request, window, ids)
        return [*new, *in_window] if in_window else new

    def _cache_window(self, request: int, window: WindowBlocks, ids: list[int]) -> list[int]:
        """The next blocks of a window have these ids, and are cached: what tiers hear of, if there are any."""
        if self._owners.keys().isdisjoint(ids) and self._keys.keys().isdisjoint(ids):
            self._owners.update(dict.fromkeys(ids, window))
            window.ids += ids
            return [] if self.tiers is None else [~block for block in ids]
        return self._cache_places(window, ids, range(len(ids)))

    def _cache_places(self, window: WindowBlocks, ids: list[int], places: Iterable[int]) -> list[int]:
        """Of the next blocks of a window, with these ids, those at `places` are cached: what tiers hear of."""
        keys, owners, behind = self._keys, self._owners, window.end
        in_window: list[int] = []
        window.ids += [DUPLICATE] * len(ids)
        for place in places:
            block = ids[place]
            if block in owners:
                self._take_name(behind + place, block)
            elif block in keys:
                del self._free_ids[keys.pop(block)]
            else:
                in_window.append(~block)
            owners[block] = window
            window.ids[place - len(ids)] = block
        return in_window

    def _cache_all(self, request: int, tokens: int) -> None:
        """A request that decodes, or could, will be gone: its blocks are cached, as many as it has tokens."""
        window, blocks = self.windows[request], -(-tokens // self.block_size)
        window.blocks = min(blocks, self._window_blocks)
        if not window.ids:  # all that were known have fallen
            window.first = blocks - window.blocks
        self._cache(request, tokens)

    def _depart(self, request: int, tokens: int) -> int:
        """A request gives back all that it has; returns the blocks that come free."""
        held = self._leave(request)
        freed = self._give_back_window(self.windows.pop(request))
        return freed + self._give_back(held, self.groups.full * -(-tokens // self.block_size))

    def _leave(self, request: int) -> list[int]:
        """As `PrefixKvCache._leave`; for tiers, it leaves what it has of windows, too."""
        held = self._held.pop(request)
        if self.tiers is not None:
            of_window = self.windows[request].ids
            used = [block for block in held if block != DUPLICATE]
            self.tiers.leave([*used, *(~block for block in of_window if block != DUPLICATE)])
        return held

    def _give_back_window(self, window: WindowBlocks) -> int:
        """All blocks of a window, the last one first; returns how many."""
        freed = self.groups.windowed * window.blocks
        self._shift(window, window.blocks)
        self.used -= freed
        return freed

    def _shift(self, window: WindowBlocks, fall: int) -> None:
        """So many blocks of a window, the first ones, go to the end of the queue, the last one of them first."""
        gone = window.ids[:fall]
        del window.ids[:fall]
        window.first += fall
        windowed, free, owners = self.groups.windowed, self._free, self._owners
        keys, free_ids = self._keys, self._free_ids
        key, others = self._next_key, fall - len(gone)
        for block in reversed(gone):
            if block == DUPLICATE:
                others += 1
                continue
            if others:
                free[key] = others * windowed
                key -= 1
                others = 0
            free[key] = windowed
            keys[block] = key
            free_ids[key] = block
            del owners[block]
            key -= 1
        self._next_key = key
        self._append(others * windowed)
        self._queued += fall * windowed

    def _fell(self, known: Sequence[int], others: int) -> None:
        """Blocks go from windows to the queue: cached ones with these ids, to its end, and then so many others."""
        windowed = self.groups.windowed
        for block in known:
            key = self._next_key
            self._free[key] = windowed
            self._next_key -= 1
            self._keys[block] = key
            self._free_ids[key] = block
            del self._owners[block]
        self._append(others * windowed)
        self._queued += (len(known) + others) * windowed

    def _take_growth(self) -> None:
        """As `PrefixKvCache._take_growth`: what fell out of windows meanwhile came to the queue before."""
        self.falls.tell(self.falls.now)
        super()._take_growth()

    def _take(self, blocks: int) -> None:
        """So many from the head of the queue; an id of which one is taken is forgotten."""
        free, events = self._free, self._events
        forgotten: list[int] = []
        self._queued -= blocks
        while blocks > 0:
            key, count = free.popitem(last=False)
            if key >= 0:
                self._figures.evicted_blocks += 1
                self._figures.cached_blocks -= 1
                forgotten.append(key)
                if events is not None:
                    events.append(-1 - key)
            elif (block := self._free_ids.pop(key, None)) is not None:
                del self._keys[block]
                self._evicted += 1
                forgotten.append(~block)
            if count > blocks:
                free[self._next_key] = count - blocks
                free.move_to_end(self._next_key, last=False)
                self._next_key -= 1
            blocks -= count
        if self.tiers is not None:
            self.tiers.displace(forgotten)
