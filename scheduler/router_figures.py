"""Where a router sent requests, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from pimserve.scheduler.part_sections import RoutedTo, RouterFigures
from pimserve.scheduler.simulation import Served


def router_figures(served: Served) -> RouterFigures | None:
    """Decisions of the router; None where there was nothing to choose."""
    replicas = routed_to(served.decisions, served.pools[0].numbers)
    if not replicas:
        return None
    reasons = reasons_of(replicas)
    return RouterFigures(name=served.router, requests=reasons.total(), by_reason=dict(reasons), replicas=replicas)


def routed_to(decisions: Mapping[tuple[int, str], int], entry: Sequence[int]) -> list[RoutedTo]:
    """What went to each of the replicas that requests come to; nothing where there was nothing to choose.

    Args:
        decisions: of the router, by replica and reason, how many requests it sent there.
        entry: numbers of these replicas.
    """
    if len(entry) == 1 or not decisions:
        return []
    of_replica: dict[int, dict[str, int]] = {number: {} for number in entry}
    for (replica, reason), count in sorted(decisions.items()):
        of_replica[replica][reason] = count
    return [
        RoutedTo(replica=number, requests=sum(found.values()), by_reason=found) for number, found in of_replica.items()
    ]


def reasons_of(replicas: Sequence[RoutedTo]) -> Counter[str]:
    """Requests sent to all of them, by reason."""
    return sum((Counter(each.by_reason) for each in replicas), Counter[str]())
