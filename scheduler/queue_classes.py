"""What queues know of the classes of requests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from pimserve.loadgen.objectives import Objectives
from pimserve.loadgen.request_classes import ClassSpec
from pimserve.loadgen.slo import SloSpec
from pimserve.loadgen.spec import PS_PER_S


class QueueClass(NamedTuple):
    """A class: its priority, lower is earlier; its tenant; its limit of TTFT, ps, or None; the tenant's weight."""

    priority: int = 0
    tenant: str = ""
    ttft_limit_ps: int | None = None
    tenant_weight: int = 1


def queue_classes(classes: Sequence[ClassSpec], slo: SloSpec) -> tuple[QueueClass, ...]:
    """That of requests without a class, and then each; `slo` has the limits of those without limits of their own."""
    objectives = Objectives.of(slo, classes)
    own = (
        QueueClass(each.priority, each.owner, _ttft_limit_ps(limits), each.tenant_weight)
        for each, limits in zip(classes, objectives.of_classes, strict=True)
    )
    return (QueueClass(ttft_limit_ps=_ttft_limit_ps(slo)), *own)


def _ttft_limit_ps(slo: SloSpec) -> int | None:
    """The tightest limit of TTFT, be it of all requests or of a percentile."""
    limits_s = [limit.limit_s for limit in slo.at_percentiles() if limit.latency == "ttft"]
    if slo.ttft_s is not None:
        limits_s.append(slo.ttft_s)
    return round(min(limits_s) * PS_PER_S) if limits_s else None
