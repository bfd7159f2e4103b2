"""Tiers below a prefix cache, block by block: the reference for them, to be read and not to be fast."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

FS_PER_S = 10**15


@dataclass
class ReferenceTier:
    """One tier: so many blocks (None: any number), of so many bytes, through a link of so many bytes/s (None: endless).

    `kept` are the ids that it has, the one that was used least recently first. `sent` are the transfers that its link
    has carried or will carry, as (begin, end, blocks), one after the other. Under an id of 0 or more there are as many
    blocks as full groups of layers, under one below as many as `windowed` ones: ~id is what the window has of id.
    """

    blocks: int | None
    block_bytes: int
    bytes_per_s: int | None
    latency_fs: int
    write: Literal["through", "back"]
    full: int = 1
    windowed: int = 0
    shared: bool = False  # by replicas, which all have this one
    kept: list[int] = field(default_factory=list)
    sent: list[tuple[int, int, int]] = field(default_factory=list)
    found: int = 0  # ids of full groups
    found_again: int = 0  # of these, by requests that had been preempted
    read: int = 0
    written: int = 0
    evicted: int = 0

    def count(self, ids: Sequence[int]) -> int:
        """Blocks under these ids."""
        return sum(self.full if block_id >= 0 else self.windowed for block_id in ids)

    def carry(self, blocks: int, now: int) -> int:
        """When a transfer of so many blocks that is asked for now ends."""
        begin = max([now, *(end for _, end, _ in self.sent)])
        lasts = 0 if self.bytes_per_s is None else blocks * -(-self.block_bytes * FS_PER_S // self.bytes_per_s)
        self.sent.append((begin, begin + lasts, blocks))
        return begin + lasts

    def check(self) -> None:
        """What was written and not forgotten is there, once, and has room; the link does one thing at a time."""
        assert len(self.kept) == len(set(self.kept))
        assert self.count(self.kept) == self.written - self.evicted
        assert self.blocks is None or self.count(self.kept) <= self.blocks
        assert sum(blocks for _, _, blocks in self.sent) == self.read + self.written
        assert all(end <= begin for (_, end, _), (begin, _, _) in zip(self.sent, self.sent[1:], strict=False))


class ReferenceTiers:
    """All tiers, from the one below the device down."""

    def __init__(self, tiers: Sequence[ReferenceTier]) -> None:
        self.tiers = [tier for tier in tiers if tier.blocks != 0]  # the others are as if they were not
        self.arrivals: dict[int, int] = {}  # by id, when it was last read to the device, or will have been
        self.waits: list[int] = []  # of requests that had to wait for blocks, fs

    def where(self, block_id: int, *, alone: bool = False) -> ReferenceTier | None:
        """The first tier that has a block; `alone`: of those that no other replica has."""
        return next((tier for tier in self.tiers if block_id in tier.kept and not (alone and tier.shared)), None)

    def use(self, ids: Sequence[int]) -> None:
        """A request has used blocks, in the order of its tokens."""
        for tier in self.tiers:
            used = [block_id for block_id in reversed(ids) if block_id in tier.kept]
            tier.kept = [block_id for block_id in tier.kept if block_id not in used] + used

    def take(self, ids: Sequence[int], on_device: set[int], now: int, *, again: bool = False) -> int:
        """A request takes blocks over, maybe again as it was preempted, some of them on the device.

        Returns when all are.
        """
        homes = {block_id: self.where(block_id) for block_id in ids if block_id not in on_device}
        for tier in self.tiers:
            mine = [block_id for block_id, home in homes.items() if home is tier]
            if mine:
                tier.found += sum(block_id >= 0 for block_id in mine)
                tier.found_again += sum(block_id >= 0 for block_id in mine) if again else 0
                tier.read += tier.count(mine)
                there = tier.carry(tier.count(mine), now) + tier.latency_fs
                self.arrivals.update(dict.fromkeys(mine, there))
        self.use(ids)
        ready = max([now, *(self.arrivals.get(block_id, 0) for block_id in ids)])
        if ready > now:
            self.waits.append(ready - now)
        return ready

    def cached(self, ids: Sequence[int], now: int) -> None:
        """Blocks of a request, in the order of its tokens, are on the device: they are written through."""
        for place, tier in enumerate(self.tiers):
            if tier.write == "through":
                self._write(place, list(reversed(ids)), now)

    def forgotten(self, ids: Sequence[int], now: int) -> None:
        """The device has forgotten blocks, in this order."""
        self._fall(0, ids, now)

    def _fall(self, place: int, ids: Sequence[int], now: int) -> None:
        if place < len(self.tiers) and self.tiers[place].write == "back":
            self._write(place, ids, now)

    def _write(self, place: int, ids: Sequence[int], now: int) -> None:
        tier = self.tiers[place]
        for block_id in ids:
            if block_id not in tier.kept:
                tier.carry(tier.count([block_id]), now)
                tier.written += tier.count([block_id])
                tier.kept.append(block_id)
                while tier.blocks is not None and tier.count(tier.kept) > tier.blocks:
                    gone = [tier.kept.pop(0)]
                    tier.evicted += tier.count(gone)
                    self._fall(place + 1, gone, now)
        tier.check()
