"""One tier of a prefix cache below the devices: what it keeps, and when its link is free."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pimserve.device_models.kv_groups import NO_WINDOWS, KvGroups
from pimserve.device_models.plan import FS_PER_S
from pimserve.scheduler.kv_tier_spec import KvTierSpec

_BYTES_PER_GB = 10**9


@dataclass(slots=True)
class TierFigures:
    """What became of a tier: tokens that were found in it, blocks that came and went, and how long its link worked.

    Those that requests found which had been preempted are apart, as in `PrefixFigures`.
    """

    hit_tokens: int = 0
    preempted_hit_tokens: int = 0
    read_blocks: int = 0
    written_blocks: int = 0
    evicted_blocks: int = 0
    carried_fs: int = 0  # of all transfers that were asked for


class KvTier:
    """One tier of one replica.

    Args:
        spec: what it is like.
        block_bytes: of one block, on all devices of the replica together.
        groups: of layers; each id stands for a block of each group of its kind.
    """

    def __init__(self, spec: KvTierSpec, block_bytes: int, groups: KvGroups = NO_WINDOWS) -> None:
        self.spec = spec
        self.block_bytes = block_bytes
        capacity_bytes = None if spec.capacity_gb is None else round(spec.capacity_gb * _BYTES_PER_GB)
        self.capacity = None if capacity_bytes is None else capacity_bytes // block_bytes  # blocks; None: endless
        # A whole number for each block, so that it does not matter which blocks are one transfer.
        bytes_per_s = None if spec.gb_per_s is None else round(spec.gb_per_s * _BYTES_PER_GB)
        self._block_fs = 0 if bytes_per_s is None else -(-block_bytes * FS_PER_S // bytes_per_s)
        self._latency_fs = round(spec.latency_us * FS_PER_S / 10**6)
        self._full, self._windowed = groups.full, groups.windowed or groups.full  # blocks under an id
        self.figures = TierFigures()
        self.blocks: OrderedDict[int, None] = OrderedDict()  # ids, the one used least recently first
        self._kept = 0  # blocks
        self.free_fs = 0  # from when on its link is free
        # What became of ids of full groups, as `PrefixKvCache.take_events` has it; None: nobody wants to know.
        self.events: list[int] | None = None

    @property
    def kept(self) -> int:
        """Blocks that it holds."""
        return self._kept

    @property
    def whole(self) -> KvTier:
        """The tier that it is, or is a replica's part in."""
        return self

    def publish(self, *, wanted: bool) -> None:
        """Whether somebody wants to know what becomes of its blocks, and of those that are here already."""
        self.events = [block for block in self.blocks if block >= 0] if wanted else None

    def clear(self, now_fs: int) -> None:
        """Lose everything, also what is on its way; figures stay."""
        self.figures.carried_fs = self.busy_fs(now_fs)
        self.figures.evicted_blocks += self.kept
        if self.events is not None:
            self.events += [-1 - block for block in self.blocks if block >= 0]
        self.free_fs = self._kept = 0
        self.blocks.clear()

    def found(self, tokens: int, *, preempted: bool) -> None:
        """So many tokens that a request looked up, maybe one that was `preempted`, are in blocks that will be read."""
        if preempted:
            self.figures.preempted_hit_tokens += tokens
        else:
            self.figures.hit_tokens += tokens

    def read(self, blocks: Sequence[int], now_fs: int) -> int:
        """These are wanted on the device; returns when they are there, fs."""
        count = self._count(blocks)
        self.figures.read_blocks += count
        return self._carry(count, now_fs) + self._latency_fs

    def write(self, blocks: Sequence[int], now_fs: int) -> list[int]:
        """Take what ids stand for, one by one, where it is not here yet; returns the ids that go for it."""
        here, full, windowed, events = self.blocks, self._full, self._windowed, self.events
        room = before = 2**62 if self.capacity is None else self.capacity - self._kept
        forgotten: list[int] = []
        for block in blocks:
            if block not in here:
                here[block] = None
                room -= full if block >= 0 else windowed
                if events is not None and block >= 0:
                    events.append(block)
                while room < 0:
                    gone, _ = here.popitem(last=False)
                    forgotten.append(gone)
                    room += full if gone >= 0 else windowed
                    if events is not None and gone >= 0:
                        events.append(-1 - gone)
        evicted = self._count(forgotten)
        written = before - room + evicted
        if written:
            self._kept += written - evicted
            self._carry(written, now_fs)
            self.figures.written_blocks += written
            self.figures.evicted_blocks += evicted
        return forgotten

    def busy_fs(self, now_fs: int) -> int:
        """How long its link has worked by now; what it has still to do is done without a break."""
        return self.figures.carried_fs - max(0, self.free_fs - now_fs)

    def use(self, blocks: Sequence[int], now_fs: int) -> None:
        """Blocks were used now, the last one most recently."""
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
        self.blocks.clear()  # others may look at them, too
        self.blocks.update(OrderedDict.fromkeys(state["blocks"]))
        self._kept = self._count(self.blocks)
        self.free_fs = state["free_fs"]
        self.figures = TierFigures(**state["figures"])
        self.events = state["events"]

    def _count(self, blocks: Collection[int]) -> int:
        """Blocks under these ids."""
        if self._full == self._windowed:
            return self._full * len(blocks)
        return sum(self._full if block >= 0 else self._windowed for block in blocks)

    def _carry(self, blocks: int, now_fs: int) -> int:
        """Give the link so many blocks; returns when it is free again."""
        lasts_fs = blocks * self._block_fs
        self.figures.carried_fs += lasts_fs
        self.free_fs = max(now_fs, self.free_fs) + lasts_fs
        return self.free_fs
