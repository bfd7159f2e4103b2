"""The decoding requests of a replica whose steps verify drafts: each gains a token or more in every step.

How many is known of all steps at once (`acceptance`), so that a request adds what it will emit, and the KV blocks that
it will take, to sums of coming steps when it joins. Nothing is done for it after that until it leaves. As requests gain
unevenly, steps follow each other one by one: spans are of one step each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from heapq import heappush
from typing import Any, NamedTuple

import numpy as np

from pimserve.arrays import IntArray
from pimserve.scheduler.acceptance import Acceptance
from pimserve.scheduler.decoding import Decoding
from pimserve.scheduler.kv_cache import KvCache
from pimserve.scheduler.spec_decode_figures import SpecDecodeFigures

_COMING_STEPS = 1024  # of which there is room at the beginning; a power of two
_SUMS = 2  # of each: tokens, blocks


class _Joined(NamedTuple):
    """A request as it joined."""

    step: int
    held: int
    left: int
    last: int  # tokens that it emits in its last step


class SpeculativeDecoding(Decoding):
    """Decoding requests, of whose drafts some are accepted.

    Args:
        running: all running requests, as `Decoding` has them.
        kv: the KV cache, which has slots for drafts.
        acceptance: how many are accepted.
        tenants: for whom tokens are counted apart, too.
        tenant_of: the number of a request's tenant, if there are any.
    """

    def __init__(
        self,
        running: dict[int, int],
        kv: KvCache,
        acceptance: Acceptance,
        tenants: int = 0,
        tenant_of: Callable[[int], int] | None = None,
    ) -> None:
        self._tenants, self._tenant_of = tenants, tenant_of
        self._kv = kv
        self._acceptance = acceptance
        self.verify_tokens = acceptance.spec.verify_tokens
        self._lookahead = acceptance.spec.lookahead_tokens
        self._window_blocks = kv.groups.window_blocks(kv.block_size, 1 + self._lookahead) if kv.windowed else 0
        self._drafts = self._accepted = 0  # verified, in requests x steps; tokens of these
        super().__init__(running, kv.block_size, kv.groups, in_order=kv.prefixes)

    def clear(self) -> None:
        """Nobody decodes."""
        super().clear()
        self._joined: dict[int, _Joined] = {}
        self._make_room(_COMING_STEPS)

    def join(self, request: int, held: int, step: int, left: int) -> None:
        """A request with `held` KV tokens decodes from `step` on, for `left` tokens."""
        tokens = self._acceptance.from_step(request, step, left)
        self._joined[request] = joined = _Joined(step, held, left, int(tokens[-1]))
        self._add(request, joined, tokens, step, 1)
        self.count += 1
        self.context += held + self.verify_tokens
        self._running[request] = finish_step = step + len(tokens)
        heappush(self._finish_steps, (finish_step, request))

    def leave(self, request: int, held: int, step: int) -> int:
        """A request with `held` KV tokens before `step` decodes no more; returns those that it has blocks for."""
        joined = self._joined.pop(request)
        self.count -= 1
        self.context -= held + self.verify_tokens
        if held == joined.held + joined.left:
            return held - joined.last + 1
        tokens = self._acceptance.from_step(request, joined.step, joined.left)
        self._add(request, joined, tokens, step, -1)
        done = step - joined.step
        return held - int(tokens[done - 1]) + 1 if done else held

    def left(self, request: int, finish_step: int, step: int) -> int:
        """Tokens that a request has to emit from `step` on, which will have finished at the start of `finish_step`."""
        if step >= finish_step:
            return 0
        begin, _, left, _ = self._joined[request]
        return left - int(self._acceptance.from_step(request, begin, left)[: step - begin].sum())

    def steps_of(self, request: int, _tokens: int, step: int) -> int:
        """Steps before this one in which it decoded."""
        return step - self._joined[request].step

    def emits(self, step: int) -> int:
        """Tokens that they emit in the next step."""
        return int(self._tokens[step & self._mask])

    def emits_by_tenant(self, step: int) -> list[int]:
        """Of these tokens, those of each tenant."""
        emitted: list[int] = self._coming[_SUMS:, step & self._mask].tolist()
        return emitted

    def growth(self, step: int) -> int:
        """KV blocks that they take in `step`."""
        return int(self._blocks[step & self._mask])

    def steps_to_change(self, _step: int) -> int:
        """Steps until the next one that may differ: each may."""
        return 1

    def advance(self, steps: int, step: int) -> Sequence[int]:
        """After this one, `step` comes next: the requests that have all their tokens, each told once."""
        assert steps == 1
        place = step - 1 & self._mask
        emitted = int(self._tokens[place])
        self._drafts += self.count
        self._accepted += emitted - self.count
        self.context += emitted
        self._coming[:, place] = 0
        return super().advance(0, step)

    @property
    def spec_decode(self) -> SpecDecodeFigures:  # type: ignore[override]
        """What came of drafts so far."""
        return SpecDecodeFigures(self._drafts, self._drafts * (self.verify_tokens - 1), self._accepted)

    def state(self) -> dict[str, Any]:
        """The sums, and who joined when, as JSON can hold it."""
        return {
            **super().state(),
            "speculative": [[request, *joined] for request, joined in self._joined.items()],
            "spec_decode": [self._drafts, self._accepted],
        }

    def restore(self, state: dict[str, Any], step: int, held: Mapping[int, int]) -> None:
        """Go on from `state` before `step`; what requests hold follows from when they joined."""
        super().restore(state, step, {})
        self._joined = {request: _Joined(*joined) for request, *joined in state["speculative"]}
        self._drafts, self._accepted = state["spec_decode"]
        self._make_room(_COMING_STEPS)
        for request, joined in self._joined.items():
            self._add(request, joined, self._acceptance.from_step(request, joined.step, joined.left), step, 1)

    def _make_room(self, steps: int) -> None:
        """Room for what so many coming steps emit and take, all 0 so far."""
        self._mask = steps - 1
        self._coming = np.zeros((_SUMS + self._tenants, steps), np.int64)
        self._tokens, self._blocks = self._coming[:_SUMS]

    def _add(self, request: int, joined: _Joined, tokens: IntArray, step: int, times: int) -> None:
        """Add what a request emits and takes from `step` on, so many times; it emits `tokens` (n,) in its steps."""
        while len(tokens) > self._mask:
            now = np.arange(step, step + self._mask + 1)
            kept = self._coming[:, now & self._mask]
            self._make_room(2 * (self._mask + 1))
            self._coming[:, now & self._mask] = kept
        held = joined.held + tokens.cumsum() - tokens  # before each step
        blocks = -(-(held + 1 + self._lookahead) // self._block_size)
        if self._windowed:
            blocks = self._full * blocks + self._windowed * np.minimum(blocks, self._window_blocks)
        blocks = np.diff(blocks, prepend=self._kv.blocks_of(joined.held))
        done = step - joined.step
        coming = np.arange(step, joined.step + len(tokens)) & self._mask
        self._tokens[coming] += times * tokens[done:]
        self._blocks[coming] += times * blocks[done:]
        if self._tenant_of is not None:
            self._coming[_SUMS + self._tenant_of(request), coming] += times * tokens[done:]
