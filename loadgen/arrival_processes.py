"""Which arrival processes there are: a law of gaps each, and what it takes of `ArrivalSpec`.

Packages add theirs through the entry point group `pimserve.arrivals`, each of which names an `ArrivalProcess`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING

import numpy as np

from pimserve.arrays import FloatArray
from pimserve.errors import InputError
from pimserve.loadgen.gap_laws import UnitGaps, equal, exponential, gamma, weibull, weibull_shape
from pimserve.plugin_calls import named

if TYPE_CHECKING:
    from pimserve.loadgen.arrivals import ArrivalSpec

RATES = ("rate_per_s", "rate_series", "stages", "ramp")
"""Ways to say a rate, each of which goes with any law of gaps."""
KEYS = (*RATES, "burstiness", "shape", "cv", "mmpp")
"""All that processes may take."""
_GROUP = "pimserve.arrivals"
_WHERE = "workload.arrival.process"


@dataclass(frozen=True)
class ArrivalProcess:
    """A process: of each tuple of `keys` it takes exactly one; `gaps` makes its law of gaps, of mean 1.

    Draws must be consumed in order: the first of many gaps are those of few.
    """

    keys: tuple[tuple[str, ...], ...]
    gaps: Callable[[ArrivalSpec], UnitGaps]


BUILT_IN_PROCESSES = {
    "constant": ArrivalProcess((RATES,), lambda _: equal()),
    "poisson": ArrivalProcess((RATES,), lambda _: exponential()),
    "gamma": ArrivalProcess(
        (RATES, ("burstiness", "cv")), lambda spec: gamma(spec.burstiness or (spec.cv or 1.0) ** -2)
    ),
    "weibull": ArrivalProcess(
        (RATES, ("shape", "cv")), lambda spec: weibull(spec.shape or weibull_shape(spec.cv or 1.0))
    ),
    "mmpp": ArrivalProcess((("mmpp",),), lambda _: exponential()),
    "nhpp": ArrivalProcess((RATES,), lambda _: exponential()),
}


def process_names() -> list[str]:
    """Of all processes, those of packages last."""
    return [*BUILT_IN_PROCESSES, *sorted(entry_points(group=_GROUP).names - BUILT_IN_PROCESSES.keys())]


def arrival_process(name: str) -> ArrivalProcess:
    """The process of that name, which is one of `process_names`.

    Raises:
        InputError: it does not load.
    """
    if name in BUILT_IN_PROCESSES:
        return BUILT_IN_PROCESSES[name]
    return _loaded(entry_points(group=_GROUP)[name])


@cache
def _loaded(entry: EntryPoint) -> ArrivalProcess:
    place = f"process {entry.name!r} of {entry.value}"
    with named(_WHERE, place, "does not load"):
        process = entry.load()
    if not isinstance(process, ArrivalProcess):
        raise InputError(_WHERE, f"{place} is no ArrivalProcess")
    if unknown := sorted({key for group in process.keys for key in group} - set(KEYS)):
        raise InputError(_WHERE, f"{place} takes {', '.join(unknown)}; there are {', '.join(KEYS)}")
    return ArrivalProcess(process.keys, lambda spec: _checked(place, process, spec))


def _checked(place: str, process: ArrivalProcess, spec: ArrivalSpec) -> UnitGaps:
    """The gaps of a package's process, which must be some."""

    def gaps(rng: np.random.Generator, n: int) -> FloatArray:
        with named(_WHERE, place, "failed to draw gaps"):
            drawn = np.array(process.gaps(spec)(rng, n), dtype=np.float64)
        if drawn.shape != (n,) or not np.all((drawn >= 0) & np.isfinite(drawn)):
            raise InputError(_WHERE, f"{place} must draw {n} finite gaps, none below 0")
        return drawn

    return gaps
