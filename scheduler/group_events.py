"""What becomes of cached blocks on a replica with data-parallel groups: it has a block while any group has it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from pimserve.scheduler.engine_core import EngineCore


class GroupEvents:
    """Events of the groups' KV caches as those of one.

    Args:
        cores: the groups.
    """

    def __init__(self, cores: Sequence[EngineCore]) -> None:
        self._cores = cores
        self._caching: Counter[int] = Counter()  # groups that have a block, as far as was told

    def publish(self, *, wanted: bool) -> None:
        """As `KvCache.publish`."""
        self._caching.clear()
        for core in self._cores:
            core.kv.publish(wanted=wanted)

    def take(self) -> list[list[int]]:
        """As `KvCache.take_events`."""
        told = []
        for event in (event for core in self._cores for of_cache in core.kv.take_events() for event in of_cache):
            block, change = (event, 1) if event >= 0 else (-1 - event, -1)
            self._caching[block] += change
            if self._caching[block] == (change > 0):  # the first group that has it, or the last one that had
                told.append(event)
            if not self._caching[block]:
                del self._caching[block]
        return [told]

    def state(self) -> list[tuple[int, int]]:
        """Blocks, and how many groups have them, as JSON can hold it."""
        return list(self._caching.items())

    def restore(self, state: Iterable[tuple[int, int]]) -> None:
        """Go on from `state`."""
        self._caching = Counter(dict(state))
