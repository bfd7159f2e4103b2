"""When the micro-batches of a step are where, of which attention and experts have devices of their own.

The two groups and the two directions of the link each take one micro-batch at a time, in their order, and a micro-batch
waits for its own previous layer. Experts are drawn, so that layers differ in time: a step's time is that of the event
schedule, in max and plus. Where one group works without a break, nothing of the others is seen between their first
visit and their last, and what this group takes adds up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np

from pimserve.arrays import IntArray
from pimserve.device_models.step import N

F = TypeVar("F", int, float)
_ATTENTION, _DISPATCH, _COMBINE = 1, 2, 4  # places in `PartTimes`
_WHOLE_FS = 2.0**53  # below, floating point has all whole numbers


class PartTimes(NamedTuple, Generic[N]):
    """How long a micro-batch takes at each stage, fs: an entry for each round of visits that are alike, or, of experts,
    for each visit; and what attention's devices do last."""

    visits: Sequence[int]  # of each round
    attention: Sequence[N]
    dispatch: Sequence[N]
    experts: Any  # of numbers a list, of columns one array (visits, n)
    combine: Sequence[N]
    closing: N

    @property
    def attention_fs(self) -> N:
        """On attention's devices."""
        return sum([n * time for n, time in zip(self.visits, self.attention, strict=True)], self.closing)

    @property
    def experts_fs(self) -> N:
        """On the experts' devices."""
        return sum(self.experts, 0 * self.closing)  # type: ignore[no-any-return]

    @property
    def link_fs(self) -> N:
        """On the link, there and back."""
        there_and_back = zip(self.visits, self.dispatch, self.combine, strict=True)
        return sum([n * (there + back) for n, there, back in there_and_back], 0 * self.closing)

    @property
    def whole_fs(self) -> N:
        """One stage after the other."""
        return self.attention_fs + self.experts_fs + self.link_fs

    @property
    def free_links(self) -> PartTimes[N]:
        """The same over links that take no time."""
        nothing = [0 * self.closing] * len(self.dispatch)
        return self._replace(dispatch=nothing, combine=nothing)


def schedule_fs(parts: Sequence[PartTimes[N]]) -> N:
    """Time of a step by its event schedule, for numbers or columns of steps.

    Args:
        parts: its micro-batches, in order. Each stage takes them in this order, visit by visit, one at a time; those of
            a visit start with attention when they have come back from the one before.
    """
    if len(parts) == 1:
        return parts[0].whole_fs
    if not isinstance(parts[0].closing, int):
        return np.asarray(_schedule_columns(parts))
    schedule = {2: _of_two, 3: _of_three}.get(len(parts), _of_many)
    # Times only grow on their way, so that the last one tells whether all of them were whole numbers.
    time = schedule(parts, float)
    return int(time) if time < _WHOLE_FS else schedule(parts, int)


def _of_many(parts: Sequence[PartTimes[int]], kind: Callable[[int], F]) -> F:
    """For numbers, taken as such a kind; plain comparisons, since an engine asks for each step with prompts."""
    attention = dispatch = experts = combine = kind(0)  # until when each stage is taken
    back = [attention for _ in parts]  # when each micro-batch has come back
    for stages, computes in _rounds(parts, kind):
        for visit in zip(*computes, strict=True):
            for place, ((attend, send, send_back), compute) in enumerate(zip(stages, visit, strict=True)):
                attention = max(attention, back[place]) + attend
                dispatch = max(dispatch, attention) + send
                experts = max(experts, dispatch) + compute
                combine = back[place] = max(combine, experts) + send_back
    for part, returned in zip(parts, back, strict=True):
        attention = max(attention, returned) + kind(part.closing)
    return attention


def _of_two(parts: Sequence[PartTimes[int]], kind: Callable[[int], F]) -> F:
    """The same for two, without inner loops and calls, which would take most of the time of an engine's step."""
    attention = dispatch = experts = back_1 = back_2 = kind(0)
    for ((attend_1, send_1, return_1), (attend_2, send_2, return_2)), computes in _rounds(parts, kind):
        for compute_1, compute_2 in zip(*computes, strict=True):
            attention = (attention if attention > back_1 else back_1) + attend_1
            dispatch = (dispatch if dispatch > attention else attention) + send_1
            experts = (experts if experts > dispatch else dispatch) + compute_1
            back_1 = (experts if experts > back_2 else back_2) + return_1
            attention = (attention if attention > back_2 else back_2) + attend_2
            dispatch = (dispatch if dispatch > attention else attention) + send_2
            experts = (experts if experts > dispatch else dispatch) + compute_2
            back_2 = (experts if experts > back_1 else back_1) + return_2
    return max(max(attention, back_1) + kind(parts[0].closing), back_2) + kind(parts[1].closing)


def _of_three(parts: Sequence[PartTimes[int]], kind: Callable[[int], F]) -> F:
    """The same for three."""
    attention = dispatch = experts = back_1 = back_2 = back_3 = kind(0)
    for stages, computes in _rounds(parts, kind):
        (attend_1, send_1, return_1), (attend_2, send_2, return_2), (attend_3, send_3, return_3) = stages
        for compute_1, compute_2, compute_3 in zip(*computes, strict=True):
            attention = (attention if attention > back_1 else back_1) + attend_1
            dispatch = (dispatch if dispatch > attention else attention) + send_1
            experts = (experts if experts > dispatch else dispatch) + compute_1
            back_1 = (experts if experts > back_3 else back_3) + return_1
            attention = (attention if attention > back_2 else back_2) + attend_2
            dispatch = (dispatch if dispatch > attention else attention) + send_2
            experts = (experts if experts > dispatch else dispatch) + compute_2
            back_2 = (experts if experts > back_1 else back_1) + return_2
            attention = (attention if attention > back_3 else back_3) + attend_3
            dispatch = (dispatch if dispatch > attention else attention) + send_3
            experts = (experts if experts > dispatch else dispatch) + compute_3
            back_3 = (experts if experts > back_2 else back_2) + return_3
    closing = [kind(part.closing) for part in parts]
    return max(max(max(attention, back_1) + closing[0], back_2) + closing[1], back_3) + closing[2]


def _rounds(
    parts: Sequence[PartTimes[int]], kind: Callable[[int], F]
) -> Iterator[tuple[list[tuple[F, F, F]], list[Iterator[F]]]]:
    """Of each round: attention, dispatch and combine of each part, and their experts by visit."""
    at = 0
    for number, visits in enumerate(parts[0].visits):
        stages = [(kind(p.attention[number]), kind(p.dispatch[number]), kind(p.combine[number])) for p in parts]
        yield stages, [map(kind, part.experts[at : at + visits]) for part in parts]
        at += visits


def _schedule_columns(parts: Sequence[PartTimes[IntArray]]) -> IntArray:
    """The same for columns, (n,) each; in closed form where one of the groups works without a break."""
    attention, dispatch, combine = (
        _bounds([times for part in parts for times in part[stage]]) for stage in (_ATTENTION, _DISPATCH, _COMBINE)
    )
    experts = _bounds([part.experts for part in parts])
    stations = _Stations(parts)
    if _never_waits(attention, (dispatch, experts, combine), len(parts)):
        stations.end_attention()
        return stations.closed()
    numbers = [number for number, visits in enumerate(parts[0].visits) for _ in range(visits)]
    busy = _never_waits(experts, (combine, attention, dispatch), len(parts))
    for visit, number in enumerate(numbers, 1):
        stations.visit(number, visit - 1)
        if busy and visit < len(numbers) and stations.rested:
            stations.end_experts(visit)
            break
    return stations.closed()


class _Stations:
    """Until when each stage is taken, in columns (n,) of steps, and when micro-batches have come back from a visit."""

    def __init__(self, parts: Sequence[PartTimes[IntArray]]) -> None:
        self._parts = parts
        self._attention, self._dispatch, self._experts, combine = (np.zeros_like(parts[0].closing) for _ in range(4))
        self._back = [combine for _ in parts]

    def visit(self, number: int, visit: int) -> None:
        """One more, of that round."""
        attention, dispatch, experts, combine = self._attention, self._dispatch, self._experts, self._back[-1]
        for place, part in enumerate(self._parts):
            np.maximum(attention, self._back[place], out=attention)
            attention += part.attention[number]
            np.maximum(dispatch, attention, out=dispatch)
            dispatch += part.dispatch[number]
            np.maximum(experts, dispatch, out=experts)
            experts += part.experts[visit]
            self._back[place] = combine = np.maximum(combine, experts) + part.combine[number]

    @property
    def rested(self) -> bool:
        """Whether the first micro-batch to come back finds dispatch, and so attention, without work."""
        return bool((self._dispatch <= self._back[0]).all())

    def end_attention(self) -> None:
        """All visits from the first one on, if attention never waits, and nobody for the other stages."""
        self._attention = sum([part.attention_fs - part.closing for part in self._parts], self._attention)
        left = self._attention
        for place in range(len(self._parts) - 1, -1, -1):
            part = self._parts[place]
            self._back[place] = left + part.dispatch[-1] + part.experts[-1] + part.combine[-1]
            left = left - part.attention[-1]

    def end_experts(self, visit: int) -> None:
        """All visits from that one on, if experts never wait, and nobody for the other stages."""
        left = sum([part.experts[visit:].sum(axis=0) for part in self._parts], self._experts)
        for place in range(len(self._parts) - 1, -1, -1):
            part = self._parts[place]
            self._back[place] = left + part.combine[-1]
            left = left - part.experts[-1]

    def closed(self) -> IntArray:
        """When attention's devices have done what they do last."""
        time = self._attention
        for part, returned in zip(self._parts, self._back, strict=True):
            time = np.maximum(time, returned) + part.closing
        return np.asarray(time)


class _Bounds(NamedTuple):
    """The least and the most time of a stage."""

    least: int
    most: int


def _bounds(times: Sequence[int | IntArray]) -> _Bounds:
    """Of numbers and columns."""
    return _Bounds(min(int(np.min(each)) for each in times), max(int(np.max(each)) for each in times))


def _never_waits(stage: _Bounds, others: Sequence[_Bounds], parts: int) -> bool:
    """Whether a stage always has the next micro-batch before it has ended one, given that it once has.

    Args:
        stage: how long it takes for each.
        others: those that a micro-batch passes before it comes again, in order.
        parts: micro-batches.

    It ends them `stage.least` apart or more. If that is enough for the next stage, they leave this one as far apart,
    within what its times differ, and so on: none waits for another one there. Then each is back in time if all that the
    others take is no more than what the stage is busy for with the other micro-batches.
    """
    passed = differ = 0
    for other in others:
        passed += other.most
        if stage.least < other.most + differ:
            return False
        differ += other.most - other.least
    return (parts - 1) * stage.least >= passed
