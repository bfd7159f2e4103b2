"""When which micro-batch of a step is where, for timelines: lanes of both groups and of the link."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from pimserve.cluster.run.history import History
from pimserve.device_models.plan import FS_PER_PS
from pimserve.device_models.round_trips import PartTimes
from pimserve.device_models.step import StepShape
from pimserve.scheduler.mixed_costs import MixedCosts

LANES = ("attention", "dispatch", "experts", "combine")


class Stay(NamedTuple):
    """A micro-batch at a stage: from when to when, fs since its step began, and in which visit to the experts."""

    lane: int
    part: int
    visit: int
    begin_fs: int
    end_fs: int


def stays(parts: Sequence[PartTimes[int]], begin_fs: int = 0) -> Iterator[Stay]:
    """Of the micro-batches of a step, which begin together: each stage takes them in order, one at a time."""
    free = [begin_fs] * len(LANES)
    back = [begin_fs] * len(parts)
    for visit, times in enumerate(zip(*map(_visits, parts), strict=True)):
        for number, of_part in enumerate(times):
            for lane, time in enumerate(of_part):
                begin = max(free[lane], back[number])
                free[lane] = back[number] = begin + time
                yield Stay(lane, number, visit, begin, begin + time)
    for number, part in enumerate(parts):  # what attention's devices do last
        begin = max(free[0], back[number])
        free[0] = begin + part.closing
        yield Stay(0, number, sum(part.visits), begin, begin + part.closing)


def _visits(part: PartTimes[int]) -> Iterator[tuple[int, ...]]:
    """What a micro-batch takes in each lane, visit by visit."""
    experts = iter(part.experts)
    for visits, attention, dispatch, combine in zip(
        part.visits, part.attention, part.dispatch, part.combine, strict=True
    ):
        for _ in range(visits):
            yield attention, dispatch, next(experts), combine


def sampled_steps(history: History, replica: int, most: int) -> Iterator[tuple[int, Iterator[Stay]]]:
    """(begin, ps, stays) of single steps of a replica, evenly over its spans; none where it has one group of devices.

    Args:
        history: of the run.
        replica: its number.
        most: stays that there may be in all.
    """
    micro = history.costs[replica].plan.micro_batches
    spans = history.spans[replica]
    if micro is None or not len(spans):
        return
    each = micro.parts * (len(LANES) * len(micro.visits) + 1)
    first_steps = np.cumsum(spans["steps"]) - spans["steps"]
    for index in range(0, len(spans), -(-len(spans) // max(1, most // each))):
        first = int(first_steps[index])
        for rows, costs in history.stretches(replica, index, index + 1, first):
            assert isinstance(costs, MixedCosts)
            shape = StepShape(*(int(column[0]) for column in rows.shape))._replace(steps=1)
            once_fs, parts = costs.parts_of_step(shape, first)
            yield int(rows.begin_ps[0]), stays(parts, once_fs + int(rows.begin_rest_fs[0]) % FS_PER_PS)
