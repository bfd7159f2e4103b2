"""Who of those that wait at the reference engine is next, by its policy."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from tests.scheduler.reference_request import FS_PER_PS, ServedRequest


@dataclass(frozen=True)
class ReferenceOrder:
    """By what each request has, as `reference_events` describes it."""

    policy: str
    predicted: Sequence[int]
    priorities: Sequence[int]
    limits_ps: Sequence[int | None]
    ageing_ps: int | None

    def key(self, request: ServedRequest, now: int, had: int | Fraction) -> tuple[Fraction | float, int, int]:
        """The lowest is next, at that time; its tenant had so much."""
        number = request.number
        if self.policy == "sjf":
            first: Fraction | float = Fraction(self.predicted[number])
        elif self.policy == "edf":
            limit = self.limits_ps[number]
            first = math.inf if limit is None else Fraction(request.arrival + limit * FS_PER_PS)
        elif self.policy == "vtc":
            first = Fraction(had)
        else:
            first = Fraction(self.priorities[number])
            if self.ageing_ps is not None:
                first -= Fraction(now - request.arrival, self.ageing_ps * FS_PER_PS)
        return first, request.arrival, number
