"""Key figures of a sweep: of each run, means and confidence intervals of each point, and who is on the Pareto front."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pimserve.cluster.figures import ABSENT
from pimserve.cluster.sweep_grid import Grid
from pimserve.scheduler.stability import SATURATED, STEADY, TOO_SHORT


@dataclass(frozen=True, slots=True)
class Figure:
    """A key figure: its place in a summary, its heading, and its unit.

    Units are "s", "J", "share", "count", "" for rates, or "state": no number, but one of `stability.STATES`.
    """

    key: str
    path: str
    heading: str
    unit: str


FIGURES = (
    Figure("devices", "devices", "devices", "count"),
    Figure("output_tokens_per_s", "throughput.output_tokens_per_s", "output tokens/s", ""),
    Figure("output_tokens_per_s_per_device", "throughput.output_tokens_per_s_per_device", "per device", ""),
    Figure("ttft_p50_s", "latency_s.ttft.p50", "TTFT p50", "s"),
    Figure("ttft_p99_s", "latency_s.ttft.p99", "TTFT p99", "s"),
    Figure("tpot_p50_s", "latency_s.tpot.p50", "TPOT p50", "s"),
    Figure("tpot_p99_s", "latency_s.tpot.p99", "TPOT p99", "s"),
    Figure("slo_attainment", "slo.attainment", "SLO met", "share"),
    Figure("goodput_requests_per_s", "slo.goodput_requests_per_s", "goodput, req/s", ""),
    Figure("joules_per_output_token", "energy.joules_per_output_token", "energy/token", "J"),
    Figure("active_joules_per_output_token", "energy.active_joules_per_output_token", "active", "J"),
    Figure("passive_joules_per_output_token", "energy.passive_joules_per_output_token", "passive", "J"),
    Figure("stability", "stability", "stability", "state"),
)
_GRAVEST_FIRST = (SATURATED, TOO_SHORT, STEADY)
GAIN, COST = "output_tokens_per_s_per_device", "tpot_p99_s"
# 97.5 % quantiles of Student's t for 1, 2, ... degrees of freedom (Abramowitz and Stegun, table 26.10).
_T = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131),
    *(2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)
_Z = 1.959964


def figures_of(summary: Mapping[str, Any]) -> dict[str, Any]:
    """The key figures of one run."""
    found: dict[str, Any] = {}
    for figure in FIGURES:
        value: Any = summary
        for key in figure.path.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        found[figure.key] = value
    return found


def is_shown(figure: Figure, part: str, values: Sequence[object]) -> bool:
    """Whether a table of points has a column of it: of what is counted only where points differ in it.

    Args:
        figure: the figure.
        part: "figures", or "difference_to_baseline".
        values: of the points, means or states; None where there is none.
    """
    known = [value for value in values if value is not None]
    if figure.unit == "count":
        return part == "figures" and len(set(known)) > 1
    return bool(known)


def together(figure: Figure, values: Sequence[Any]) -> dict[str, Any]:
    """A figure of several runs: an estimate; of states the gravest, and how many runs have each."""
    if figure.unit != "state":
        return estimate(values)
    runs = {state: number for state in _GRAVEST_FIRST if (number := values.count(state))}
    return {"state": next(iter(runs), None), "runs": runs}


def state_text(found: Mapping[str, Any], runs: int) -> str:
    """The gravest state of a point, and how many of its runs have it where not all do."""
    state = found.get("state")
    if state is None:
        return ABSENT
    number = found["runs"][state]
    return str(state) if number == runs else f"{number} of {runs} {state}"


def t_quantile(degrees: int) -> float:
    """97.5 % quantile of Student's t; above 30 degrees of freedom its series in 1/degrees (A. and S. 26.7.5)."""
    if degrees <= len(_T):
        return _T[degrees - 1]
    return _Z + (_Z**3 + _Z) / (4 * degrees) + (5 * _Z**5 + 16 * _Z**3 + 3 * _Z) / (96 * degrees**2)


def estimate(values: Sequence[float | None]) -> dict[str, float | None]:
    """Mean of runs and half the width of its 95 % confidence interval; None where a run has no value, or is alone."""
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return {"mean": None, "ci95": None}
    n = len(known)
    mean = math.fsum(known) / n
    if n == 1:
        return {"mean": mean, "ci95": None}
    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in known) / (n - 1))
    return {"mean": mean, "ci95": t_quantile(n - 1) * spread / math.sqrt(n)}


def sweep_document(
    grid: Grid,
    found: Mapping[tuple[int, int], Mapping[str, Any]],
    errors: Mapping[tuple[int, int], str],
    places: Mapping[tuple[int, int], str],
) -> dict[str, Any]:
    """The sweep as one JSON object; keys of the mappings are (point, run of the point).

    A point has figures when all its runs are done. With several runs, differences to the `baseline`, the first such
    point, are paired by seed: both had the same arrivals, lengths and expert choices, so that what is left is the
    effect of the setting.
    """
    points: list[dict[str, Any]] = []
    baseline: int | None = None
    for p, point in enumerate(grid.points):
        keys = [(p, r) for r in range(len(point.runs))]
        entry: dict[str, Any] = {"name": point.name, "settings": dict(point.settings), "status": "done", "runs": []}
        for key, run in zip(keys, point.runs, strict=True):
            status = "done" if key in found else "failed" if key in errors else "missing"
            if status != "done" and entry["status"] != "failed":
                entry["status"] = status
            entry["runs"].append(
                {"seed": run.seed, "status": status, "folder": places[key], "scenario_digest": run.digest}
                | ({"figures": dict(found[key])} if key in found else {})
                | ({"error": errors[key]} if key in errors else {})
            )
        if entry["status"] == "done":
            entry["figures"] = {f.key: together(f, [found[key][f.key] for key in keys]) for f in FIGURES}
            if baseline is None:
                baseline = p
            elif len(keys) > 1:
                pairs = [(key, (baseline, r)) for r, key in enumerate(keys)]
                entry["difference_to_baseline"] = {
                    f.key: estimate([_minus(found[a][f.key], found[b][f.key]) for a, b in pairs])
                    for f in FIGURES
                    if f.unit != "state"
                }
        points.append(entry)
    _mark_front(points)
    return {
        "name": grid.name,
        "grid": {axis.path: list(axis.values) for axis in grid.axes},
        "seeds": [run.seed for run in grid.points[0].runs],
        "baseline": None if baseline is None else grid.points[baseline].name,
        "pareto": {"more": GAIN, "less": COST, "front": [point["name"] for point in points if point.get("pareto")]},
        "points": points,
    }


def _minus(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


def _mark_front(points: Sequence[dict[str, Any]]) -> None:
    """Say of each point with both figures whether it is on the front, or a point on it that beats it."""

    def place(point: Mapping[str, Any]) -> tuple[float, float] | None:
        figures = point.get("figures")
        gain, cost = (figures[key]["mean"] for key in (GAIN, COST)) if figures else (None, None)
        return None if gain is None or cost is None else (gain, cost)

    placed = [(*at, point) for point in points if (at := place(point)) is not None]
    best: tuple[float, float, str] | None = None  # most gain so far, of costs in ascending order
    for gain, cost, point in sorted(placed, key=lambda each: (each[1], -each[0])):
        point["pareto"] = best is None or gain > best[0] or (gain, cost) == best[:2]
        if best is None or gain > best[0]:
            best = (gain, cost, point["name"])
        elif not point["pareto"]:
            point["dominated_by"] = best[2]
