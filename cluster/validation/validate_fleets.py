"""Holds the simulator against fleets that were measured (`pimserve validate fleets`)."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from pimserve.cluster.scenario.document import overridden
from pimserve.cluster.validation.fleet_figures import QUANTITIES, FleetFigure
from pimserve.cluster.validation.fleet_run import (
    Fleet,
    FleetRuns,
    StageOutcome,
    run_fleet,
    unknown_fleet,
    without_own_rate,
)
from pimserve.cluster.validation.targets import Finding, Target, package_file, read_json, read_list, read_targets
from pimserve.errors import InputError, validation_error
from pimserve.loadgen.traces.trace_files import find_trace

PUBLISHED = "fleet_cases.json"

Progress = Callable[[int, int], None]
_Form = TypeVar("_Form", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Case:
    """A measured figure, and how ours is made. `cause`: why ours may be out of tolerance, where that is known."""

    target: Target
    figure: FleetFigure
    cause: str = ""

    def describe(self) -> str:
        """The inputs in one line."""
        return ", ".join(f"{key} {value}" for key, value in self.target.case.items())


def read_fleets(path: Path | None = None) -> tuple[dict[str, Fleet], list[Case]]:
    """Read fleets and cases of a file, in its order; None: those that come with the package.

    A file's cases may be of the package's fleets as well.

    Raises:
        InputError: the file cannot be read, is not JSON, or a fleet or case is malformed; names the place.
    """
    own = package_file(PUBLISHED)
    fleets = _fleets(own)
    if path is not None:
        fleets |= _fleets(path)
    targets, rows = read_targets(path or own, "case"), read_list(path or own, "case")
    return fleets, [
        Case(target, _figure(target), str(row.get("cause", ""))) for target, row in zip(targets, rows, strict=True)
    ]


def _fleets(path: Path) -> dict[str, Fleet]:
    document = read_json(path, "cannot read the cases")
    rows = document.get("fleets", {}) if isinstance(document, dict) else {}
    if not isinstance(rows, dict):
        raise InputError(f"{path}: fleets", "must be an object of fleets by name")
    return {name: _validated(Fleet, f"{path}: fleets.{name}", row) for name, row in rows.items()}


def _figure(target: Target) -> FleetFigure:
    form = QUANTITIES.get(target.quantity)
    if form is None:
        close = difflib.get_close_matches(target.quantity, QUANTITIES, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise InputError(target.where, f"unknown quantity {target.quantity!r}{hint} (known: {', '.join(QUANTITIES)})")
    return _validated(form, f"{target.where}: case", target.case)


def _validated(form: type[_Form], where: str, row: object) -> _Form:
    try:
        return form.model_validate(row)
    except ValidationError as error:
        raise validation_error(where, error, form) from None


def judge_fleet(case: Case, runs: FleetRuns) -> Finding:
    """Make the figure of a case, and hold it against the measured one.

    The finding's note is where the figure is from; where it is missed, the cause, or nothing if that is not known;
    where the fleet's trace is not there, that it is not, and there is no figure.

    Raises:
        InputError: the case asks for what its fleet does not have; names the case.
    """
    target = case.target
    ours = None if (missing := _missing_trace(runs.fleets.get(case.figure.fleet))) else _made(case, runs)
    passed = ours is not None and target.accepts(ours)
    return Finding(
        id=target.id,
        quantity=target.quantity,
        case=case.describe(),
        published=target.published,
        ours=ours,
        ratio=None if ours is None else target.ratio(ours),
        tolerance=target.tolerance,
        tolerance_kind=target.tolerance_kind,
        passed=passed,
        method="engine",
        note=missing or (target.provenance if passed else case.cause),
    )


def _missing_trace(fleet: Fleet | None) -> str:
    """Why the fleet cannot run for want of the trace that it replays; nothing where it can."""
    trace = {} if fleet is None else fleet.scenario.get("workload", {}).get("trace") or {}
    try:
        if "path" in trace:
            find_trace(str(trace["path"]))
    except InputError as error:
        return str(error)
    return ""


def _made(case: Case, runs: FleetRuns) -> float:
    try:
        return case.figure.value(runs)
    except InputError as error:
        raise InputError(case.target.where, str(error)) from None


def validate_fleets(path: Path | None = None, progress: Progress | None = None) -> list[Finding]:
    """Make all figures of a file, in its order.

    Args:
        path: a file in the form of the package's own, or None for that one.
        progress: called with (cases done, all cases).

    Raises:
        InputError: the file is malformed, or a case cannot be run; names file and case.
    """
    fleets, cases = read_fleets(path)
    runs = FleetRuns(fleets)
    findings = []
    for case in cases:
        findings.append(judge_fleet(case, runs))
        if progress is not None:
            progress(len(findings), len(cases))
    return findings


def stages_of_fleet(
    name: str, changes: Sequence[str], stages: Sequence[tuple[float, float]], path: Path | None = None
) -> tuple[StageOutcome, ...]:
    """Run a fleet with stages of one's own behind those that warm it.

    Args:
        name: of the fleet.
        changes: "path=value" each, as with `pimserve run --set`.
        stages: (requests per second, seconds) of each; none: those that were measured.
        path: a file with more fleets.

    Raises:
        InputError: there is no such fleet, or it cannot run so.
    """
    fleets = read_fleets(path)[0]
    if name not in fleets:
        raise unknown_fleet(name, fleets)
    fleet = fleets[name]
    scenario = reduce(overridden, changes, without_own_rate(fleet.scenario) if stages else fleet.scenario)
    where = f"fleet {name!r}"
    if stages or fleet.ladder:
        _check_stages(where, scenario.get("workload"))
    own = fleet.model_copy(update={"scenario": scenario})
    return run_fleet(where, own, {}, stages or fleet.ladder).stages


def _check_stages(where: str, workload: object) -> None:
    """Refuse stages of requests that do not all arrive by themselves."""
    for part, does in (("trace", "replays a trace"), ("sessions", "has sessions, most of whose turns follow others")):
        if isinstance(workload, dict) and workload.get(part) is not None:
            raise InputError(where, f"{does}: it can have no stages")
