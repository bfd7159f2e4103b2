"""Where a router sent requests, and why."""

from __future__ import annotations

from collections import Counter

from pimserve.scheduler.part_sections import RoutedTo, RouterFigures
from pimserve.scheduler.simulation import Served


def router_figures(served: Served) -> RouterFigures | None:
    """Decisions of the router; None where there was nothing to choose."""
    first = served.pools[0]
    if first.replicas == 1 or not served.decisions:
        return None
    reasons: Counter[str] = Counter()
    of_replica: dict[int, dict[str, int]] = {number: {} for number in first.numbers}
    for (replica, reason), count in sorted(served.decisions.items()):
        reasons[reason] += count
        of_replica[replica][reason] = count
    replicas = [
        RoutedTo(replica=number, requests=sum(found.values()), by_reason=found) for number, found in of_replica.items()
    ]
    return RouterFigures(name=served.router, requests=reasons.total(), by_reason=dict(reasons), replicas=replicas)
