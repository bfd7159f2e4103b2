"""Tiers of a replica's prefix cache below its devices: what each keeps, and when its link is free.

A block, known by the id of all tokens up to its end (with attention windows: one of full groups of layers by that, one
of windowed ones by ~id), is looked up from the device down; what is found below is read,
and is on the device from then on, too. A tier's link carries one transfer after the other, reads and writes, as they
come: so a block can be found as soon as its writing is asked for, and its reading waits for that. What is read comes
after the latency more. A full tier forgets what was used least recently; of what is used together, the ends of prompts.

All times are whole femtoseconds. Every change is made at a time that hangs on nothing but steps: that of admissions, of
ends of steps, and of steps in which requests that decode take blocks.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pimserve.device_models.kv_groups import NO_WINDOWS, KvGroups
from pimserve.device_models.plan import FS_PER_PS, FS_PER_S
from pimserve.scheduler.kv_tier_spec import KvTierSpec

_BYTES_PER_GB = 10**9


@dataclass(slots=True)
class TierFigures:
    """What became of a tier: tokens that were found in it, blocks that came and went, and how long its link worked."""

    hit_tokens: int = 0
    read_blocks: int = 0
    written_blocks: int = 0
    evicted_blocks: int = 0
    carried_fs: int = 0  # of all transfers that were asked for


class KvTier:
    """One tier of one replica.

    Args:
        spec: what it is like.
        block_bytes: of one block, on all devices of the replica together.
    """

    def __init__(self, spec: KvTierSpec, block_bytes: int) -> None:
        self.spec = spec
        self.block_bytes = block_bytes
        capacity_bytes = None if spec.capacity_gb is None else round(spec.capacity_gb * _BYTES_PER_GB)
        self.capacity = None if capacity_bytes is None else capacity_bytes // block_bytes  # blocks; None: endless
        # A whole number for each block, so that it does not matter which blocks are one transfer.
        bytes_per_s = None if spec.gb_per_s is None else round(spec.gb_per_s * _BYTES_PER_GB)
        self._block_fs = 0 if bytes_per_s is None else -(-block_bytes * FS_PER_S // bytes_per_s)
        self._latency_fs = round(spec.latency_us * FS_PER_S / 10**6)
        self.figures = TierFigures()
        self.blocks: OrderedDict[int, None] = OrderedDict()  # ids, the one used least recently first
        self.free_fs = 0  # from when on its link is free
        # What became of ids of full groups, as `PrefixKvCache.take_events` has it; None: nobody wants to know.
        self.events: list[int] | None = None

    @property
    def kept(self) -> int:
        """Blocks that it holds."""
        return len(self.blocks)

    def clear(self, now_fs: int) -> None:
        """Lose everything, also what is on its way; figures stay."""
        self.figures.carried_fs = self.busy_fs(now_fs)
        self.figures.evicted_blocks += self.kept
        if self.events is not None:
            self.events += [-1 - block for block in self.blocks if block >= 0]
        self.free_fs = 0
        self.blocks.clear()

    def read(self, blocks: Sequence[int], now_fs: int) -> int:
        """These are wanted on the device; returns when they are there, fs."""
        count = self._count(blocks)
        self.figures.read_blocks += count
        return self._carry(count, now_fs) + self._latency_fs

    def write(self, blocks: Sequence[int], now_fs: int) -> list[int]:
        """Take blocks one by one, where they are not here yet; returns those that go for them."""
        here, most, events = self.blocks, 2**62 if self.capacity is None else self.capacity, self.events
        new, forgotten = 0, []
        for block in blocks:
            if block not in here:
                here[block] = None
                new += 1
                if events is not None and block >= 0:
                    events.append(block)
                if len(here) > most:
                    forgotten.append(here.popitem(last=False)[0])
                    if events is not None and forgotten[-1] >= 0:
                        events.append(-1 - forgotten[-1])
        if new:
            self._carry(new, now_fs)
            self.figures.written_blocks += new
            self.figures.evicted_blocks += len(forgotten)
        return forgotten

    def busy_fs(self, now_fs: int) -> int:
        """How long its link has worked by now; what it has still to do is done without a break."""
        return self.figures.carried_fs - max(0, self.free_fs - now_fs)

    def use(self, blocks: Sequence[int]) -> None:
        """Blocks were used, the last one most recently."""
        here = self.blocks
        for block in blocks:
            if block in here:
                here.move_to_end(block)

    def state(self) -> dict[str, Any]:
        """What it keeps, as JSON can hold it."""
        figures = asdict(self.figures)
        return {"blocks": list(self.blocks), "free_fs": self.free_fs, "figures": figures, "events": self.events}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self.blocks = OrderedDict.fromkeys(state["blocks"])
        self.free_fs = state["free_fs"]
        self.figures = TierFigures(**state["figures"])
        self.events = state["events"]

    def _count(self, blocks: Collection[int]) -> int:
        """Blocks under these ids."""
        return len(blocks)

    def _carry(self, blocks: int, now_fs: int) -> int:
        """Give the link so many blocks; returns when it is free again."""
        lasts_fs = blocks * self._block_fs
        self.figures.carried_fs += lasts_fs
        self.free_fs = max(now_fs, self.free_fs) + lasts_fs
        return self.free_fs


class GroupedKvTier(KvTier):
    """One tier that has a block of each group of layers of its kind under an id.

    Args:
        spec, block_bytes: as in `KvTier`.
        groups: how many there are of either kind.
    """

    def __init__(self, spec: KvTierSpec, block_bytes: int, groups: KvGroups) -> None:
        super().__init__(spec, block_bytes)
        self._groups = groups
        self._kept = 0

    @property
    def kept(self) -> int:
        """Blocks that it holds."""
        return self._kept

    def clear(self, now_fs: int) -> None:
        """Lose everything, also what is on its way; figures stay."""
        super().clear(now_fs)
        self._kept = 0

    def write(self, blocks: Sequence[int], now_fs: int) -> list[int]:
        """Take what ids stand for, one by one, where it is not here yet; returns the ids that go for it."""
        new: list[int] = []
        forgotten: list[int] = []
        events = self.events
        for block in blocks:
            if block in self.blocks:
                continue
            new.append(block)
            self.blocks[block] = None
            self._kept += self._count((block,))
            if events is not None and block >= 0:
                events.append(block)
            while self.capacity is not None and self._kept > self.capacity:
                forgotten.append(self.blocks.popitem(last=False)[0])
                self._kept -= self._count(forgotten[-1:])
                if events is not None and forgotten[-1] >= 0:
                    events.append(-1 - forgotten[-1])
        if new:
            self._carry(count := self._count(new), now_fs)
            self.figures.written_blocks += count
            self.figures.evicted_blocks += self._count(forgotten)
        return forgotten

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        super().restore(state)
        self._kept = self._count(self.blocks)

    def _count(self, blocks: Collection[int]) -> int:
        windowed = sum(block < 0 for block in blocks)
        return self._groups.full * (len(blocks) - windowed) + self._groups.windowed * windowed


class KvTiers:
    """All tiers of one replica.

    Args:
        specs: from the first below the device on.
        block_bytes: of one block, on all devices of the replica together.
        block_size: tokens of a block.
        groups: of layers, that have blocks.
    """

    def __init__(
        self, specs: Sequence[KvTierSpec], block_bytes: int, block_size: int, groups: KvGroups = NO_WINDOWS
    ) -> None:
        alike = groups.full == 1 and groups.windowed <= 1  # a block under each id
        self.all = [KvTier(spec, block_bytes) if alike else GroupedKvTier(spec, block_bytes, groups) for spec in specs]
        self._tiers = [tier for tier in self.all if tier.capacity != 0]  # the others are as if they were not
        self.take_back = any(tier.spec.write == "back" for tier in self._tiers)
        self.now_fs = 0  # when what comes next happens
        self.ready_fs = 0  # when the blocks of the request that was admitted last are on the device
        self.waits_ps: list[int] = []  # of requests whose blocks were not there yet when they were admitted
        self.waited_ps = 0  # of all these
        self._size = block_size
        self._coming: dict[int, int] = {}  # blocks on their way up, and when they are there
        self._computed: list[list[int]] = []  # in the step that is under way, of one request each

    def __contains__(self, block: int) -> bool:
        """Whether it is in any of them."""
        return self._home(block) >= 0

    def publish(self, *, wanted: bool) -> None:
        """Whether somebody wants to know what becomes of blocks, and of those that are here already."""
        for tier in self.all:
            tier.events = [block for block in tier.blocks if block >= 0] if wanted else None

    def take_events(self) -> list[list[int]]:
        """Of each tier, what became of blocks since (`PrefixKvCache.take_events`); nothing where nobody wants it."""
        told = [tier.events for tier in self.all if tier.events is not None]
        if told:
            for tier in self.all:
                tier.events = []
        return told

    def clear(self) -> None:
        """Lose everything; figures stay."""
        for tier in self._tiers:
            tier.clear(self.now_fs)
        self._coming.clear()
        self._computed.clear()

    def admit(self, hit: Sequence[int], below: Sequence[int]) -> None:
        """A request takes over blocks, of which those `below` have to be read; `ready_fs` says when all are there."""
        now_fs, coming = self.now_fs, self._coming
        ready_fs = max((coming.get(block, 0) for block in hit), default=0) if coming else 0
        if below:
            self._coming = coming = {block: at_fs for block, at_fs in coming.items() if at_fs > now_fs}
            found: list[list[int]] = [[] for _ in self._tiers]
            for block in below:
                found[self._home(block)].append(block)
            for tier, blocks in zip(self._tiers, found, strict=True):
                if blocks:
                    tier.figures.hit_tokens += sum(block >= 0 for block in blocks) * self._size
                    there_fs = tier.read(blocks, now_fs)
                    coming.update(dict.fromkeys(blocks, there_fs))
                    ready_fs = max(ready_fs, there_fs)
        self._use(hit[::-1])
        self.ready_fs = max(ready_fs, now_fs)
        if ready_fs > now_fs:
            self.waits_ps.append((ready_fs - now_fs) // FS_PER_PS)
            self.waited_ps += self.waits_ps[-1]

    def compute(self, blocks: list[int]) -> None:
        """Blocks of a request are computed in the step that begins."""
        if blocks:
            self._computed.append(blocks)

    def end_step(self, now_fs: int) -> None:
        """A step ends, or several have: what was computed can be written."""
        self.now_fs = now_fs
        for blocks in self._computed:
            self._through(blocks[::-1])
        self._computed.clear()

    def leave(self, blocks: Sequence[int]) -> None:
        """A request leaves these blocks on the device: they were used, and are written where they are not any more."""
        backwards = blocks[::-1]
        self._through(backwards)
        self._use(backwards)

    def displace(self, blocks: list[int], first: int = 0) -> None:
        """What is above tier `first` forgets blocks, in this order: they go down as far as tiers are written back."""
        for tier in self._tiers[first:]:
            if not blocks or tier.spec.write != "back":
                return
            blocks = tier.write(blocks, self.now_fs)

    def state(self) -> dict[str, Any]:
        """What they keep, between two steps, as JSON can hold it."""
        return {
            "tiers": [tier.state() for tier in self.all],
            "now_fs": self.now_fs,
            "coming": list(self._coming.items()),
            "waits_ps": self.waits_ps,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        for tier, tier_state in zip(self.all, state["tiers"], strict=True):
            tier.restore(tier_state)
        self.now_fs = state["now_fs"]
        self._coming = dict(state["coming"])
        self.waits_ps = list(state["waits_ps"])
        self.waited_ps = sum(self.waits_ps)

    def _home(self, block: int) -> int:
        """The number of the first tier that has it; -1: none has."""
        for index, tier in enumerate(self._tiers):
            if block in tier.blocks:
                return index
        return -1

    def _use(self, blocks: Sequence[int]) -> None:
        for tier in self._tiers:
            tier.use(blocks)

    def _through(self, blocks: Sequence[int]) -> None:
        """Write blocks to all tiers that are written through."""
        for index, tier in enumerate(self._tiers):
            if tier.spec.write == "through":
                self.displace(tier.write(blocks, self.now_fs), index + 1)
