"""What a router takes replicas to have in their prefix caches: by what it sent there, or by what they say.

Both know blocks by their ids, each of which stands for all tokens up to the end of its block.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Container, Iterable, Sequence
from typing import Any, Protocol

SENT, KV_EVENTS = "sent", "kv_events"


class PrefixIndex(Protocol):
    """Which replicas have which blocks, as far as a router knows."""

    def matched(self, blocks: Sequence[int], replicas: Sequence[int]) -> list[int]:
        """(len(replicas),) how many of a prompt's blocks, from the first on, each of these replicas has."""

    def size(self, replica: int) -> int:
        """How many blocks it has, of whatever prompts."""

    def sent(self, replica: int, blocks: Sequence[int], most: int) -> None:
        """A prompt of these blocks was sent there; `most`: blocks of a replica to keep in mind."""

    def heard(self, replica: int, events: Iterable[int]) -> None:
        """What it says of its blocks, in turn: the id of one that is stored, and -1 - id of one that is removed."""

    def state(self) -> list[Any]:
        """All of it, as JSON can hold it."""

    def restore(self, state: Sequence[Any]) -> None:
        """Go on from `state`."""


class SentBlocks:
    """The router's own record: for each replica, blocks of prompts that were sent there.

    Those that were sent least recently are forgotten first, ends of a prompt before their beginnings: so whoever is
    known has all before it known as well, and the longest match is found by halving.
    """

    def __init__(self) -> None:
        self._of: dict[int, OrderedDict[int, None]] = {}

    def matched(self, blocks: Sequence[int], replicas: Sequence[int]) -> list[int]:
        """As `PrefixIndex`."""
        return [leading(blocks, self._of.get(replica, ())) for replica in replicas]

    def size(self, replica: int) -> int:
        """As `PrefixIndex`."""
        return len(self._of.get(replica, ()))

    def sent(self, replica: int, blocks: Sequence[int], most: int) -> None:
        """As `PrefixIndex`."""
        known = self._of.setdefault(replica, OrderedDict())
        move_to_end = known.move_to_end
        for block in reversed(blocks):
            known[block] = None
            move_to_end(block)
        while len(known) > most:
            known.popitem(last=False)

    def heard(self, replica: int, events: Iterable[int]) -> None:
        """Nobody tells it anything."""

    def state(self) -> list[Any]:
        """Each replica's blocks, least recently sent first."""
        return [[replica, list(known)] for replica, known in self._of.items()]

    def restore(self, state: Sequence[Any]) -> None:
        """Go on from there."""
        self._of = {replica: OrderedDict.fromkeys(known) for replica, known in state}


class CachedBlocks:
    """What replicas say that they have, as engines publish it in KV events: a set of replicas for each block.

    A cache may have a block without one before it, so that matches are found by going along the prompt, once for all
    replicas.
    """

    def __init__(self) -> None:
        self._replicas: dict[int, int] = {}  # by block, a bit for each
        self._sizes: dict[int, int] = {}

    def matched(self, blocks: Sequence[int], replicas: Sequence[int]) -> list[int]:
        """As `PrefixIndex`."""
        having = self._replicas
        there = sum(1 << replica for replica in replicas)
        ended: dict[int, int] = {}  # by replica, where its match ends
        depth = 0
        for block in blocks:
            also = there & having.get(block, 0)
            if also != there:
                _note(ended, there & ~also, depth)
                there = also
                if not there:
                    break
            depth += 1
        _note(ended, there, depth)
        return [ended[replica] for replica in replicas]

    def size(self, replica: int) -> int:
        """As `PrefixIndex`."""
        return self._sizes.get(replica, 0)

    def sent(self, replica: int, blocks: Sequence[int], most: int) -> None:
        """It waits for what the replica says."""

    def heard(self, replica: int, events: Iterable[int]) -> None:
        """As `PrefixIndex`."""
        having, bit, more = self._replicas, 1 << replica, 0
        for event in events:
            if event >= 0:
                having[event] = having.get(event, 0) | bit
                more += 1
            else:
                block = -1 - event
                more -= 1
                if left := having[block] & ~bit:
                    having[block] = left
                else:
                    del having[block]
        self._sizes[replica] = self._sizes.get(replica, 0) + more

    def state(self) -> list[Any]:
        """Blocks with their sets, and how many each replica has."""
        return [list(self._replicas.items()), list(self._sizes.items())]

    def restore(self, state: Sequence[Any]) -> None:
        """Go on from there."""
        self._replicas, self._sizes = dict(state[0]), dict(state[1])


def make_index(kind: str) -> PrefixIndex:
    """An empty one."""
    return CachedBlocks() if kind == KV_EVENTS else SentBlocks()


def leading(blocks: Sequence[int], known: Container[int]) -> int:
    """How many of the blocks, from the first on, are known, where no known one comes behind one that is not."""
    low, high = 0, len(blocks)
    while low < high:
        middle = (low + high) // 2
        if blocks[middle] in known:
            low = middle + 1
        else:
            high = middle
    return low


def _note(ended: dict[int, int], replicas: int, depth: int) -> None:
    """The matches of these replicas, a bit each, end there."""
    while replicas:
        bit = replicas & -replicas
        ended[bit.bit_length() - 1] = depth
        replicas ^= bit
