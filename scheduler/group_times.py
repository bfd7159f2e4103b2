"""Where the time of two groups of devices goes: attention's, and those of routed experts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from pimserve.device_models.step import StageTime


class GroupTime(NamedTuple):
    """What a group does with a time; the parts add up to it, in the same unit."""

    working: float
    other_group: float  # it waits for the other one,
    link: float  # for what is on its way between both,
    work: float  # or for a step: there is none, or the host is still at it


IDLE = GroupTime._fields[1:]


def group_times(
    step: float, host: float, stages: Mapping[StageTime, float], whole: float
) -> tuple[GroupTime, GroupTime]:
    """Of attention's devices, and of the experts'.

    A step would take less over links that take no time. By so much both groups wait for the link; for the rest of the
    step that a group does not work, it waits for the other one.

    Args:
        step: time of steps.
        host: of it, before their micro-batches begin.
        stages: of it, as in `StepCosts.stages`.
        whole: all of the time.
    """
    link, idle = stages["link"], whole - step + host
    without = step - host - link
    return (
        GroupTime(without - stages["experts"], stages["experts"], link, idle),
        GroupTime(stages["work"], without - stages["work"], link, idle),
    )
