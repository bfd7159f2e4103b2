"""Steps of a replica that its tenants share fairly: each token of an output is counted for its tenant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pimserve.device_models.plan import ChunkShape
from pimserve.scheduler.acceptance import Acceptance
from pimserve.scheduler.admission import Admission
from pimserve.scheduler.decoding import Decoding
from pimserve.scheduler.fair_queue import FairQueue
from pimserve.scheduler.kv_cache import KvCache
from pimserve.scheduler.speculative_decoding import SpeculativeDecoding


class FairDecoding(Decoding):
    """Decoding requests, of which each step is service for their tenants, until it makes another tenant next.

    Args:
        queue: who waits, with the counters.
        running: all running requests, as `Decoding` has them.
        kv: the KV cache.
    """

    def __init__(self, queue: FairQueue, running: dict[int, int], kv: KvCache) -> None:
        self._queue = queue
        self._counters = queue.counters
        super().__init__(running, kv.block_size, kv.groups, in_order=kv.prefixes)

    def clear(self) -> None:
        """Nobody decodes."""
        super().clear()
        self._counters.nobody_decodes()

    def join(self, request: int, held: int, step: int, left: int) -> None:
        """A request with `held` KV tokens decodes from `step` on, for `left` tokens."""
        super().join(request, held, step, left)
        self._counters.decoding[self._queue.tenant_of(request)] += 1

    def leave(self, request: int, held: int, step: int) -> int:
        """A request with `held` KV tokens before `step` decodes no more; returns those that it has blocks for."""
        self._counters.decoding[self._queue.tenant_of(request)] -= 1
        return super().leave(request, held, step)

    def advance(self, steps: int, step: int) -> Sequence[int]:
        """After `steps` more steps, `step` comes next: the requests that have all their tokens, each told once."""
        self._counters.decode(steps)
        return super().advance(steps, step)

    def steps_to_change(self, step: int) -> int:
        """Steps from `step` on until the first one has all its tokens, or full windows, or another tenant is next."""
        steps, reorder = super().steps_to_change(step), self._queue.steps_to_reorder()
        return steps if reorder is None else min(steps, reorder)

    def restore(self, state: dict[str, Any], step: int, held: Mapping[int, int]) -> None:
        """Go on from `state` before `step`; `running` is as it was then, and decoding requests hold so many tokens."""
        super().restore(state, step, held)
        self._counters.nobody_decodes()
        for request in held:
            self._counters.decoding[self._queue.tenant_of(request)] += 1


class FairSpeculativeDecoding(SpeculativeDecoding):
    """The same of requests of whose drafts some are accepted; each step may make another tenant next.

    Args:
        queue, running, kv: as in `FairDecoding`.
        acceptance: how many are accepted.
    """

    def __init__(self, queue: FairQueue, running: dict[int, int], kv: KvCache, acceptance: Acceptance) -> None:
        self._counters = queue.counters
        super().__init__(running, kv, acceptance, len(queue.counters.service), queue.tenant_of)

    def advance(self, steps: int, step: int) -> Sequence[int]:
        """After this step, `step` comes next: the requests that have all their tokens, each told once."""
        self._counters.gain(self.emits_by_tenant(step - 1))
        return super().advance(steps, step)


class FairAdmission(Admission):
    """Notes who arrives before the next step, also where nobody can be admitted: it is then that tenants come back."""

    _queue: FairQueue

    def schedule(self, step: int, now_fs: int, *, admit: bool) -> tuple[list[ChunkShape], list[int]]:
        """Chunks of prompts in a step, and requests whose prompt is complete with it; nobody joins without `admit`."""
        self._queue.gather(now_fs)
        chunks, completed = super().schedule(step, now_fs, admit=admit)
        for request in completed:  # each has a token with this step; nobody looks at the counters until it ends
            self._queue.counters.emit(self._queue.tenant_of(request))
        return chunks, completed

    def has_prompt(self, now_fs: int, *, admit: bool) -> bool:
        """Whether the step that begins now can compute some of a prompt."""
        self._queue.gather(now_fs)  # `schedule` is not asked in a step that holds prompts back
        return super().has_prompt(now_fs, admit=admit)

    def open(self, now_fs: int) -> bool:
        """Somebody comes: that is enough."""
        return True

    def next_change_fs(self, now_fs: int) -> int:
        """When somebody comes."""
        return min(self._queue.next_change_fs(now_fs), self.next_loaded_fs(now_fs))
