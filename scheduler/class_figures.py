"""Figures of each class of requests, from the request table and what is measured of it."""

from __future__ import annotations

from collections.abc import Sequence

from pimserve.loadgen.objectives import Objectives
from pimserve.loadgen.request_classes import ClassSpec
from pimserve.loadgen.slo import SloSpec
from pimserve.scheduler.distributions import of_requests
from pimserve.scheduler.latencies import LATENCIES
from pimserve.scheduler.measured import Measured, by_replica, rate
from pimserve.scheduler.outcomes import ALL, counts
from pimserve.scheduler.part_sections import (
    ClassFigures,
    ClassLatencies,
    ClassRequests,
    ClassSlo,
    ClassThroughput,
    ClassTokens,
)
from pimserve.scheduler.percentile_limits import at_percentiles
from pimserve.scheduler.requests import FINISHED, WAITING
from pimserve.scheduler.simulation import Served


def class_figures(
    served: Served, measured: Measured, objectives: Objectives, percentiles: Sequence[float]
) -> list[ClassFigures] | None:
    """One for each class, in their order, with these percentiles; times in s. None without classes."""
    classes = served.workload.classes
    if not classes:
        return None
    limits = objectives.of_classes or (objectives.of_run,) * len(classes)
    return [
        _figures(served, measured, each, limits[number - 1], number, percentiles)
        for number, each in enumerate(classes, start=1)
    ]


def _figures(
    served: Served,
    measured: Measured,
    spec: ClassSpec,
    slo: SloSpec,
    number: int,
    percentiles: Sequence[float],
) -> ClassFigures:
    """Of the class with that number and those limits."""
    table = served.table
    mine = table["class_id"] == number
    arrived, status = mine & measured.arrived, table["status"]
    counted, finished = mine & measured.requests, mine & measured.finished_inside
    latencies = served.latencies(counted)
    return ClassFigures(
        name=spec.name,
        tenant=spec.owner,
        priority=spec.priority,
        requests=ClassRequests(
            total=int(arrived.sum()),
            finished=int((mine & (status == FINISHED)).sum()),
            rejected=int((mine & measured.rejected).sum()),
            unfinished=int((arrived & (status == WAITING)).sum()),
            preempted=int((mine & (table["preemptions"] > 0)).sum()),
            measured=int(counted.sum()),
        ),
        tokens=ClassTokens(
            prompt=int(table["input_tokens"][arrived & ~measured.rejected].sum()),
            output=int(table["emitted_tokens"][mine].sum()),
        ),
        throughput=ClassThroughput(
            requests_per_s=rate(served, by_replica(served, finished)),
            output_tokens_per_s=rate(served, by_replica(served, finished, "emitted_tokens")),
        ),
        latency_s=ClassLatencies(**{name: of_requests(latencies[name], percentiles) for name in LATENCIES}),
        slo=_slo(served, measured, slo, number),
    )


def _slo(served: Served, measured: Measured, slo: SloSpec, number: int) -> ClassSlo:
    mine = served.table["class_id"] == number
    counted, limits = mine & measured.requests, slo.limits()
    judged = measured.outcomes[ALL][mine[measured.requests]] if limits and measured.outcomes else None
    outcome = None if judged is None else counts({ALL: judged})[ALL]
    known = outcome["met"] + outcome["missed"] if outcome else 0
    at = at_percentiles(slo, served.latencies(counted), None)
    return ClassSlo(
        limits=limits,
        attainment=outcome["met"] / known if outcome and known else None,
        censored=outcome["censored"] if outcome else 0,
        goodput_requests_per_s=rate(served, by_replica(served, mine & measured.good))
        if limits and counted.any()
        else None,
        **({"at_percentiles": at} if at else {}),
    )
