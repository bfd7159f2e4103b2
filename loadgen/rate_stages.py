"""Stages of a rate that steps: how long each lasts, and which one a moment lies in."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from pimserve.arrays import FloatArray, IntArray
from pimserve.loadgen.moving_rates import Points


@dataclass(frozen=True)
class Stage:
    """Of a rate series, from one step to the next: its times in the series, and its mean rate."""

    from_s: float
    to_s: float
    rate_per_s: float


@dataclass(frozen=True)
class Stages:
    """The stages of a rate series, which repeats.

    The run's clock starts at `first_s` of the series, with the first request; `last_s` of it is when arrivals end.
    """

    stages: tuple[Stage, ...]
    first_s: float
    last_s: float

    @property
    def end_s(self) -> float:
        """When arrivals end, on the run's clock."""
        return self.last_s - self.first_s

    def at(self, times_s: FloatArray) -> IntArray:
        """(n,): in which stage those times of the run's clock lie; -1 from when arrivals have ended."""
        ends = np.array([stage.to_s for stage in self.stages])
        found = np.searchsorted(ends[:-1], np.mod(times_s + self.first_s, ends[-1]), side="right")
        return np.where(times_s < self.end_s, found, -1)

    def times_s(self, begin_s: float, end_s: float) -> list[float]:
        """How much of a stretch of the run's clock each stage takes."""
        period = self.stages[-1].to_s

        def until(time: float, stage: Stage) -> float:
            cycles, within = divmod(max(0.0, time) + self.first_s, period)
            length = stage.to_s - stage.from_s
            return cycles * length + min(max(0.0, within - stage.from_s), length)

        return [max(0.0, until(end_s, stage) - until(begin_s, stage)) for stage in self.stages]


def stages_between_steps(points: Points, first_s: float, last_s: float) -> Stages | None:
    """The stages of a rate series, for arrivals from `first_s` to `last_s` of it; None where it does not step."""
    steps = [i for i, ((t, _), (u, _)) in enumerate(pairwise(points)) if t == u]
    if not steps:
        return None
    stages = []
    for first, last in pairwise([-1, *steps, len(points) - 1]):
        part = points[first + 1 : last + 1]
        area = sum((u - t) * (a + b) / 2 for (t, a), (u, b) in pairwise(part))
        stages.append(Stage(part[0][0], part[-1][0], area / (part[-1][0] - part[0][0])))
    return Stages(tuple(stages), first_s, last_s)
