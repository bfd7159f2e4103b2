"""What a metric family is, and the labels that families share."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

Kind = Literal["counter", "gauge", "histogram", "info"]
RUN = ("run_id",)
ENGINE = ("run_id", "engine", "role")
DECISION = (*ENGINE, "reason")
PREEMPTION = (*ENGINE, "cause")
TIER = (*ENGINE, "tier")
DEVICE = ("run_id", "engine", "role", "device_model")
GROUP = (*DEVICE, "group")
STAGE = ("run_id", "stage")
CLASS = ("run_id", "slo_class")
CLASS_INFO = (*CLASS, "tenant", "priority")


@dataclass(frozen=True, slots=True)
class Family:
    """A metric family.

    Args:
        name: as exposed; counters end in _total.
        kind: of metric.
        help: one sentence.
        labels: names, in order.
        bounds: upper bounds of a histogram's buckets, without +Inf.
        slo: the SLO limits that are merged into the bounds.
    """

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...]
    bounds: tuple[float, ...] = ()
    slo: Literal["", "ttft_s", "tpot_s", "e2e_s"] = ""


def bounds(family: Family, limits: Mapping[str, Collection[float]]) -> tuple[float, ...]:
    """Upper bounds of a histogram's buckets, SLO limits among them.

    Args:
        family: of kind histogram.
        limits: SLO limits of any request, s, by name.
    """
    merged = {*family.bounds, *limits.get(family.slo, ())}
    return tuple(sorted(float(bound) for bound in merged))
