"""A step whose batch is cut into parts that alternate between attention and experts, event by event."""

from heapq import heappop, heappush
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

# Stations of a layer, in the order in which a part passes them. Each serves one part at a time.
ATTENTION, DISPATCH, EXPERTS, COMBINE = range(4)


class Visit(NamedTuple):
    """A part in a layer. A station serves those that wait in this order."""

    layer: int
    part: int


class Ended(NamedTuple):
    """A station has ended a visit."""

    time: int
    station: int
    visit: Visit


def naive_schedule(
    attention: NDArray[np.integer],
    dispatch: NDArray[np.integer],
    experts: NDArray[np.integer],
    combine: NDArray[np.integer],
    last: NDArray[np.integer] | None = None,
) -> int:
    """When the last part has ended, all of them having been there at time 0.

    Args:
        attention: (layers, parts), time of each part at this station in each layer; so are `dispatch`, `experts` and
            `combine`. The two link directions do not disturb each other.
        last: (parts,), what the attention station does for each part after its last combine; None for nothing.
    """
    times = [array.tolist() for array in (attention, dispatch, experts, combine)]
    layers, parts = attention.shape
    if last is not None:
        times[ATTENTION].append(last.tolist())
    waiting: list[list[Visit]] = [[] for _ in times]
    idle = [True for _ in times]
    events: list[Ended] = []
    now = 0
    for part in range(parts):
        heappush(waiting[ATTENTION], Visit(0, part))
    while True:
        for station, queue in enumerate(waiting):
            if idle[station] and queue:
                visit = heappop(queue)
                idle[station] = False
                heappush(events, Ended(now + times[station][visit.layer][visit.part], station, visit))
        if not events:
            return now
        now, station, (layer, part) = heappop(events)
        idle[station] = True
        if station != COMBINE:
            if layer < layers:  # what comes after the last combine leads nowhere
                heappush(waiting[station + 1], Visit(layer, part))
        elif layer + 1 < len(times[ATTENTION]):
            heappush(waiting[ATTENTION], Visit(layer + 1, part))
