"""When the micro-batches of a step are where, of which attention and experts have devices of their own.

The two groups and the two directions of the link each take one micro-batch at a time, in their order, and a micro-batch
waits for its own previous layer. Experts are drawn, so that layers differ in time: a step's time is that of the event
schedule, in max and plus, which is that of the longest path through it. Where one stage sets the pace, that path stays
with it, and all visits but the first and the last few are told by what this stage takes in them (`_Pace`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np

from pimserve.arrays import IntArray
from pimserve.device_models.step import N

_DISPATCH, _EXPERTS, _COMBINE = 1, 2, 3  # places of stages, of which attention is the first
_WHOLE_FS = 2.0**53  # below, floating point has all whole numbers
_NEVER = 2**62

F = TypeVar("F", int, float)


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
    if (hidden := _hidden(parts)) is not None:
        return hidden
    schedule = {2: _of_two, 3: _of_three}.get(len(parts), _of_many)
    # Times only grow on their way, so that the last one tells whether all of them were whole numbers.
    time = schedule(parts, float)
    return int(time) if time < _WHOLE_FS else schedule(parts, int)


def slack_fs(parts: Sequence[PartTimes[N]]) -> int:
    """By how much attention of each visit may take longer, with all else hidden behind the experts.

    These work without a break from the first micro-batch on, if none takes less than all other stages together: each is
    back before the one ahead has left. It also finds attention done at the end, if this has that much less to do at all
    its visits. Then the step takes as much longer as attention of the first visit of its first micro-batch does.

    Returns:
        Time of a visit, fs; negative: they wait.
    """
    (visits, *others), m = parts[0].visits, len(parts)
    if others or m == 1:
        return -1
    least = _least([part.experts for part in parts])
    attention = _most([part.attention[0] for part in parts])
    link = _most([part.dispatch[0] for part in parts]) + _most([part.combine[0] for part in parts])
    return min(least - link, ((visits - 1) * m + 1) * least // (visits * m)) - attention


def lack_fs(parts: Sequence[PartTimes[N]]) -> int:
    """By how much attention of each visit must take longer for all else to be hidden behind it.

    It works without a break, if it never takes less than the other stages together. Then a step takes that, and what
    its last micro-batch does after it.

    Returns:
        Time of a visit, fs; 0 or less: all else is hidden.
    """
    if len(parts) == 1:
        return 0
    link = _most([time for part in parts for time in part.dispatch])
    link += _most([time for part in parts for time in part.combine])
    return link + _most([part.experts for part in parts]) - _least([time for part in parts for time in part.attention])


def _hidden(parts: Sequence[PartTimes[int]]) -> int | None:
    """The same in closed form, where all else is hidden behind the experts, attention, or the way back; None: not."""
    first = parts[0]
    attend, compute, send_back = first.attention[0], first.experts[0], first.combine[0]
    if compute > attend and compute > send_back:  # only what takes longest can hide all else
        return _behind_experts(parts) if slack_fs(parts) >= 0 else None
    if send_back > attend:
        return _behind_combine(parts)
    if lack_fs(parts) > 0:
        return None
    last = parts[-1]
    after = last.dispatch[-1] + int(last.experts[-1]) + last.combine[-1]
    closing = sum([part.closing for part in parts[:-1]])  # of the others, meanwhile
    return sum([part.attention_fs for part in parts]) + max(0, after - closing)


def _behind_experts(parts: Sequence[PartTimes[int]]) -> int:
    time = 0  # until when attention's devices are taken
    begin = parts[0].attention[0] + parts[0].dispatch[0]  # of the last visit
    begin += sum([sum(part.experts) - part.experts[-1] for part in parts])
    for part in parts:
        begin += part.experts[-1]
        time = max(time, begin + part.combine[0]) + part.closing
    return time


def _behind_combine(parts: Sequence[PartTimes[int]]) -> int | None:
    """Where the way back sets the pace (`_Pace`), from the first micro-batch on.

    On their first way there, each comes at most as much later than the one ahead as any stage takes, and as much as its
    own times differ from those of the first one, once. Attention, which takes less, has been at work since the
    beginning, or begins when a micro-batch is back.
    """
    (visits, *others), m = parts[0].visits, len(parts)
    if others or visits == 1:
        return None
    times = [part.combine[0] for part in parts]
    attention, dispatch = max([part.attention[0] for part in parts]), max([part.dispatch[0] for part in parts])
    experts = max([max(part.experts) for part in parts])
    least, together = min(times), attention + dispatch + experts
    begin = parts[0].attention[0] + parts[0].dispatch[0] + parts[0].experts[0]
    if together > (m - 1) * least or together - begin > least - max(attention, dispatch, experts):
        return None
    begin += (visits - 1) * sum(times)  # of the last visit
    time = visits * sum([part.attention[0] for part in parts])  # attention may still have those who came first
    for part, send_back in zip(parts, times, strict=True):
        begin += send_back
        time = max(time, begin) + part.closing
    return time


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
    """The same for columns, (n,) each; visits in which one stage sets the pace are told by what it takes."""
    stages = _Stages(parts)
    *rounds, last = parts[0].visits
    for number, visits in enumerate(rounds):
        stages.run(number, visits)
    pace = _pace(parts)
    if pace is not None:
        first = min(1, pace.place)  # the others come to attention first
        stages.run(-1, first)
        left = last - first - pace.tail
        if left > 0:
            held = min(left, pace.visits(stages.held_fs(pace)))
            stages.run(-1, held)
            stages.skip(left - held, pace.place)
    stages.run(-1)
    return stages.closed()


class _Pace(NamedTuple):
    """A stage that sets the pace of the last round of visits, of m micro-batches each.

    It takes at least `least` for each; the others at most M, and S all together. It never waits, once nothing else
    holds it up, if M <= least and S <= (m - 1) least: a path that leaves it at micro-batch i and comes to it again at j
    has gone j - m - i micro-batches on at other stages, and passed all three, in (j - m - i) M + S at most; the stage
    itself is busy for (j - 1 - i) least or more.

    A path that leaves it for good, n micro-batches before one that leaves it for the same end, loses n (least - M), and
    wins no more than times of the stages after it differ: not with `tail` visits to go. So it is in the beginning with
    what holds the stage up: each micro-batch makes up for least - M of it.
    """

    place: int  # of the stage, attention's is 0
    least: int
    gains: int  # least - M
    parts: int
    before: tuple[int, ...]  # the most that stages take on the way to it
    after: int  # the least that those take, together, which come after it
    differ: int  # how much that can be more

    @property
    def tail(self) -> int:
        """Visits in which the end is not yet seen."""
        return max(1, self.visits(self.differ))

    def visits(self, time_fs: int) -> int:
        """After which so much time is made up for."""
        if time_fs <= 0:
            return 0
        return 1 + (-(-time_fs // self.gains) + self.parts - 2) // self.parts if self.gains else _NEVER


def _pace(parts: Sequence[PartTimes[IntArray]]) -> _Pace | None:
    """None: no stage sets it."""
    begin = -parts[0].visits[-1]
    stages = (
        [part.attention[-1] for part in parts],
        [part.dispatch[-1] for part in parts],
        [part.experts[begin:] for part in parts],
        [part.combine[-1] for part in parts],
    )
    bounds = [(_least(times), _most(times)) for times in stages]
    least = max([at_least for at_least, _ in bounds])
    place = [at_least for at_least, _ in bounds].index(least)
    before, after = [most for _, most in bounds[:place]], bounds[place + 1 :]
    others = before + [most for _, most in after]
    gains = least - max(others)
    if gains < 0 or sum(others) > (len(parts) - 1) * least:
        return None
    after_fs = sum([at_least for at_least, _ in after])
    differ = sum([most for _, most in after]) - after_fs
    return _Pace(place, least, gains, len(parts), tuple(before), after_fs, differ)


def _least(times: Sequence[Any]) -> int:
    """Of numbers, lists and columns."""
    if not isinstance(times[0], int):
        times = [min(each) if isinstance(each, list) else int(each.min()) for each in times]
    least: int = min(times)
    return least


def _most(times: Sequence[Any]) -> int:
    """Of numbers, lists and columns."""
    if not isinstance(times[0], int):
        times = [max(each) if isinstance(each, list) else int(each.max()) for each in times]
    most: int = max(times)
    return most


class _Stages:
    """Until when each stage is taken, in columns (n,) of steps, and when micro-batches have come back from a visit."""

    def __init__(self, parts: Sequence[PartTimes[IntArray]]) -> None:
        self._parts = parts
        self._attention, self._dispatch, self._experts, combine = (np.zeros_like(parts[0].closing) for _ in range(4))
        self._back = [combine for _ in parts]
        self._visits = iter(range(sum(parts[0].visits)))

    def run(self, number: int, visits: int | None = None) -> None:
        """So many visits of a round, or all that are left."""
        attention, dispatch, experts = self._attention, self._dispatch, self._experts
        for visit in islice(self._visits, visits):
            combine = self._back[-1]
            for place, part in enumerate(self._parts):
                np.maximum(attention, self._back[place], out=attention)
                attention += part.attention[number]
                np.maximum(dispatch, attention, out=dispatch)
                dispatch += part.dispatch[number]
                np.maximum(experts, dispatch, out=experts)
                experts += part.experts[visit]
                self._back[place] = combine = np.maximum(combine, experts) + part.combine[number]

    def held_fs(self, pace: _Pace) -> int:
        """For how long other stages may hold up the one that sets the pace."""
        ends = [self._attention, self._dispatch, self._experts, self._back[-1]]
        before = sum(pace.before)
        held = [end + sum(pace.before[place:]) for place, end in enumerate(ends[: pace.place])]
        held += [back + before - place * pace.least for place, back in enumerate(self._back)]
        held.append(ends[-1] - min(pace.after, pace.least))
        return max(int(np.max(end - ends[pace.place])) for end in held)

    def skip(self, visits: int, place: int) -> None:
        """So many of the last round, but for what the stage at a place takes, and attention, which stays busy."""
        if not visits:
            return
        for part, back in zip(self._parts, self._back, strict=True):
            np.maximum(self._attention, back, out=self._attention)
            self._attention += part.attention[-1]
        here = list(islice(self._visits, visits))
        for part in self._parts:
            self._attention += (visits - 1) * part.attention[-1]
            if place == _DISPATCH:
                self._dispatch += visits * part.dispatch[-1]
            elif place == _EXPERTS:
                self._experts += part.experts[here[0] : here[-1] + 1].sum(axis=0)
            elif place == _COMBINE:
                self._back[-1] = self._back[-1] + visits * part.combine[-1]

    def closed(self) -> IntArray:
        """When attention's devices have done what they do last."""
        time = self._attention
        for part, returned in zip(self._parts, self._back, strict=True):
            time = np.maximum(time, returned) + part.closing
        return np.asarray(time)
