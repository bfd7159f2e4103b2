"""Which limits hold for which request: the same for all, or those of its class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from pimserve.arrays import FloatArray
from pimserve.loadgen.request_classes import ClassIds, ClassSpec
from pimserve.loadgen.slo import REQUEST_LIMITS, SloSpec


@dataclass(frozen=True)
class Objectives:
    """Limits of a run.

    Args:
        of_run: of requests without a class.
        of_classes: of each class, in their order; a request's class is its number from 1 up in these.
    """

    of_run: SloSpec = field(default_factory=SloSpec)
    of_classes: tuple[SloSpec, ...] = ()

    @classmethod
    def of(cls, slo: SloSpec, classes: Sequence[ClassSpec] | None) -> Objectives:
        """Of a scenario with those limits; a class with limits of its own has none of these."""
        return cls(slo, tuple(slo if each.slo is None else each.slo for each in classes or ()))

    @property
    def of_longest_gaps(self) -> bool:
        """Whether any request has a limit of its longest gap between two tokens."""
        return "itl_max_s" in self.names()

    def names(self) -> tuple[str, ...]:
        """Limits that hold for any request: ttft_s, tpot_s, e2e_s, itl_max_s."""
        limited = {name for slo in (self.of_run, *self.of_classes) for name in slo.limits()}
        return tuple(name for name in REQUEST_LIMITS if name in limited)

    def all_limits_s(self, name: str) -> set[float]:
        """Every limit of that name, s."""
        of_each = (getattr(slo, name) for slo in (self.of_run, *self.of_classes))
        return {limit for limit in of_each if limit is not None}

    def limits_s(self, name: str, class_ids: ClassIds) -> float | FloatArray:
        """The limit of that name of requests of these classes, (n,) or one for all, s; infinite where there is none."""
        of_each = [getattr(slo, name) for slo in (self.of_run, *self.of_classes)]
        if len(set(of_each)) == 1 and of_each[0] is not None:
            return float(of_each[0])
        return np.array([np.inf if limit is None else limit for limit in of_each])[class_ids]
