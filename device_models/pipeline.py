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
from typing import Generic, NamedTuple, TypeVar

import numpy as np

from pimserve.device_models.operators import Category
from pimserve.device_models.step import (
    Amount,
    N,
    OperatorTime,
    StepCosts,
    StepShape,
    StepTuple,
    each_step,
    greater,
    most,
    over_span,
    seen_tokens,
    where,
)


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

    def work(self, tokens: N, outputs: N, requests: N, seen: Sequence[N]) -> N:
        """What these bring to the station."""
        work = self.per_token * tokens + self.per_output * outputs + self.per_request * requests
        for per_token, context in zip(self.per_context, seen, strict=True):
            work = work + per_token * context
        return work


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

    def amounts(self, tokens: N, outputs: N, requests: N, seen: Sequence[N]) -> list[tuple[int, N]]:
        """What these leave, (time of each, how many), without prefill attention."""
        amounts = [(self.per_token, tokens), (self.per_output, outputs), (self.per_request, requests)]
        return amounts + list(zip(self.per_context, seen, strict=True))

    def prefill_fs(self, whole_fs: int) -> int:
        """Its part of prefill attention's time; to be asked once for all of it, as it is rounded down."""
        parts, of = self.prefill
        return whole_fs * parts // of


_Alike = TypeVar("_Alike", Station, Load)


def undominated(alike: Iterable[_Alike]) -> list[_Alike]:
    """Of alike stations or loads, those that another has not at least as much of in all respects.

    Whatever passes through, the one with most to do is among them.
    """
    kept: list[tuple[_Alike, tuple[float, ...]]] = []
    for one in alike:
        respects = one.respects
        if not any(_covers(others, respects) for _, others in kept):
            kept = [(other, others) for other, others in kept if not _covers(respects, others)] + [(one, respects)]
    return [one for one, _ in kept]


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
    def links(self) -> tuple[str, ...]:
        """Links are in the chain."""
        return ()

    @property
    def rows_of_busiest(self) -> bool:
        """Row terms count all tokens."""
        return False

    @property
    def fixed_fs(self) -> int:
        """One token's way without attention to its context."""
        return sum([time for _, time in self.chain])

    def prefill(
        self, decodes: int, chunks: Sequence[tuple[int, int]], attention_fs: Sequence[int], verify_tokens: int = 1
    ) -> tuple[int, int, int]:
        """(tokens that queue, tokens of the anchor, fs of prefill attention) of a step with prompts.

        `chunks` are (tokens, context), beside decoding requests. The anchor's attention is a barrier in every layer;
        that of the others hides behind their own work elsewhere, or the other way round. The second prompt runs one
        layer behind the anchor: it queues only where they meet, and counts for as many tokens as that takes.
        """
        assert verify_tokens == 1
        if not chunks:
            return decodes, 0, 0
        if len(chunks) == 1:
            return decodes, chunks[0][0], attention_fs[0]
        costs = [(chunk[0], time) for chunk, time in zip(chunks, attention_fs, strict=True)]
        first, second, *rest = sorted(
            costs, key=lambda cost: (self.per_prompt_token * cost[0] + cost[1], cost), reverse=True
        )
        per_token = max([station.per_token for station in self.stations])
        meeting = second[0] * self.per_second_prompt_token // per_token if per_token else second[0]
        queued = meeting + sum([tokens for tokens, _ in rest])
        attention = second[1] + sum([time for _, time in rest])
        return decodes + queued, first[0], first[1] + max(0, attention - queued * per_token)

    def taken(self, shape: StepTuple[N]) -> list[N]:
        """By way of decode attention, 1 where it is taken: there is one."""
        return [1 + 0 * shape[0]]

    def layers_fs(self, shape: StepTuple[N]) -> N:
        """Time of the first steps: the anchor's chain, and the longest wait."""
        passing = self._passing(shape)
        return self.fixed_fs + passing.slots_fs + passing.attention_fs + most(passing.waits_fs)

    def _passing(self, shape: StepTuple[N]) -> _Passing[N]:
        """What the first steps wait for: with prompts for all of the work, without for what the rules above leave."""
        _, requests, context, _, _, outputs, queued, anchor, prefill_fs, *_ = shape
        prompts = anchor > 0
        attention, behind, visited = prefill_fs, [], 0 * context
        for index, (window, per_token) in enumerate(zip(self.windows, self.chain_per_context, strict=True)):
            seen = seen_tokens(window, requests, context)
            mean = where(prompts, 0 * seen, seen // (requests + (requests == 0)))
            attention = attention + per_token * mean
            behind.append(seen - mean)
            if index == 0:
                visited = mean
        others = requests - 1
        tokens, decoding = where(prompts, queued, others), where(prompts, requests, others)
        sampled = outputs - (outputs > 0)  # but the anchor
        waits = []
        for station in self.stations:
            wait = station.work(tokens, sampled, decoding, behind)
            if station.rest >= 0:
                visit = station.visit + station.visit_per_context * visited
                in_turns = greater(wait - station.slack, others * visit)
                alone = where((requests - 2) * visit <= station.rest, in_turns, wait)
                wait = where(prompts, wait, alone)
            waits.append(wait)
        return _Passing(self.per_prompt_token * (anchor - prompts), attention, waits)

    def decode_span(self, requests: int, context: int, steps: int) -> tuple[int, int, int]:
        """(time of the first step, growth per step, steps) of decode steps for which one station's rule holds.

        Contexts grow by one token per request and step. `steps` is cut where another station or rule takes over, or a
        window fills.
        """
        first = self.fixed_fs
        growth = 0
        others = requests - 1
        queued, grown = [], []
        mean_first, widens = 0, False
        for index, (window, per_token) in enumerate(zip(self.windows, self.chain_per_context, strict=True)):
            grows = window is None or context < window * requests
            if grows and window is not None:
                steps = min(steps, (window * requests - context) // requests + 1)
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

    def costs(self, shape: StepShape[N]) -> StepCosts[N]:
        """What steps, or spans, take beyond row terms."""
        n, end = shape.steps, shape.last
        first: _Passing[N] = self._passing(shape)
        last: _Passing[N] = self._passing(end)
        slots = n * first.slots_fs
        attention = over_span(n, first.attention_fs, last.attention_fs)
        costs: StepCosts[N] = StepCosts(
            [OperatorTime("chain", category, time * n) for category, time in self.chain],
            chain_fs=n * self.fixed_fs + slots + attention,
        )
        costs.operators += [
            OperatorTime("prompts", self.prompt_category, slots),
            OperatorTime("attention, prefill", "attention_prefill", shape.prefill_fs),
            OperatorTime("attention, decode", "attention_decode", attention - shape.prefill_fs),
        ]
        for station, wait in zip(self.stations, self._waits(shape, first, last), strict=True):
            costs.operators.append(OperatorTime(station.name, station.category, wait))
        seen = []
        for window in self.windows:
            ends = (seen_tokens(window, shape.decodes, at) for at in (shape.context, end.context))
            seen.append(over_span(n, *ends))
        counts = n * shape.tokens, n * shape.outputs, n * shape.decodes, seen
        for load in self.loads:
            amounts = load.amounts(*counts)
            costs.busy += [Amount((self.prompt_category, load.unit), *amount) for amount in amounts[:2]]
            costs.busy += [Amount(("attention_decode", load.unit), *amount) for amount in amounts[2:]]
        for place, load in enumerate(self.device_loads):
            costs.loads += [Amount(place, *amount) for amount in load.amounts(*counts)]
        return costs

    def _waits(self, shape: StepShape[N], first: _Passing[N], last: _Passing[N]) -> list[N]:
        """Wait at each station: where it is the longest, the first of those that are as long."""
        wait = over_span(shape.steps, most(first.waits_fs), most(last.waits_fs))
        at, at_end = _longest(first.waits_fs), _longest(last.waits_fs)
        waits = [wait * (at == index) * (at_end == index) for index in range(len(self.stations))]
        if not isinstance(at, int) and not isinstance(at_end, int):
            uneven = np.flatnonzero(at != at_end)  # at an end of these spans, two stations wait for equally long
            if len(uneven):
                spans = StepShape(*(column[uneven] for column in shape))
                steps = each_step(spans)
                single = self._passing(steps)
                longest, begins = _longest(single.waits_fs), np.cumsum(spans.steps) - spans.steps
                for index, column in enumerate(waits):
                    column[uneven] = np.add.reduceat(most(single.waits_fs) * (longest == index), begins)
        return waits


class _Passing(NamedTuple, Generic[N]):
    """Of single steps, beyond the fixed chain: the anchor's tokens one behind the other, its attention, and the wait at
    each station.
    """

    slots_fs: N
    attention_fs: N
    waits_fs: list[N]


def _longest(waits: Sequence[N]) -> N:
    """The place of the most, and of the first that is as much; of columns, element by element."""
    if isinstance(waits[0], int):
        return waits.index(max(waits))
    return np.asarray(np.stack(waits).argmax(axis=0))


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


def passive_of_both(one: PassivePower | None, other: PassivePower | None) -> PassivePower | None:
    """Of two groups of devices; None where it is not known of one."""
    if one is None or other is None:
        return None
    return PassivePower(one.idle_uw + other.idle_uw, one.step_uw + other.step_uw, one.chain_uw + other.chain_uw)
