"""An engine whose steps have prompts alone while there are any: those that decode wait, and have no token in them.

So does vLLM V0 without chunked prefill, for a short time to the first token, and long gaps between others (arXiv
2403.02310, 3). `step` counts the steps of those that decode, by which they end; those of prompts are counted beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pimserve.device_models.plan import FS_PER_PS
from pimserve.scheduler.engine import Engine
from pimserve.scheduler.shedding_engine import SheddingEngine
from pimserve.scheduler.windowed_prefix_cache import WindowedPrefixKvCache


class PrefillFirstEngine(Engine):
    """As `Engine`, for one that neither copies KV caches nor verifies drafts."""

    prefill_first = True

    def __init__(self, *engine: Any, **settings: Any) -> None:  # noqa: ANN401 the base class's
        # Since when, if they do, those that decode wait for steps of prompts, and how many of these there were then.
        self._waits_since: tuple[int, int] | None = None
        self._first_token_fs: dict[int, int] = {}  # of those whose prompt was complete since
        # Of those that decode, where longest gaps are wanted: how many there were when their prompt was complete.
        self._complete_after: dict[int, int] = {}
        super().__init__(*engine, **settings)
        self._tokens_late = True

    def state(self) -> dict[str, Any]:
        """What the engine has in hand, as JSON can hold it; the rows of its requests are not in it."""
        own = {
            "prompt_steps": self.prompt_steps,
            "waits_since": self._waits_since,
            "first_token": list(self._first_token_fs.items()),
            "complete_after": list(self._complete_after.items()),
        }
        return {**super().state(), **own}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        super().restore(state)
        self.prompt_steps = state["prompt_steps"]
        self._waits_since = None if state["waits_since"] is None else tuple(state["waits_since"])
        self._first_token_fs = dict(state["first_token"])
        self._complete_after = dict(state["complete_after"])

    def make_room(self) -> int:
        """As `EngineCore.make_room`; those that are preempted may have had their last tokens before."""
        before = set(self._token_at_fs)
        blocks = super().make_room()
        for request in self._token_at_fs.keys() - before:
            self._token_at_fs[request] = self._last_token_fs(request)
        return blocks

    def lose(self) -> tuple[int, list[int]]:
        """As `EngineCore.lose`; likewise."""
        decoding = [request for request, finish_step in self.running.items() if finish_step]
        lost = super().lose()
        for request in decoding:
            self._token_at_fs[request] = self._last_token_fs(request)
        self._tokens_come()
        return lost

    def late_fs(self) -> int:
        """For how long those that decode have waited for steps of prompts."""
        return 0 if self._waits_since is None else self.clock - self._waits_since[0]

    def held_up(self, waits_fs: int, step_fs: int) -> None:
        """The step that begins now is the first one after steps of prompts: tokens come at its end."""
        del waits_fs
        end_fs = self.clock + step_fs
        decoding = [request for request, finish_step in self.running.items() if finish_step]
        gaps_fs = [end_fs - self._last_token_fs(request) for request in decoding]
        self._log.joined(gaps_fs, step_fs, end_fs)
        if self._longest is not None:
            for request, gap_fs in zip(decoding, gaps_fs, strict=True):
                self._longest.waited(request, gap_fs)
        self._tokens_come()

    def _prompt_step(self, preempted: bool) -> bool:
        """One step of prompts; False when none can be computed now."""
        windows = self.kv if isinstance(self.kv, WindowedPrefixKvCache) else None
        if windows is not None:
            windows.falls.now = self.step - 1  # in this step those that decode do not grow
        chunks, completed = self.admission.schedule(self.step, self.clock, admit=not preempted)
        if windows is not None:
            windows.falls.now = self.step
        if not chunks:
            return False
        used, clock = self.kv.used, self.clock
        if self.decoding.count and self._waits_since is None:
            self._waits_since = clock, self.prompt_steps
        shape, duration = self.costs.prompt_step(self.steps, 0, 0, chunks, len(completed))
        self._span((*divmod(clock, FS_PER_PS), *shape, used, used, duration))
        self._left = None  # the next step has another number
        self.departures.ended_nobody()
        self.clock += duration
        self.prompt_steps += 1
        self.complete(completed, clock)
        return True

    def complete(self, completed: Sequence[int], begin_fs: int) -> None:
        """As `EngineCore.complete`."""
        super().complete(completed, begin_fs)
        for request in completed:
            if not self.running.get(request):
                continue  # it had but one token to come
            if self._longest is not None:
                self._complete_after[request] = self.prompt_steps
            if self._waits_since is not None:
                self._first_token_fs[request] = self.clock

    def _tell_longest(self, request: int, steps: int) -> None:
        """The request has decoded in the last so many steps; of those of prompts between, each is part of a gap."""
        assert self._longest is not None
        waited, before = self.prompt_steps, self._complete_after.pop(request)
        if self._waits_since is not None:
            _, waited = self._waits_since  # of the last ones nobody knows yet when they will have been waited for
        if steps:
            self._longest.decoded(request, self.step + waited, steps + waited - before)

    def _last_token_fs(self, request: int) -> int:
        """When a request that decodes, or did until now, had its last token."""
        since_fs = self.clock if self._waits_since is None else self._waits_since[0]
        return self._first_token_fs.get(request, since_fs)

    def _tokens_come(self) -> None:
        """Nobody waits any more."""
        self._waits_since = None
        self._first_token_fs.clear()


class SheddingPrefillFirstEngine(SheddingEngine, PrefillFirstEngine):
    """Judges requests as they arrive, too."""
