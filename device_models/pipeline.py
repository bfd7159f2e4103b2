"""A step on a device whose weights stay where they are: tokens pass through it one behind the other.

There is no matrix product over a batch; every token needs its own matrix-vector products, so a step is a pipeline. One
token (the anchor: a decoding request with the mean context, or the last token of the longest prompt) takes the chain of
all its operations; the other tokens queue for the busiest station, a resource of which the replica has few:

    time = chain of the anchor + max over stations of the wait there.

Decoding requests are alike. Each visits a station several times, for `visit` each time, and `rest` passes before it is
back. While all others have begun their visit by then, (B - 2) visit <= rest, they go round in turns, and the wait is
(B - 1) visits, or what is left of their work W when the `slack` of all rests is used up. Beyond that the first ones
come back before the last ones were served, stay ahead of them, and the wait is W: the bound T1 + (B - 1) w. With
prompts in the step it always is. All times are integers in femtoseconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from pimserve.device_models.operators import Category

IntArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Station:
    """A resource that tokens queue for.

    Work: `per_token` of the step, `per_output` that it samples, `per_request` that decodes, and `per_context` token
    that decoding ones see (an entry for each of the pipeline's windows). A visit lasts `visit`, and `visit_per_context`
    token of the mean context in the first window. `rest` < 0: visits are not told apart, and the wait is always all of
    the work.
    """

    name: str
    category: Category
    per_token: int
    per_output: int
    per_request: int
    per_context: tuple[int, ...]
    visit: int = 0
    visit_per_context: int = 0
    rest: int = -1
    slack: int = 0

    @property
    def respects(self) -> tuple[float, ...]:
        """In which it may have more to do than another."""
        work = (self.per_token, self.per_output, self.per_request, *self.per_context)
        return (*work, -self.rest, -self.slack)

    def work(self, tokens: int, outputs: int, requests: int, seen: Sequence[int]) -> int:
        """What these bring to the station."""
        work = self.per_token * tokens + self.per_output * outputs + self.per_request * requests
        return work + sum([each * context for each, context in zip(self.per_context, seen, strict=True)])


@dataclass(frozen=True, slots=True)
class Load:
    """Busy time that work leaves on a unit, for the busy shares.

    Per token, sampled output, decoding request and context token seen. `prefill`: (parts, of so many equal ones) of
    prefill attention that are on this unit.
    """

    unit: str
    per_token: int
    per_output: int
    per_request: int
    per_context: tuple[int, ...]
    prefill: tuple[int, int] = (0, 1)

    @property
    def respects(self) -> tuple[float, ...]:
        """In which it may be more than another."""
        work = (self.per_token, self.per_output, self.per_request, *self.per_context)
        return (*work, self.prefill[0] / self.prefill[1])

    def busy_fs(self, tokens: int, outputs: int, requests: int, seen: Sequence[int]) -> int:
        """What these leave, without prefill attention."""
        busy = self.per_token * tokens + self.per_output * outputs + self.per_request * requests
        return busy + sum(each * total for each, total in zip(self.per_context, seen, strict=True))

    def prefill_fs(self, whole_fs: int) -> int:
        """Its part of prefill attention's time; to be asked once for all of it, as it is rounded down."""
        parts, of = self.prefill
        return whole_fs * parts // of


_Alike = TypeVar("_Alike", Station, Load)


def undominated(alike: Iterable[_Alike]) -> list[_Alike]:
    """Of alike stations or loads, those that another has not at least as much of in all respects.

    Whatever passes through, the one with most to do is among them.
    """
    found: list[tuple[_Alike, tuple[float, ...]]] = []
    for each in alike:
        mine = each.respects
        if any(_covers(theirs, mine) for _, theirs in found):
            continue
        found = [kept for kept in found if not _covers(mine, kept[1])] + [(each, mine)]
    return [each for each, _ in found]


def _covers(one: Sequence[float], other: Sequence[float]) -> bool:
    return all(a >= b for a, b in zip(one, other, strict=True))


@dataclass(frozen=True, slots=True)
class PipelineTerm:
    """How tokens of a step pass through a replica.

    `chain` is one token's way by category, but for attention to its context, which takes `chain_per_context` for each
    context token that it sees. `windows` are the attention windows of groups of layers (None: all of the context).
    The first window is the widest. Tokens of a prompt follow each other at `per_prompt_token`, of which the category is
    `prompt_category`; a second prompt adds `per_second_prompt_token`, or more where more tokens queue. `loads` are of
    each unit in the mean over the devices; `device_loads` of those of its devices that may have most to do.
    """

    windows: tuple[int | None, ...]
    chain: tuple[tuple[Category, int], ...]
    chain_per_context: tuple[int, ...]
    stations: tuple[Station, ...]
    per_prompt_token: int
    per_second_prompt_token: int
    prompt_category: Category
    loads: tuple[Load, ...]
    device_loads: tuple[Load, ...] = ()

    @property
    def fixed_fs(self) -> int:
        """One token's way without attention to its context."""
        return sum(time for _, time in self.chain)

    def seen(self, requests: int, context: int) -> list[int]:
        """Context tokens that layers of each window see, summed over the decoding requests."""
        return [context if window is None else min(context, window * requests) for window in self.windows]

    def span(self, requests: int, context: int, steps: int) -> tuple[int, int, int]:
        """(time of the first step, growth per step, steps) of decode steps for which one station's rule holds.

        Contexts grow by one token per request and step. `steps` is cut where another station or rule takes over; the
        caller cuts it where a window fills.
        """
        first = self.fixed_fs
        growth = 0
        others = requests - 1
        queued, grown = [], []
        mean_first, widens = 0, False
        for index, (window, per_token) in enumerate(zip(self.windows, self.chain_per_context, strict=True)):
            grows = window is None or context < window * requests
            seen = context if grows else (window or 0) * requests
            mean = seen // requests
            first += per_token * mean
            growth += per_token * grows
            queued.append(seen - mean)
            grown.append(others * grows)
            if index == 0:
                mean_first, widens = mean, grows
        lines = []
        for station in self.stations:
            work = station.work(others, others, others, queued)
            slope = station.work(0, 0, 0, grown)
            visit = station.visit + station.visit_per_context * mean_first
            left = station.rest - (requests - 2) * visit
            if left < 0:
                lines.append((work, slope))
                continue
            lines.append((work - station.slack, slope))
            lines.append((others * visit, others * station.visit_per_context * widens))
            closing = (requests - 2) * station.visit_per_context * widens
            if closing > 0:
                steps = min(steps, left // closing + 1)
        wait, slope = max(lines)
        for other, other_slope in lines:
            if other_slope > slope:
                steps = min(steps, (wait - other) // (other_slope - slope) + 1)
        return first + wait, growth + slope, steps

    def mixed_fs(self, requests: int, context: int, outputs: int, *, queued: int, anchor: int, prefill_fs: int) -> int:
        """Time of a step with prompts: the longest, of `anchor` tokens, goes ahead, and `queued` tokens wait."""
        seen = self.seen(requests, context)
        sampled = max(0, outputs - 1)  # but the anchor
        wait = max([station.work(queued, sampled, requests, seen) for station in self.stations])
        return self.fixed_fs + self.per_prompt_token * (anchor - 1) + prefill_fs + wait

    def prefill(self, requests: int, chunks: Sequence[tuple[int, int]]) -> tuple[int, int, int]:
        """(tokens that queue, tokens of the anchor, fs of prefill attention) of a step with prompts.

        `chunks` are (tokens, attention fs), beside `requests` decoding requests. The anchor's attention is a barrier in
        every layer; that of the others hides behind their own work elsewhere, or the other way round. The second prompt
        runs one layer behind the anchor: it queues only where they meet, and counts for as many tokens as that takes.
        """
        if len(chunks) == 1:
            (tokens, attention), *_ = chunks
            return requests, tokens, attention
        first, second, *rest = sorted(
            chunks, key=lambda chunk: (self.per_prompt_token * chunk[0] + chunk[1], chunk), reverse=True
        )
        per_token = max([station.per_token for station in self.stations])
        meeting = second[0] * self.per_second_prompt_token // per_token if per_token else second[0]
        queued = meeting + sum([tokens for tokens, _ in rest])
        attention = second[1] + sum([spent for _, spent in rest])
        return requests + queued, first[0], first[1] + max(0, attention - queued * per_token)

    def columns(
        self,
        requests: IntArray,
        context: IntArray,
        outputs: IntArray,
        *,
        queued: IntArray,
        anchor: IntArray,
        prefill_fs: IntArray,
    ) -> PipelineColumns:
        """The same for many steps, (n,) each; without prompts `anchor` is 0."""
        prompts = anchor > 0
        attention = np.where(prompts, prefill_fs, 0)
        behind = []
        mean_first = np.zeros_like(context)
        for index, (window, per_token) in enumerate(zip(self.windows, self.chain_per_context, strict=True)):
            seen = context if window is None else np.minimum(context, window * requests)
            mean = np.where(prompts, 0, seen // np.maximum(requests, 1))
            attention = attention + per_token * mean
            behind.append(seen - mean)
            if index == 0:
                mean_first = mean
        ahead = requests - 1
        waits = []
        for station in self.stations:
            wait = station.per_token * np.where(prompts, queued, ahead)
            wait += station.per_output * np.maximum(outputs - 1, 0)
            wait += station.per_request * np.where(prompts, requests, ahead)
            for each, tokens in zip(station.per_context, behind, strict=True):
                wait += each * tokens
            visit = station.visit + station.visit_per_context * mean_first
            in_turns = np.maximum(wait - station.slack, ahead * visit)
            waits.append(np.where(~prompts & ((requests - 2) * visit <= station.rest), in_turns, wait))
        table = np.stack(waits)
        slots = self.per_prompt_token * np.maximum(anchor - 1, 0)
        return PipelineColumns(slots, attention, table.max(axis=0), table.argmax(axis=0))


@dataclass(frozen=True, slots=True)
class PipelineColumns:
    """Per step, (n,): beyond the fixed chain, the anchor's tokens one behind the other, its attention, and the longest
    wait with the station that it is at.
    """

    slots_fs: IntArray
    attention_fs: IntArray
    wait_fs: IntArray
    station: IntArray


@dataclass(frozen=True, slots=True)
class PassivePower:
    """Power that a replica draws whether it works or not, in microwatts.

    `idle_uw` while no step runs, `step_uw` in steps. `chain_uw` is saved in steps while only the anchor's chain is
    under way: chips that it has not reached, or has left, rest.
    """

    idle_uw: int
    step_uw: int
    chain_uw: int = 0

    def energy_pj(self, idle_fs: int, step_fs: int, chain_fs: int) -> int:
        """Energy over these times."""
        return (self.idle_uw * idle_fs + self.step_uw * step_fs - self.chain_uw * chain_fs) // 10**9
