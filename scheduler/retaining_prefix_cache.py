"""A prefix cache with attention windows that keeps few of their blocks (`prefix_retention.py`).

As vLLM has it since its pull request 43447, blocks that are not cached, of windows or of others, go to the head of the
queue of free blocks: what falls out of the windows of a prompt while it is computed is used for the rest of it, and
pushes out nothing that could be found.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from pimserve.device_models.kv_groups import KvGroups
from pimserve.scheduler.prefix_cache import PrefixKvCache
from pimserve.scheduler.prefix_retention import Retention
from pimserve.scheduler.requests import RequestTable
from pimserve.scheduler.window_falls import DUPLICATE, WindowBlocks
from pimserve.scheduler.windowed_prefix_cache import WindowedPrefixKvCache


class RetainingPrefixKvCache(WindowedPrefixKvCache):
    """Blocks of one replica, as `WindowedPrefixKvCache` has them.

    Args:
        limits, settings: as there.
        retention_interval: tokens, as `Retention` has them.
    """

    def __init__(self, *limits: Any, retention_interval: int, **settings: Any) -> None:  # noqa: ANN401 as there
        super().__init__(*limits, **settings)
        tail = self._window_blocks - 1  # of what the next token touches, what is before its own
        self._retention = Retention(retention_interval, self.block_size, tail)

    def bind(self, table: RequestTable) -> None:
        """As `PrefixKvCache.bind`."""
        super().bind(table)
        self._prompts = table.views["input_tokens"]

    def _shared_end(self, ids: list[int], end: int) -> int:
        shared = end
        while shared < len(ids) and (ids[shared] in self._holders or ids[shared] in self._free):
            shared += 1
        return shared if shared > end else 0

    def _cache_window(self, request: int, window: WindowBlocks, ids: list[int]) -> list[int]:
        first, again = window.end, (self._prompts[request] - 1) // self.block_size
        kept = self._retention.kept(first, first + len(ids), (again, window.shared_end))
        return self._cache_places(window, ids, [place - first for place in kept])

    def _shift(self, window: WindowBlocks, fall: int) -> None:
        """As there, but for where those go that are not cached."""
        known = [block for block in reversed(window.ids[:fall]) if block != DUPLICATE]
        del window.ids[:fall]
        window.first += fall
        self._fell(known, fall - len(known))

    def _append(self, others: int) -> None:
        """So many blocks that are not cached go to the head of the queue."""
        if not others:
            return
        free = self._free
        head = next(iter(free), 0)
        if head < 0 and head not in self._free_ids:
            free[head] += others
        else:
            super()._append(others)
            free.move_to_end(self._next_key + 1, last=False)


def prefix_cache_of(groups: KvGroups, retention_interval: int | None) -> Callable[..., PrefixKvCache]:
    """What makes prefix caches for these groups of layers; without windows, all of their blocks are kept.

    Args:
        groups: of layers.
        retention_interval: tokens, as `Retention` has them; None: blocks of windows are all kept, too.
    """
    if not groups.windowed:
        return PrefixKvCache
    if retention_interval is None:
        return WindowedPrefixKvCache
    return partial(RetainingPrefixKvCache, retention_interval=retention_interval)
