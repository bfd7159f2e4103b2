"""Key figures of a sweep: of each run, means and confidence intervals of each point, and who is on the Pareto front."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pimserve.cluster.base.figures import ABSENT, known, named
from pimserve.cluster.run.compare import Likeness, likeness, not_alike
from pimserve.cluster.run.run_figures import ASKED, asked_percentiles, unit_of, value_at
from pimserve.cluster.run.summary_schema import Summary
from pimserve.cluster.sweep.grid import Grid
from pimserve.cluster.sweep.pareto import axes_at, fixed_rate, front, why_not_on_a_front
from pimserve.scheduler.batch_means import t_quantile
from pimserve.scheduler.stability import SATURATED, STEADY, TOO_SHORT


@dataclass(frozen=True, slots=True)
class Figure:
    """A key figure: its place in a summary, and its heading."""

    key: str
    path: str
    heading: str

    @property
    def unit(self) -> str:
        """As `run_figures.unit_of` has it; "state": no number, but one of `stability.STATES`."""
        return unit_of(self.path)


FIGURES = (
    Figure("devices", "devices", "devices"),
    Figure("output_tokens_per_s", "throughput.output_tokens_per_s", "output tokens/s"),
    Figure("output_tokens_per_s_per_device", "throughput.output_tokens_per_s_per_device", "per device"),
    Figure("ttft_p50_s", "latency_s.ttft.p50", "TTFT p50"),
    Figure("ttft_p99_s", "latency_s.ttft.p99", "TTFT p99"),
    Figure("tpot_p50_s", "latency_s.tpot.p50", "TPOT p50"),
    Figure("tpot_p99_s", "latency_s.tpot.p99", "TPOT p99"),
    Figure("slo_attainment", "slo.attainment", "SLO met"),
    Figure("goodput_requests_per_s", "slo.goodput_requests_per_s", "goodput, req/s"),
    Figure("joules_per_output_token", "energy.joules_per_output_token", "energy/token"),
    Figure("active_joules_per_output_token", "energy.active_joules_per_output_token", "active"),
    Figure("passive_joules_per_output_token", "energy.passive_joules_per_output_token", "passive"),
    Figure("silicon_mm2", "silicon_mm2", "silicon, mm2"),
    Figure("stability", "stability", "stability"),
)
_BY_KEY = {figure.key: figure for figure in FIGURES}
_ASKED = re.compile(r"(ttft|tpot)_(p[\d.]+)_s")
_GRAVEST_FIRST = (SATURATED, TOO_SHORT, STEADY)


def key_figures(keys: Iterable[str]) -> Iterator[Figure]:
    """Those of all sweeps, and the percentiles that this one was asked for, which are among the keys of its figures."""
    asked = [match for key in dict.fromkeys(keys) if (match := _ASKED.fullmatch(key)) and match[0] not in _BY_KEY]
    for each in FIGURES:
        yield each
        for key, latency, percentile in (match.group(0, 1, 2) for match in asked):
            if each.key == f"{latency}_p99_s":
                yield Figure(key, f"latency_s.{latency}.{ASKED}.{percentile}", f"{named(latency)} {percentile}")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a sweep takes over from a run.

    Args:
        figures: by key.
        ci95: half widths of their 95 % confidence intervals, as far as the run tells of its own noise.
        warnings: all that the run has.
        why_not: why it is no candidate for a front; None if it is one.
        offered_requests_per_s: None in a closed loop.
        likeness: what decides whether points compare.
    """

    figures: Mapping[str, Any]
    ci95: Mapping[str, float]
    warnings: tuple[str, ...]
    why_not: str | None
    offered_requests_per_s: float | None
    likeness: Likeness


def outcome_of(summary: Summary) -> Outcome:
    """What a run's summary says."""
    asked = asked_percentiles([summary])
    figures = list(key_figures(f"{latency}_{percentile}_s" for percentile in asked for latency in ("ttft", "tpot")))
    return Outcome(
        {figure.key: value_at(summary, figure.path) for figure in figures},
        known({figure.key: value_at(summary.ci95, figure.path) for figure in figures}),
        tuple(summary.warnings),
        why_not_on_a_front(summary),
        summary.offered_requests_per_s,
        likeness(summary),
    )


def called(figure: Figure) -> str:
    """What a figure is called in a sentence, where headings lean on their neighbours."""
    return "output tokens/s per device" if figure.key == "output_tokens_per_s_per_device" else figure.heading


def compared_by(document: Mapping[str, Any]) -> str:
    """By what the front of a sweep's document compares, for people."""
    keys = [axis["figure"] for axis in document["pareto"]["axes"]]
    names = [called(figure) for figure in FIGURES if figure.key in keys]
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else "".join(names)


def by_reason(document: Mapping[str, Any]) -> dict[str, list[str]]:
    """Why points are left out of the front, and the names of those."""
    names_by_reason: dict[str, list[str]] = {}
    for name, reason in document["pareto"]["left_out"].items():
        names_by_reason.setdefault(reason, []).append(name)
    return names_by_reason


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


def together(figure: Figure, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """A figure of several runs: an estimate; of states the gravest, and how many runs have each."""
    values = [outcome.figures[figure.key] for outcome in outcomes]
    if figure.unit != "state":
        return estimate(values, outcomes[0].ci95.get(figure.key))
    runs = {state: number for state in _GRAVEST_FIRST if (number := values.count(state))}
    return {"state": next(iter(runs), None), "runs": runs}


def state_text(states: Mapping[str, Any], runs: int) -> str:
    """The gravest state of a point, and how many of its runs have it where not all do."""
    state = states.get("state")
    if state is None:
        return ABSENT
    number = states["runs"][state]
    return str(state) if number == runs else f"{number} of {runs} {state}"


def estimate(values: Sequence[float | None], own: float | None = None) -> dict[str, float | None]:
    """Mean of runs and half the width of its 95 % confidence interval; None where a run has no value.

    Args:
        values: of the runs.
        own: the half width of a run that is alone, as far as it tells.
    """
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return {"mean": None, "ci95": None}
    n = len(known)
    mean = math.fsum(known) / n
    if n == 1:
        return {"mean": mean, "ci95": own}
    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in known) / (n - 1))
    return {"mean": mean, "ci95": t_quantile(n - 1) * spread / math.sqrt(n)}


def sweep_document(
    grid: Grid,
    outcome_by_run: Mapping[tuple[int, int], Outcome],
    errors: Mapping[tuple[int, int], str],
    places: Mapping[tuple[int, int], str],
) -> dict[str, Any]:
    """The sweep as one JSON object; keys of the mappings are (point, run of the point).

    A point has figures when all its runs are done. With several runs, differences to the `baseline`, the first such
    point, are paired by seed: both had the same arrivals, lengths and expert choices, so that what is left is the
    effect of the setting.
    """
    points: list[dict[str, Any]] = []
    offered: list[float | None] = []
    baseline: int | None = None
    for p, point in enumerate(grid.points):
        keys = [(p, r) for r in range(len(point.runs))]
        entry: dict[str, Any] = {
            "name": point.name,
            "settings": dict(point.settings),
            "shown": dict(point.shown),
            "status": "done",
            "runs": [],
        }
        for key, run in zip(keys, point.runs, strict=True):
            status = "done" if key in outcome_by_run else "failed" if key in errors else "missing"
            if status != "done" and entry["status"] != "failed":
                entry["status"] = status
            entry["runs"].append(
                {"seed": run.seed, "status": status, "folder": places[key], "scenario_digest": run.digest}
                | (_run_figures(outcome_by_run[key]) if key in outcome_by_run else {})
                | ({"error": errors[key]} if key in errors else {})
            )
        if entry["status"] == "done":
            outcomes = [outcome_by_run[key] for key in keys]
            entry["figures"] = {f.key: together(f, outcomes) for f in key_figures(outcomes[0].figures)}
            offered += [outcome.offered_requests_per_s for outcome in outcomes]
            if (why_not := _why_not(outcomes)) is not None:
                entry["not_on_front"] = why_not
            if baseline is None:
                baseline = p
            elif len(keys) > 1:
                pairs = [
                    (outcome_by_run[key].figures, outcome_by_run[baseline, r].figures) for r, key in enumerate(keys)
                ]
                entry["difference_to_baseline"] = {
                    f.key: estimate([_minus(a[f.key], b.get(f.key)) for a, b in pairs])
                    for f in key_figures(outcomes[0].figures)
                    if f.unit != "state"
                }
        points.append(entry)
    return {
        "name": grid.name,
        "grid": {axis.path: list(axis.values) for axis in grid.axes},
        "seeds": [run.seed for run in grid.points[0].runs],
        "baseline": None if baseline is None else grid.points[baseline].name,
        "pareto": _mark_front(points, fixed_rate([p.runs[0].scenario.workload for p in grid.points], offered)),
        "warnings": [*_unlike(grid, outcome_by_run), *_warnings(points)],
        "points": points,
    }


def _run_figures(outcome: Outcome) -> dict[str, Any]:
    """What a run of the document says."""
    return {
        "figures": dict(outcome.figures),
        "ci95": dict(outcome.ci95),
        "precision": dict(outcome.likeness.precision),
        "warnings": list(outcome.warnings),
        "not_on_front": outcome.why_not,
    }


def _why_not(outcomes: Sequence[Outcome]) -> str | None:
    """Why a point is no candidate: what any of its runs is not."""
    reasons = [outcome.why_not for outcome in outcomes if outcome.why_not is not None]
    if not reasons:
        return None
    text = "; ".join(dict.fromkeys(reasons))
    return text if len(outcomes) == 1 else f"{text} ({len(reasons)} of {len(outcomes)} runs)"


def _unlike(grid: Grid, outcome_by_run: Mapping[tuple[int, int], Outcome]) -> list[dict[str, Any]]:
    """In what the points do not compare, with all that are done."""
    done = list(dict.fromkeys(grid.points[p].name for p, _ in sorted(outcome_by_run)))
    differing = not_alike([outcome_by_run[key].likeness for key in sorted(outcome_by_run)])
    return [{"warning": f"not like for like: the points differ in {what}", "points": done} for what in differing]


def _warnings(points: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Every warning of the runs once, with the points that have it."""
    having: dict[str, dict[str, None]] = {}
    for point in points:
        for run in point["runs"]:
            for warning in run.get("warnings", ()):
                having.setdefault(warning, {})[point["name"]] = None
    return [{"warning": warning, "points": list(names)} for warning, names in having.items()]


def _minus(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


def _mark_front(points: Sequence[dict[str, Any]], rate: float | None) -> dict[str, Any]:
    """Say of each candidate whether it is on the front, or who beats it; returns the front."""
    candidates = [point for point in points if "figures" in point and "not_on_front" not in point]
    pareto = front([point["figures"] for point in candidates], axes_at(rate))
    for index, point in enumerate(candidates if pareto.axes else ()):
        point["pareto"] = index in pareto.members
        if index in pareto.beaten_by:
            point["dominated_by"] = candidates[pareto.beaten_by[index]]["name"]
    return {
        "offered_requests_per_s": rate,
        "axes": [{"figure": axis.key, "better": "more" if axis.more else "less"} for axis in pareto.axes],
        "front": [point["name"] for point in points if point.get("pareto")],
        "left_out": {point["name"]: point["not_on_front"] for point in points if "not_on_front" in point},
    }
