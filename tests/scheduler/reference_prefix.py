"""A KV cache with a prefix cache, block by block: the reference for it, to be read and not to be fast.

As in vLLM V1, a full block keeps its content when nobody holds it any longer, and whoever has the same tokens up to its
end takes it over, until it is needed for something else. All blocks that nobody holds are in one queue; those at its
head are taken first.

A request has a block of each group of layers for a place in its context; a bundle is those of all groups of one kind.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from tests.scheduler.reference_blocks import ReferenceBlocks
from tests.scheduler.reference_result import ReferenceResult
from tests.scheduler.reference_tiers import ReferenceTier, ReferenceTiers

Bundle = tuple[int, ...]  # numbers of blocks
Kind = Literal["full", "window"]


def _in_tiers(name: tuple[Kind, int]) -> int:
    """What tiers call it."""
    return name[1] if name[0] == "full" else ~name[1]


class PhysicalBlocks:
    """The blocks of one replica, known by their numbers, and which of them each request holds.

    `ids` has a row for each request: the ids of its full blocks, as many as are known; equal ids are equal tokens from
    the beginning of the context to the end of the block. Below them there are `tiers`, maybe none. `counts` says which
    groups of layers there are, and for how many tokens more than it has a request has blocks; where `last_again`, the
    last block that it finds is computed all the same. `retention` says which bundles of windows can be found: None,
    all; else those that a prompt needs which goes on at the end of `prompts` but for their last token, where full
    groups had more than could be found, or, if it is not 0, at each so many tokens. What cannot be found goes to the
    head of the queue then.
    """

    def __init__(
        self,
        count: int,
        block_size: int,
        ids: Sequence[Sequence[int]],
        tiers: Sequence[ReferenceTier] = (),
        counts: ReferenceBlocks | None = None,
        last_again: bool = False,
        retention: int | None = None,
        prompts: Sequence[int] = (),
    ) -> None:
        self.tiers = ReferenceTiers(tiers)
        self._last_again = last_again
        self._retention = retention
        self._prompts = prompts
        self._parted: dict[int, int] = {}  # by request: how many leading ids full groups had when it was admitted
        self._counts = counts or ReferenceBlocks(block_size, 1, 0, 0, count * block_size, 0, declared=False)
        self._size = block_size
        self._ids = ids
        self._all = range(count)
        self._free = list(self._all)  # the queue, its head first
        self._held: dict[int, list[Bundle]] = {}  # by request, as they were admitted, in the order of its tokens
        self._windows: dict[int, dict[int, Bundle]] = {}  # of windowed groups: by place in the context
        self._sending: list[tuple[int, list[Bundle], dict[int, Bundle]]] = []  # requests whose blocks are sent on
        self._found: dict[tuple[Kind, int], Bundle] = {}  # by ids: what can be found
        self.queries = 0  # tokens that admitted requests looked up
        self.queries_again = 0  # of these, by requests that had been preempted
        self.hits_again = 0  # tokens that these found
        self.hit_tokens = [0 for _ in ids]  # of each request, in all its admissions
        self.evictions = 0  # blocks that could be found when one under their id was needed for something else

    @property
    def held(self) -> set[int]:
        """Blocks of running requests, and of those that have yet to be sent on."""
        bundles = [bundle for held in self._held.values() for bundle in held]
        bundles += [bundle for window in self._windows.values() for bundle in window.values()]
        bundles += [bundle for _, held, window in self._sending for bundle in [*held, *window.values()]]
        return {block for bundle in bundles for block in bundle}

    @property
    def cached(self) -> int:
        """How many blocks can be found."""
        return sum(map(len, self._found.values()))

    @property
    def figures(self) -> tuple[int, ...]:
        """As `PrefixFigures` has them: what is looked up and found for the first time, and again, is apart."""
        again = self.queries_again, self.hits_again
        return self.queries - again[0], sum(self.hit_tokens) - again[1], self.evictions, self.cached, *again

    def tell(self, result: ReferenceResult) -> None:
        """Add what became of it to that of caches of other groups."""
        result.queries += self.queries
        result.queries_again += self.queries_again
        result.hits_again += self.hits_again
        hits = result.hit_tokens or [0 for _ in self.hit_tokens]
        result.hit_tokens = [sum(both) for both in zip(hits, self.hit_tokens, strict=True)]
        result.evictions += self.evictions
        result.cached += self.cached
        result.tier_waits_fs = self.tiers.waits

    def fits(self, request: int, tokens: int, *, prompt: bool = True) -> bool:
        """Whether it can be admitted with `tokens` to compute; what it hits leaves the queue, too.

        Room is needed as if a tier that replicas share had nothing.
        """
        here = self._lookup(request, tokens, alone=True)
        places = self._window_places(request, tokens, prompt=prompt, alone=True)
        on_device = [self._found["full", block_id] for block_id in here if ("full", block_id) in self._found]
        unheld = sum(block in self._free for bundle in on_device for block in bundle)
        new = self._needed(tokens) - len(on_device)
        counts = self._counts
        return counts.full_groups * new + unheld + counts.windowed_groups * len(places) <= len(self._free)

    def bring(self, request: int, tokens: int, now: int = 0) -> None:
        """Give a request its blocks that brings its KV cache, of all `tokens` but the one that it computes next."""
        queries, hits = self.queries, self.hit_tokens[request]
        self.admit(request, tokens, now, prompt=False)
        self.queries, self.hit_tokens[request] = queries, hits  # it would not have computed them
        self.computed(request, 0, tokens - 1)

    def admit(
        self, request: int, tokens: int, now: int = 0, *, prompt: bool = True, again: bool = False
    ) -> tuple[int, int]:
        """Give a request its blocks, maybe again as it was preempted.

        Returns how many of the `tokens` are cached already, and when they are here.
        """
        hits = self._lookup(request, tokens)
        places = self._window_places(request, tokens, prompt=prompt)
        here = [("full", one) in self._found for one in self._ids[request][: (tokens - 1) // self._size]]
        self._parted[request] = [*here, False].index(False)
        if self._parted[request] <= len(hits):
            del self._parted[request]
        used = [*hits, *(~hits[place] for place in places if place < len(hits))]
        ready = self.tiers.take(used, {_in_tiers(name) for name in self._found}, now, again=again)
        wanted: list[tuple[Kind, int]] = [("full", place) for place in range(self._needed(tokens))]
        wanted += [("window", place) for place in places]
        have: dict[tuple[Kind, int], Bundle] = {}
        named = {(kind, place): (kind, hits[place]) for kind, place in wanted if place < len(hits)}
        for slot, name in named.items():
            bundle = self._found.get(name)
            if bundle is not None and (slot[0] == "full" or bundle[0] in self._free):
                have[slot] = bundle
                self._free = [block for block in self._free if block not in bundle]
        fresh = self._fresh([slot[0] for slot in wanted if slot not in have], now)
        have |= {slot: fresh.pop(0) for slot in wanted if slot not in have}
        self._found |= {name: have[slot] for slot, name in named.items()}
        self._held[request] = [have[slot] for slot in wanted if slot[0] == "full"]
        self._windows[request] = {slot[1]: have[slot] for slot in wanted if slot[0] == "window"}
        self.queries += tokens
        self.hit_tokens[request] += len(hits) * self._size
        self.queries_again += tokens if again else 0
        self.hits_again += len(hits) * self._size if again else 0
        return len(hits) * self._size, ready

    def grow(self, tokens: Mapping[int, int], now: int = 0) -> None:
        """Requests that decode take blocks until so many tokens have room, after what falls out of their windows."""
        most, fallen = self._counts.in_window(1), []
        growing = {one: range(len(self._held[one]), self._needed(tokens[one])) for one in self._held if one in tokens}
        for request, places in growing.items():
            window = self._windows[request]
            if places and self._counts.windowed_groups and len(window) == most:
                fallen.append(window.pop(min(window)))
        known = set(self._found.values())
        self._free_up([bundle for bundle in fallen if bundle in known])
        self._free_up([bundle for bundle in fallen if bundle not in known])
        for request, places in growing.items():
            self._held[request] += self._fresh(["full" for _ in places], now)
            if self._counts.windowed_groups:
                self._windows[request] |= dict(zip(places, self._fresh(["window" for _ in places], now), strict=True))

    def computed(self, request: int, before: int, after: int, now: int = 0) -> list[int]:
        """Where a request had `before` tokens it has more `after`: blocks that these fill can be found from here on.

        Not so where another block with the same tokens can be found, but that of a window takes its place. Returns what
        can be found that could not, as tiers know it.
        """
        window = self._windows[request]
        new = range(max(window) + 1, -(-after // self._size)) if window else range(0)
        fallen = [window.pop(place) for place in sorted(window)[: len(new)]]
        self._free_up(fallen[::-1])
        window |= dict(zip(new, self._fresh(["window" for _ in new], now), strict=True))
        found, in_window = [], []
        for place, block_id in enumerate(self._ids[request]):
            if before < (place + 1) * self._size <= after:
                if ("full", block_id) not in self._found:
                    self._found["full", block_id] = self._held[request][place]
                    found.append(block_id)
                if place in window and self._keeps(request, place):
                    if ("window", block_id) not in self._found:
                        in_window.append(~block_id)
                    self._found["window", block_id] = window[place]
        return found + in_window

    def shrink(self, request: int, tokens: int) -> None:
        """The prompt of a request is computed, so many tokens: its windows keep what the next one needs."""
        window = self._windows[request]
        last = -(-tokens // self._size) - self._counts.in_window(1)
        self._free_up([window.pop(place) for place in sorted(window, reverse=True) if place < last])

    def leave(self, request: int, prompt: int, tokens: int, now: int = 0) -> None:
        """A request with `tokens`, of which the first `prompt` were computed in chunks, gives all its blocks back."""
        self.computed(request, prompt, tokens)
        ids, window = self._ids[request], self._windows[request]
        held: list[tuple[Kind, int, Bundle]] = [("full", place, one) for place, one in enumerate(self._held[request])]
        held += [("window", place, window[place]) for place in sorted(window)]
        names: list[tuple[tuple[Kind, int], Bundle]]
        names = [((kind, ids[place]), bundle) for kind, place, bundle in held if place < len(ids)]
        cached = [_in_tiers(name) for name, bundle in names if self._found.get(name) == bundle]
        self.tiers.cached(cached, now)
        self.tiers.use(cached)
        self._give_back(self._held.pop(request), self._windows.pop(request))

    def send(self, request: int) -> None:
        """A request leaves, its blocks when they have been sent on."""
        self._sending.append((request, self._held.pop(request), self._windows.pop(request)))

    def sent(self, request: int) -> None:
        """They have been; of a request that has come again and gone, those of the first time."""
        place = [number for number, *_ in self._sending].index(request)
        _, held, window = self._sending.pop(place)
        self._give_back(held, window)

    def _give_back(self, full: list[Bundle], window: dict[int, Bundle]) -> None:
        """All of them, those of windows first, from the last one on."""
        given = [window[place] for place in sorted(window, reverse=True)] + full[::-1]
        held = self.held  # by others
        self._free_up([bundle for bundle in given if held.isdisjoint(bundle)])
        self.check()

    def _free_up(self, bundles: Sequence[Bundle]) -> None:
        """These come free, in turn."""
        for bundle in bundles:
            if self._retention is None or bundle in self._found.values():
                self._free += bundle
            else:
                self._free = [*bundle, *self._free]

    def _keeps(self, request: int, place: int) -> bool:
        """Whether what a request has of windows at a place can be found."""
        if self._retention is None:
            return True
        ends = {(self._prompts[request] - 1) // self._size, self._parted.get(request, 0)}
        if self._retention:
            ends |= set(range(0, place + self._counts.in_window(1), self._retention // self._size))
        return any(place in self._before(end) for end in ends)

    def check(self) -> None:
        """Every block is free or held and never both, nobody has one twice, and there is one of each id."""
        assert sorted([*self._free, *self.held]) == list(self._all)
        counts = self._counts
        for request, held in self._held.items():
            window = self._windows[request]
            blocks = [block for bundle in [*held, *window.values()] for block in bundle]
            assert len(blocks) == len(set(blocks))
            assert list(window) == list(range(min(window, default=0), max(window, default=-1) + 1))
            assert bool(window) == bool(counts.windowed_groups)
        found = [block for bundle in self._found.values() for block in bundle]
        assert len(found) == len(set(found))
        in_windows = [bundle for window in self._windows.values() for bundle in window.values()]
        assert len(in_windows) == len(set(in_windows))

    def _needed(self, tokens: int) -> int:
        """Blocks of a full group that a request has with so many tokens."""
        return -(-(tokens + self._counts.slots) // self._size)

    def _fresh(self, kinds: Iterable[Kind], now: int) -> list[Bundle]:
        """A bundle of each kind from the head of the queue; what was cached in them is forgotten."""
        fresh, forgotten = [], []
        for kind in kinds:
            size = self._counts.full_groups if kind == "full" else self._counts.windowed_groups
            taken = [self._free.pop(0) for _ in range(size)]
            fresh.append(tuple(taken))
            for block in taken:
                for name in [name for name, bundle in self._found.items() if block in bundle]:
                    self.evictions += len(self._found.pop(name))
                    forgotten.append(_in_tiers(name))
        self.tiers.forgotten(forgotten, now)
        return fresh

    def _before(self, place: int) -> set[int]:
        """Places before this one that the window of its first token touches."""
        begin = place * self._size
        window = range(max(0, begin - self._counts.window_tokens + 1), begin)
        return {token // self._size for token in window} if self._counts.windowed_groups else set()

    def _window_places(self, request: int, tokens: int, *, prompt: bool, alone: bool = False) -> range:
        """For which places of its context a request has blocks of windows when it is admitted."""
        if not self._counts.windowed_groups:
            return range(0)
        places = -(-tokens // self._size)
        if not prompt:
            return range(max(0, places - self._counts.in_window(1)), places)
        found = len(self._lookup(request, tokens, alone=alone))
        first = min(self._before(found), default=found)
        return range(first, min(places, first + self._counts.in_window(self._counts.longest_chunk)))

    def _lookup(self, request: int, tokens: int, *, alone: bool = False) -> list[int]:
        """The most leading ids that are cached, on the device or below, with what the next token needs of windows.

        The last one of `tokens` is never among them: it has to be computed.
        """
        ids = list(self._ids[request][: (tokens - 1) // self._size])

        def there(kind: Kind, one: int) -> bool:
            name = kind, one
            return name in self._found or self.tiers.where(_in_tiers(name), alone=alone) is not None

        for end in range(len(ids), 0, -1):
            full = all(there("full", one) for one in ids[:end])
            if full and all(there("window", ids[place]) for place in self._before(end)):
                return ids[: end - self._last_again]
        return []
