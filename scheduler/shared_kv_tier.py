"""A tier of the prefix cache that replicas share: a store whose blocks, room and link are one for all of them.

What a replica computes another one finds. Replicas are not simulated at one time, but each for a while by itself: so
what they ask of the tier is kept, and done in order of simulated time, of equal times by the replica's number. Before
a replica looks something up all others must have come to that time (`TierTurns`); then it is as if all went together.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import asdict
from heapq import heappop, heappush
from typing import Any

from pimserve.device_models.kv_groups import KvGroups
from pimserve.scheduler.kv_tier import KvTier, TierFigures
from pimserve.scheduler.kv_tier_spec import KvTierSpec

_Asked = tuple[int, int, int, bool, list[int]]  # when, fs; replica; number; whether to write, or else to use; blocks


class SharedKvTier:
    """One for several replicas.

    Args:
        spec: what it is like.
        block_bytes: of one block, on all devices of a replica together.
        groups: of layers, that have blocks.
    """

    def __init__(self, spec: KvTierSpec, block_bytes: int, groups: KvGroups) -> None:
        self.tier = KvTier(spec, block_bytes, groups)
        self._parts: dict[int, KvTierPart] = {}  # by replica
        self._asked: list[_Asked] = []  # heap: what has not been done
        self._number = 0  # of the next thing that is asked
        self._done = 0, -1  # time and replica: nobody asks for anything before these any more

    @property
    def settled_fs(self) -> int:
        """Up to when all was done that was asked for."""
        return self._done[0]

    def part(self, replica: int) -> KvTierPart:
        """What that replica has of it."""
        return self._parts.setdefault(replica, KvTierPart(self, replica))

    def ask(self, at_fs: int, replica: int, blocks: Sequence[int], *, write: bool) -> None:
        """A replica writes blocks then, or used them."""
        assert (at_fs, replica) >= self._done, "a replica asks a shared tier for something that others have passed"
        heappush(self._asked, (at_fs, replica, self._number, write, list(blocks)))
        self._number += 1

    def settle(self, at_fs: int, replica: int = -1) -> None:
        """Do all that was asked for before that time, and at it by replicas up to that one."""
        while self._asked and self._asked[0][:2] <= (at_fs, replica):
            self._do_next()
        self._done = max(self._done, (at_fs, replica))

    def end(self) -> None:
        """Do all that was asked for, as nothing comes after it."""
        while self._asked:
            self._do_next()

    def _do_next(self) -> None:
        at_fs, replica, _, write, blocks = heappop(self._asked)
        if write:
            self._parts[replica].written(blocks, at_fs)
        else:
            self.tier.use(blocks, at_fs)

    def state(self) -> dict[str, Any]:
        """What it keeps, and has still to do, as JSON can hold it; the parts of replicas are not in it."""
        return {"tier": self.tier.state(), "asked": self._asked, "number": self._number, "done": self._done}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self.tier.restore(state["tier"])
        self._asked = [(at_fs, by, number, write, blocks) for at_fs, by, number, write, blocks in state["asked"]]
        self._number = state["number"]
        at_fs, replica = state["done"]
        self._done = at_fs, replica


class KvTierPart(KvTier):
    """What one replica has of a tier that is shared: all of its blocks, and figures of what it did itself.

    Nothing becomes of its blocks that a router hears of: they are the same for all replicas. Whoever fails does not
    take them along, nor what it has asked for.
    """

    def __init__(self, shared: SharedKvTier, replica: int) -> None:
        tier = shared.tier
        super().__init__(tier.spec, tier.block_bytes)
        self.shared = shared
        self.blocks = tier.blocks
        self._replica = replica
        self._carried: deque[tuple[int, int]] = deque()  # transfers of its own that may go on: begin and end

    @property
    def kept(self) -> int:
        """Blocks that all of the tier holds."""
        return self.shared.tier.kept

    @property
    def whole(self) -> KvTier:
        """The tier that it is a part in."""
        return self.shared.tier

    def publish(self, *, wanted: bool) -> None:
        """Nobody hears of its blocks."""

    def clear(self, now_fs: int) -> None:
        """The replica fails, or another one takes its place: what is shared stays."""

    def look(self, now_fs: int) -> None:
        """Its replica looks blocks up now."""
        self.shared.settle(now_fs, self._replica)

    def found(self, tokens: int, *, preempted: bool) -> None:
        """As `KvTier.found`."""
        super().found(tokens, preempted=preempted)
        self.shared.tier.found(tokens, preempted=preempted)

    def read(self, blocks: Sequence[int], now_fs: int) -> int:
        """As `KvTier.read`, of blocks that were looked up now."""
        figures = self.shared.tier.figures
        read, carried_fs = figures.read_blocks, figures.carried_fs
        there_fs = self.shared.tier.read(blocks, now_fs)
        self.figures.read_blocks += figures.read_blocks - read
        self._carry_own(figures.carried_fs - carried_fs)
        return there_fs

    def write(self, blocks: Sequence[int], now_fs: int) -> list[int]:
        """As `KvTier.write`, in turn; below it, there is nothing that what it forgets could go to."""
        if blocks:
            self.shared.ask(now_fs, self._replica, blocks, write=True)
        return []

    def written(self, blocks: Sequence[int], now_fs: int) -> None:
        """It is its turn to be written."""
        figures = self.shared.tier.figures
        written, evicted, carried_fs = figures.written_blocks, figures.evicted_blocks, figures.carried_fs
        self.shared.tier.write(blocks, now_fs)
        self.figures.written_blocks += figures.written_blocks - written
        self.figures.evicted_blocks += figures.evicted_blocks - evicted
        self._forget_transfers(now_fs)
        self._carry_own(figures.carried_fs - carried_fs)

    def use(self, blocks: Sequence[int], now_fs: int) -> None:
        """As `KvTier.use`, in turn."""
        if blocks:
            self.shared.ask(now_fs, self._replica, blocks, write=False)

    def busy_fs(self, now_fs: int) -> int:
        """How long the link has worked for its replica by now."""
        self._forget_transfers(now_fs)
        return self.figures.carried_fs - sum(end - max(begin, now_fs) for begin, end in self._carried)

    def state(self) -> dict[str, Any]:
        """What is its own, as JSON can hold it."""
        return {"figures": asdict(self.figures), "carried": list(self._carried)}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self.figures = TierFigures(**state["figures"])
        self._carried = deque((begin, end) for begin, end in state["carried"])

    def _carry_own(self, lasts_fs: int) -> None:
        """The link was given a transfer of its own, which is the last one now."""
        if lasts_fs:
            self.figures.carried_fs += lasts_fs
            end_fs = self.shared.tier.free_fs
            self._carried.append((end_fs - lasts_fs, end_fs))

    def _forget_transfers(self, now_fs: int) -> None:
        """Those that have ended by now are nobody's concern any more."""
        while self._carried and self._carried[0][1] <= now_fs:
            self._carried.popleft()
