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

from collections.abc import Sequence
from typing import Any

from pimserve.device_models.kv_groups import NO_WINDOWS, KvGroups
from pimserve.device_models.plan import FS_PER_PS
from pimserve.scheduler.kv_tier import KvTier
from pimserve.scheduler.kv_tier_spec import KvTierSpec
from pimserve.scheduler.shared_kv_tier import KvTierPart, SharedKvTier


class _Levels:
    """Some tiers of a replica, as what has blocks."""

    def __init__(self, tiers: Sequence[KvTier]) -> None:
        self._tiers = tiers

    def __contains__(self, block: int) -> bool:
        return any(block in tier.blocks for tier in self._tiers)


class KvTiers:
    """All tiers of one replica.

    Args:
        specs: from the first below the device on.
        block_bytes: of one block, on all devices of the replica together.
        block_size: tokens of a block.
        groups: of layers, that have blocks.
        shared: the last of them, where other replicas have it too; None: of one that could be shared, it is all.
        replica: its number, by which those that share a tier are told apart.
    """

    def __init__(
        self,
        specs: Sequence[KvTierSpec],
        block_bytes: int,
        block_size: int,
        groups: KvGroups = NO_WINDOWS,
        *,
        shared: SharedKvTier | None = None,
        replica: int = 0,
    ) -> None:
        self.all = [KvTier(spec, block_bytes, groups) for spec in specs if not spec.shared]
        self.part: KvTierPart | None = None  # in a tier that is shared
        if specs and specs[-1].shared:
            shared = shared or SharedKvTier(specs[-1], block_bytes, groups)
            self.part = shared.part(replica)
            self.all.append(self.part)
        self._tiers = [tier for tier in self.all if tier.capacity != 0]  # the others are as if they were not
        self.own = _Levels([tier for tier in self._tiers if tier is not self.part])  # that no other replica has
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
            tier.publish(wanted=wanted)

    def take_events(self) -> list[list[int]]:
        """Of each tier, what became of blocks since (`PrefixKvCache.take_events`); nothing where nobody wants it."""
        telling = [tier for tier in self.all if tier.events is not None]
        told = [tier.events for tier in telling if tier.events is not None]
        for tier in telling:
            tier.events = []
        return told

    def clear(self) -> None:
        """Lose everything; figures stay."""
        for tier in self._tiers:
            tier.clear(self.now_fs)
        self._coming.clear()
        self._computed.clear()

    def look(self) -> None:
        """Blocks will be looked up now: what other replicas have asked of a tier that is shared is done."""
        if self.part is not None:
            self.part.look(self.now_fs)

    def found_alone(self, hit: Sequence[int], below: Sequence[int]) -> int:
        """How many blocks of a prompt, the first ones, would be found if a tier that is shared had nothing.

        Args:
            hit: all that are found.
            below: of these, those that are not on the device.
        """
        if self.part is None:
            return len(hit)
        return next((hit.index(block) for block in below if block not in self.own), len(hit))

    def admit(self, hit: Sequence[int], below: Sequence[int], *, preempted: bool) -> None:
        """A request takes over blocks, of which those `below` have to be read; `ready_fs` says when all are there.

        What one finds that was `preempted` is counted apart.
        """
        now_fs, coming = self.now_fs, self._coming
        ready_fs = max((coming.get(block, 0) for block in hit), default=0) if coming else 0
        if below:
            self._coming = coming = {block: at_fs for block, at_fs in coming.items() if at_fs > now_fs}
            found: list[list[int]] = [[] for _ in self._tiers]
            for block in below:
                found[self._home(block)].append(block)
            for tier, blocks in zip(self._tiers, found, strict=True):
                if blocks:
                    tier.found(sum(block >= 0 for block in blocks) * self._size, preempted=preempted)
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
            tier.use(blocks, self.now_fs)

    def _through(self, blocks: Sequence[int]) -> None:
        """Write blocks to all tiers that are written through."""
        for index, tier in enumerate(self._tiers):
            if tier.spec.write == "through":
                self.displace(tier.write(blocks, self.now_fs), index + 1)
