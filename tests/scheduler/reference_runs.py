"""Whole runs of the reference engine: of one replica, and of several in order of time."""

from collections.abc import Generator, Sequence
from typing import Any

from tests.scheduler.reference_engine import reference_events
from tests.scheduler.reference_result import ReferenceResult


def run_reference(*plan: Any, **settings: Any) -> ReferenceResult:
    """What comes of `reference_events` of one replica."""
    (result,) = run_references([reference_events(*plan, **settings)])
    return result


def run_references(replicas: Sequence[Generator[int, None, ReferenceResult]]) -> list[ReferenceResult]:
    """Replicas go on in order of time, at the same time the first one first."""
    results: dict[int, ReferenceResult] = {}
    at = dict.fromkeys(range(len(replicas)), 0)
    while at:
        number = min(at, key=lambda one: (at[one], one))
        try:
            at[number] = next(replicas[number])
        except StopIteration as over:
            results[number] = over.value
            del at[number]
    return [results[number] for number in range(len(replicas))]
