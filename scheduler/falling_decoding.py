"""Decoding requests whose windows a prefix cache follows: it is told who decodes, and how far they have come."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pimserve.scheduler.decoding import Decoding
from pimserve.scheduler.fair_steps import FairDecoding
from pimserve.scheduler.windowed_prefix_cache import WindowedPrefixKvCache


class FallingDecoding(Decoding):
    """As `Decoding`; `follow` comes before all else."""

    def follow(self, kv: WindowedPrefixKvCache) -> None:
        """It is the cache that has their blocks."""
        self._kv = kv

    def join(self, request: int, held: int, step: int, left: int) -> None:
        """A request with `held` KV tokens decodes from `step` on, for `left` tokens."""
        super().join(request, held, step, left)
        self._kv.falls.join(request, self._kv.windows[request], held, step)

    def leave(self, request: int, held: int, step: int) -> int:
        """A request with `held` KV tokens before `step` decodes no more; returns those that it has blocks for."""
        self._kv.falls.leave(request, step)
        return super().leave(request, held, step)

    def advance(self, steps: int, step: int) -> Sequence[int]:
        """After `steps` more steps, `step` comes next: the requests that have all their tokens, each told once."""
        self._kv.falls.now = step
        return super().advance(steps, step)

    def restore(self, state: dict[str, Any], step: int, held: Mapping[int, int]) -> None:
        """Go on from `state` before `step`, after the cache; decoding requests hold so many tokens."""
        super().restore(state, step, held)
        self._kv.falls.restore(self._kv.windows, held, step)


class FairFallingDecoding(FallingDecoding, FairDecoding):
    """As `FairDecoding`."""
