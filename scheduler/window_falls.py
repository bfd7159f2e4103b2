"""Which blocks fall out of the attention windows of requests that decode, and in which step.

A request that decodes takes a block of each windowed group of layers whenever it has filled one, and once its windows
are full, the oldest one falls out of them in the same step. That is known when it joins: the block at place p of its
context falls when it takes the one at place p + `most`. Blocks whose ids are known, those of its prompt, are followed
one by one; of the others, which are all alike, it is enough to know how many fall in which steps: as many in a step as
in the one that comes a block's tokens later. So a stretch of steps is no longer for the tokens that it makes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush

DUPLICATE = -1  # a block that is not cached, as another one with its tokens is, or none is kept


@dataclass(slots=True)
class WindowBlocks:
    """The blocks that one request has in each windowed group.

    Args:
        turn: its place among all that were ever admitted.
        first: place in the context of the first one.
        blocks: how many there are; the last ones may be for tokens to come.
        shared_end: place before which a tail of the window is kept (`Retention`), as others began alike; 0: none.
        ids: of the first ones, as far as they are known; DUPLICATE for those that are not cached.
    """

    turn: int
    first: int
    blocks: int
    shared_end: int = 0
    ids: list[int] = field(default_factory=list)

    @property
    def end(self) -> int:
        """Place of the first one whose id it does not have."""
        return self.first + len(self.ids)


@dataclass(slots=True)
class _Falling:
    """A request that decodes."""

    window: WindowBlocks
    residue: int  # of steps, modulo the block size, in which it fills a block
    alike: bool = False  # from here on all that fall are alike, and counted in sums


class WindowFalls:
    """Of all requests that decode on an engine core.

    Args:
        block_size: tokens of a block.
        most: blocks that a window needs.
        fall: told of blocks that fall: the ids of those that are cached, and then how many others, of each group.
    """

    def __init__(self, block_size: int, most: int, fall: Callable[[Sequence[int], int], None]) -> None:
        self._size = block_size
        self._most = most
        self._fall = fall
        self.now = 0  # number of the next step
        self.told = 0  # number of the first step of whose falls nobody was told
        self.clear()

    def clear(self) -> None:
        """Nobody decodes."""
        self._falling: dict[int, _Falling] = {}  # by request
        self._coming: list[tuple[int, int, int]] = []  # heap of (step of its next fall, turn, request)
        self._alike = [0] * self._size  # that fall in steps = i modulo the block size, of no known id
        self._per_cycle = 0

    def join(self, request: int, window: WindowBlocks, held: int, step: int) -> None:
        """A request with `held` tokens decodes from `step` on."""
        self.tell(step)
        self._follow(request, window, step - held)

    def leave(self, request: int, step: int) -> None:
        """A request has decoded until `step`, which it does not come to."""
        self.tell(step)
        gone = self._falling.pop(request)
        if gone.alike:
            self._count_alike(gone.residue, -1)

    def restore(self, windows: Mapping[int, WindowBlocks], held: Mapping[int, int], step: int) -> None:
        """These requests decode, with so many tokens before `step`; `told` is as it was then."""
        self.clear()
        self.now = step
        for request, tokens in held.items():
            self._follow(request, windows[request], step - tokens)

    def tell(self, step: int) -> None:
        """Tell of all that falls before `step`, in the order of steps; in one step, by turns."""
        coming = self._coming
        while coming and coming[0][0] < step:
            at = coming[0][0]
            self._tell_alike(at)
            known: list[int] = []
            others = self._alike[at % self._size]
            alike: list[_Falling] = []
            while coming and coming[0][0] == at:
                _, turn, request = heappop(coming)
                one = self._falling.get(request)
                if one is None or one.window.turn != turn:
                    continue  # it has left since
                block = one.window.ids.pop(0) if one.window.ids else DUPLICATE
                one.window.first += 1
                if block == DUPLICATE:
                    others += 1
                else:
                    known.append(block)
                if one.window.ids:
                    heappush(coming, (at + self._size, turn, request))
                else:
                    alike.append(one)
            self._fall(known, others)
            self.told = at + 1
            for one in alike:
                one.alike = True
                self._count_alike(one.residue, 1)
        self._tell_alike(step)

    def _follow(self, request: int, window: WindowBlocks, begin: int) -> None:
        """A request that would have had no token before step `begin`."""
        self._falling[request] = _Falling(window, begin % self._size)
        next_place = max(0, -((begin - self.told) // self._size) - self._most)
        heappush(self._coming, (begin + (next_place + self._most) * self._size, window.turn, request))

    def _count_alike(self, residue: int, change: int) -> None:
        self._alike[residue] += change
        self._per_cycle += change

    def _tell_alike(self, step: int) -> None:
        """Of those that are alike, up to that step."""
        if (steps := step - self.told) <= 0:
            return
        if self._per_cycle:
            cycles, rest = divmod(steps, self._size)
            first = self.told % self._size
            blocks = cycles * self._per_cycle + sum(self._alike[first : first + rest])
            if first + rest > self._size:
                blocks += sum(self._alike[: first + rest - self._size])
            if blocks:
                self._fall([], blocks)
        self.told = step
