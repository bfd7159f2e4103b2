"""Measured fleets, run as they were measured: stages of a rate, one after the other, each until its last request ends.

As inference-perf does (kubernetes-sigs/inference-perf, `loadgen/load_generator.py` and `reportgen/base.py`): a stage's
throughput is the tokens of its requests over the time from its first request until the last of them ends, the next
stage begins when nothing is left of it, and a prompt's place in the order begins anew. Here a pause follows each stage
that is longer than what is left of it ever takes; a replica that idles does nothing, and forgets nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Any

import numpy as np
from pydantic import Field, ValidationError, field_validator

from pimserve.arrays import FloatArray, IntArray
from pimserve.cluster.run.run import serve
from pimserve.cluster.run.summary_schema import ServedSummary
from pimserve.cluster.scenario.document import Scenario
from pimserve.cluster.scenario.prepared import prepare
from pimserve.errors import InputError, validation_error
from pimserve.loadgen.spec import PS_PER_S, Spec
from pimserve.scheduler.requests import FINISHED, RequestTable

Stage = tuple[Annotated[float, Field(gt=0, le=1e6)], Annotated[float, Field(gt=0, le=1e6)]]
_OWN_RATE = {"rate_per_s", "rate_series", "ramp", "diurnal", "normalize_duration"}  # of arrivals without stages
PAUSE_S = 2000.0  # between stages; what is left of one must have ended by then


class Fleet(Spec):
    """A fleet that was measured.

    Stages are [requests per second, seconds]; the first ones warm caches and have no figures.
    """

    title: str
    sources: tuple[str, ...]
    assumed: tuple[str, ...] = ()
    scenario: dict[str, Any] = Field(description="without stages of arrivals")
    warmup: tuple[Stage, ...] = ()
    ladder: tuple[Stage, ...] = ()

    @field_validator("scenario")
    @classmethod
    def _has_place_for_stages(cls, scenario: dict[str, Any]) -> dict[str, Any]:
        workload = scenario.get("workload", {})
        if not isinstance(workload, dict) or not isinstance(workload.get("arrival", {}), dict):
            raise ValueError("workload, and its arrival, must be mappings of keys to values")  # noqa: TRY004 pydantic wants ValueError
        return scenario

    def document(self, changes: Mapping[str, Any], ladder: Sequence[tuple[float, float]]) -> dict[str, Any]:
        """The scenario with these changes, of dotted keys, and stages."""
        document: dict[str, Any] = _copied(self.scenario)
        for key, value in changes.items():
            *path, last = key.split(".")
            section = document
            for name in path:
                section = section.setdefault(name, {})
            section[last] = value
        if ladder:
            _set_stages(document, ladder)
        return document


def _copied(document: dict[str, Any]) -> dict[str, Any]:
    return {key: _copied(value) if isinstance(value, dict) else value for key, value in document.items()}


def without_own_rate(scenario: Mapping[str, Any]) -> dict[str, Any]:
    """That of a fleet without stages, for which there shall be some: its kind of gaps stays."""
    ends = {"num_requests", "duration_s"}
    workload = {key: value for key, value in scenario.get("workload", {}).items() if key not in ends}
    arrival = {key: value for key, value in workload.get("arrival", {}).items() if key not in _OWN_RATE}
    return {**scenario, "workload": {**workload, "arrival": arrival}}


def _set_stages(document: dict[str, Any], ladder: Sequence[tuple[float, float]]) -> None:
    """Where there is a place for them; who reads the scenario says what is wrong with it."""
    workload = document.setdefault("workload", {})
    if not isinstance(workload, dict):
        return
    arrival = workload.get("arrival")
    if arrival is None or isinstance(arrival, dict):
        workload["arrival"] = {**(arrival or {}), "stages": _stages(ladder)}


def _stages(ladder: Sequence[tuple[float, float]]) -> list[dict[str, float]]:
    pauses = {"rate_per_s": 0.0, "duration_s": PAUSE_S}
    return [stage for rate, lasts in ladder for stage in ({"rate_per_s": rate, "duration_s": lasts}, pauses)]


@dataclass(frozen=True)
class StageOutcome:
    """What became of the requests of one stage. `ttft_s`, `e2e_s`: (n,), of those that finished."""

    rate_per_s: float
    requests: int
    lasted_s: float
    output_tokens: int
    ttft_s: FloatArray
    e2e_s: FloatArray

    @property
    def output_tokens_per_s(self) -> float:
        """Until the last request ended."""
        return self.output_tokens / self.lasted_s

    @property
    def requests_per_s(self) -> float:
        """Of those that finished, until the last one did."""
        return len(self.e2e_s) / self.lasted_s


@dataclass(frozen=True)
class FleetRun:
    """A run of a fleet: its stages after those that warm caches, and its summary."""

    stages: tuple[StageOutcome, ...]
    summary: ServedSummary

    @cached_property
    def by_rate(self) -> dict[float, StageOutcome]:
        """Stages by their rates."""
        return {stage.rate_per_s: stage for stage in self.stages}


@dataclass
class FleetRuns:
    """Runs fleets, each once for the same changes and stages."""

    fleets: Mapping[str, Fleet]
    done: dict[str, FleetRun] = field(default_factory=dict)

    def run(
        self, name: str, changes: Mapping[str, Any], ladder: Sequence[tuple[float, float]] | None = None
    ) -> FleetRun:
        """Run a fleet.

        Args:
            name: of the fleet.
            changes: dotted keys of its scenario and what they are instead.
            ladder: stages to run in place of its own; none: the scenario as it is, without those that warm caches.

        Raises:
            InputError: there is no such fleet, its scenario is wrong, or a stage does not end in time.
        """
        if name not in self.fleets:
            raise unknown_fleet(name, self.fleets)
        fleet = self.fleets[name]
        stages = list(fleet.ladder if ladder is None else ladder)
        key = repr((name, sorted(changes.items()), stages))
        if key not in self.done:
            self.done[key] = run_fleet(f"fleet {name!r}", fleet, changes, stages)
        return self.done[key]


def unknown_fleet(name: str, fleets: Mapping[str, Fleet]) -> InputError:
    """The error that there is none of this name."""
    return InputError(f"fleet {name!r}", f"is unknown (known: {', '.join(fleets)})")


def run_fleet(where: str, fleet: Fleet, changes: Mapping[str, Any], ladder: Sequence[tuple[float, float]]) -> FleetRun:
    """Run a fleet with these stages behind those that warm it.

    Raises:
        InputError: its scenario is wrong, or a stage does not end in time; named by `where`.
    """
    every = [*fleet.warmup, *ladder] if ladder else []
    document = fleet.document(changes, every)
    try:
        scenario = Scenario.model_validate(document)
    except ValidationError as error:
        raise validation_error(where, error, Scenario) from None
    prepared = prepare(scenario)
    summary, served = serve(prepared)
    arrival_s = served.table["arrival_ps"] / PS_PER_S
    stages = served.workload.stages
    places = np.zeros(len(arrival_s)) if stages is None else stages.at(arrival_s)
    outcomes = []
    for number, (rate, _) in enumerate(every or [(0.0, 0.0)]):
        mine = np.flatnonzero(places == 2 * number)  # every other one is a pause
        if not len(mine):
            raise InputError(where, f"no request arrives in {_named(rate)}; lengthen it")
        if not (served.table["status"][mine] == FINISHED).any():
            raise InputError(where, f"no request of {_named(rate)} finished")
        outcomes.append(_outcome(served.table, mine, rate, prepared.frontend_ps / PS_PER_S))
        if stages is not None and outcomes[-1].lasted_s > arrival_s[mine[-1]] - arrival_s[mine[0]] + PAUSE_S:
            raise InputError(where, f"{_named(rate)} did not end within {PAUSE_S:g} s")
    return FleetRun(tuple(outcomes[len(every) - len(ladder) :]), summary)


def _named(rate: float) -> str:
    return f"the stage of {rate:g} requests per second" if rate else "its scenario"


def _outcome(table: RequestTable, mine: IntArray, rate: float, frontend_s: float) -> StageOutcome:
    """Of a stage with these requests."""
    arrival, first, finish = (table[f"{name}_ps"][mine] / PS_PER_S for name in ("arrival", "first_token", "finish"))
    ended = table["status"][mine] == FINISHED
    return StageOutcome(
        rate_per_s=rate,
        requests=len(mine),
        lasted_s=float(finish[ended].max(initial=0.0) - arrival[0] + frontend_s),
        output_tokens=int(table["emitted_tokens"][mine].sum()),
        ttft_s=(first - arrival)[ended] + frontend_s,
        e2e_s=(finish - arrival)[ended] + frontend_s,
    )
