"""A KV cache with a prefix cache, block by block: the reference for it, to be read and not to be fast.

As in vLLM V1, a full block keeps its content when nobody holds it any longer, and whoever has the same tokens up to its
end takes it over, until it is needed for something else. All blocks that nobody holds are in one queue; those at its
head are taken first.
"""

from collections.abc import Sequence

from tests.scheduler.reference_tiers import ReferenceTier, ReferenceTiers


class PhysicalBlocks:
    """The blocks of one replica, known by their numbers, and which of them each request holds.

    `ids` has a row for each request: the ids of its full blocks, as many as are known; equal ids are equal tokens from
    the beginning of the context to the end of the block. Below them there are `tiers`, maybe none. A request has blocks
    for `slots` tokens more than it has; where `last_again`, the last block that it finds is computed all the same.
    """

    def __init__(
        self,
        count: int,
        block_size: int,
        ids: Sequence[Sequence[int]],
        tiers: Sequence[ReferenceTier] = (),
        slots: int = 0,
        last_again: bool = False,
    ) -> None:
        self.tiers = ReferenceTiers(tiers)
        self._slots = slots
        self._last_again = last_again
        self._size = block_size
        self._ids = ids
        self._free = list(range(count))  # the queue, its head first
        self._held: list[list[int]] = [[] for _ in ids]  # by each request, in the order of its tokens
        self._sending: list[list[list[int]]] = [[] for _ in ids]  # the same of those that have yet to be sent on
        self._cached: list[int | None] = [None] * count  # by which id each block can be found
        self.queries = 0  # tokens that admitted requests looked up
        self.hit_tokens = [0 for _ in ids]  # of each request, in all its admissions
        self.evictions = 0  # blocks that could be found when they were needed for something else

    @property
    def held(self) -> set[int]:
        """Blocks of running requests, and of those that have yet to be sent on."""
        sending = [blocks for of_request in self._sending for blocks in of_request]
        return {block for blocks in [*self._held, *sending] for block in blocks}

    @property
    def cached(self) -> int:
        """How many blocks can be found."""
        return sum(block_id is not None for block_id in self._cached)

    def fits(self, request: int, tokens: int) -> bool:
        """Whether it can be admitted with `tokens` to compute; what it hits leaves the queue, too."""
        held = self.held
        here = [block_id for block_id in self._lookup(request, tokens) if block_id in self._cached]
        unheld = [block_id for block_id in here if self._cached.index(block_id) not in held]
        return self._needed(tokens) - len(here) + len(unheld) <= len(self._free)

    def bring(self, request: int, tokens: int, now: int = 0) -> None:
        """Give a request its blocks that brings its KV cache, of all `tokens` but the one that it computes next."""
        queries, hits = self.queries, self.hit_tokens[request]
        self.admit(request, tokens, now)
        self.queries, self.hit_tokens[request] = queries, hits  # it would not have computed them
        self.computed(request, 0, tokens - 1)

    def admit(self, request: int, tokens: int, now: int = 0) -> tuple[int, int]:
        """Give a request its blocks; returns how many of the `tokens` are cached already, and when they are here."""
        hits = self._lookup(request, tokens)
        ready = self.tiers.take(hits, {block_id for block_id in self._cached if block_id is not None}, now)
        coming = []  # places of blocks that are read
        for place, block_id in enumerate(hits):
            block = -1
            if block_id in self._cached:
                block = self._cached.index(block_id)
                if block in self._free:
                    self._free.remove(block)
            else:
                coming.append(place)
            self._held[request].append(block)
        needed = len(coming) + self._needed(tokens) - len(hits)
        fresh = self._fresh(needed, now)
        for place in coming:
            self._held[request][place] = block = fresh.pop(0)
            self._cached[block] = hits[place]
        self._held[request] += fresh
        self.queries += tokens
        self.hit_tokens[request] += len(hits) * self._size
        return len(hits) * self._size, ready

    def grow(self, request: int, tokens: int, now: int = 0) -> None:
        """Take blocks from the queue until the request's `tokens` have room."""
        self._held[request] += self._fresh(self._needed(tokens) - len(self._held[request]), now)

    def computed(self, request: int, before: int, now: int) -> list[int]:
        """Where a request had `before` tokens it has more `now`: blocks that these fill can be found from here on.

        Not so where another block with the same tokens can be found. Returns the ids of those that can.
        """
        found = []
        for place, (block, block_id) in enumerate(zip(self._held[request], self._ids[request], strict=False)):
            end = (place + 1) * self._size
            if before < end <= now and block_id not in self._cached:
                self._cached[block] = block_id
                found.append(block_id)
        return found

    def leave(self, request: int, prompt: int, tokens: int, now: int = 0) -> None:
        """A request with `tokens`, of which the first `prompt` were computed in chunks, gives all its blocks back."""
        self.computed(request, prompt, tokens)
        ids = self._ids[request]
        cached = [
            ids[place]
            for place, block in enumerate(self._held[request])
            if place < len(ids) and self._cached[block] == ids[place]
        ]
        self.tiers.cached(cached, now)
        self.tiers.use(cached)
        self._give_back(self._held[request])

    def send(self, request: int) -> None:
        """A request leaves, its blocks when they have been sent on."""
        self._sending[request].append(self._held[request])
        self._held[request] = []

    def sent(self, request: int) -> None:
        """They have been; of a request that has come again and gone, those of the first time."""
        self._give_back(self._sending[request][0])
        del self._sending[request][0]

    def _give_back(self, blocks: list[int]) -> None:
        """All of them, from the last one on."""
        given = blocks[::-1]
        blocks.clear()
        held = self.held  # by others
        self._free += [block for block in given if block not in held]
        self.check()

    def check(self) -> None:
        """Every block is free or held and never both, nobody has one twice, and there is one of each id."""
        assert sorted([*self._free, *self.held]) == list(range(len(self._cached)))
        assert all(len(blocks) == len(set(blocks)) for blocks in self._held)
        ids = [block_id for block_id in self._cached if block_id is not None]
        assert len(ids) == len(set(ids))

    def _needed(self, tokens: int) -> int:
        """Blocks of a request with so many tokens."""
        return -(-(tokens + self._slots) // self._size)

    def _fresh(self, count: int, now: int) -> list[int]:
        """So many blocks from the head of the queue; what was cached in them is forgotten."""
        fresh, forgotten = [], []
        for _ in range(count):
            block = self._free.pop(0)
            block_id = self._cached[block]
            if block_id is not None:
                forgotten.append(block_id)
                self._cached[block] = None
            fresh.append(block)
        self.evictions += len(forgotten)
        self.tiers.forgotten(forgotten, now)
        return fresh

    def _lookup(self, request: int, tokens: int) -> list[int]:
        """The leading ids that are cached, on the device or below.

        The last one of `tokens` is never among them: it has to be computed.
        """
        hits: list[int] = []
        for block_id in self._ids[request][: (tokens - 1) // self._size]:
            if block_id not in self._cached and self.tiers.where(block_id) is None:
                break
            hits.append(block_id)
        return hits[:-1] if self._last_again else hits
