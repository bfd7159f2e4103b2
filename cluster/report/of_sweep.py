"""The report of a sweep: its points, and which of them no other beats."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pimserve.cluster.figures import ABSENT, figure, scale, share, whole
from pimserve.cluster.report.content import Page, Section, Table
from pimserve.cluster.report.facts import text
from pimserve.cluster.report.fronts import Dot, pareto
from pimserve.cluster.report.inputs import at, number, numbers
from pimserve.cluster.report.svg import Picture, picture
from pimserve.cluster.sweep import SCHEMA_VERSION, SWEEP_FILE
from pimserve.cluster.sweep_figures import COST, FIGURES, GAIN, Figure, is_shown, state_text
from pimserve.cluster.sweep_grid import labels, shown
from pimserve.errors import InputError
from pimserve.scheduler.stability import SATURATED, STEADY, TOO_SHORT

_MOST_NAMED = 24  # dots with a name beside them
_COSTS = (COST, "ttft_p99_s", "joules_per_output_token")


def load_sweep(folder: Path) -> Mapping[str, Any]:
    """The document of a sweep's folder.

    Raises:
        InputError: it cannot be read, is of another version, or no run of it has ended.
    """
    file = folder / SWEEP_FILE
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(str(file), f"cannot be read: {error}") from None
    if not isinstance(document, dict) or document.get("schema_version") != SCHEMA_VERSION:
        raise InputError(str(file), f"is not a sweep of schema_version {SCHEMA_VERSION}")
    points, axes = document.get("points"), document.get("grid")
    complete = (
        isinstance(axes, dict) and isinstance(document.get("seeds"), list) and isinstance(points, list) and points
    )
    if not complete or not all(isinstance(at(point, "settings"), dict) for point in points or ()):
        raise InputError(str(file), "has no points yet: let `pimserve sweep` go on, or end")
    return document


def sweep_page(document: Mapping[str, Any], place: Path, title: str | None) -> Page:
    """All points of a sweep."""
    points: list[Mapping[str, Any]] = document["points"]
    names = [str(index + 1) for index in range(len(points))]
    seeds = len(document["seeds"])
    states = [text(point, "status") for point in points]
    warnings = [
        f"{states.count(state)} of {len(points)} points {verb}"
        for state, verb in (("failed", "failed"), ("missing", "were not run"))
        if state in states
    ]
    stability = [at(point, "figures.stability.state") for point in points]
    for state, why in (
        (SATURATED, "their latencies grow with the length of the run"),
        (TOO_SHORT, "longer runs may have other latencies"),
    ):
        if state in stability:
            warnings.append(f"{stability.count(state)} of {len(points)} points: {state}; {why}")
    key_figures = Section(
        "points",
        "Points",
        _points_text(seeds),
        tables=[_table(document, points, names, "figures", "Key figures of all points")],
    )
    sections = [_front(points, names), key_figures]
    differing = [(name, point) for name, point in zip(names, points, strict=True) if "difference_to_baseline" in point]
    if differing:
        caption = f"Differences to point {_number_of(points, document.get('baseline'))}, paired by seed"
        table = _table(
            document, [p for _, p in differing], [n for n, _ in differing], "difference_to_baseline", caption
        )
        sections.append(Section("differences", "Differences", tables=[table]))
    failed = _failures(points, names)
    if failed:
        sections.append(Section("failed", "Failed runs", tables=[failed]))
    sections.append(_provenance(document, place))
    return Page(
        title or f"{text(document, 'name')}: sweep",
        f"{len(points)} points over {', '.join(labels(list(document['grid'])))}",
        (f"{seeds} seed{'s' if seeds > 1 else ''} per point",),
        warnings,
        sections,
    )


def _points_text(seeds: int) -> list[str]:
    found = [
        "Each run has a results folder of its own, of which pimserve report makes a report of its own. *: on the "
        "Pareto front of output tokens/s per device and TPOT p99."
    ]
    if seeds > 1:
        found.append(f"Means of {seeds} seeds, the same for all points, ± 95 % confidence interval.")
    return found


def _front(points: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Section:
    pictures = [each for cost in _COSTS if (each := _pareto(points, names, cost)) is not None]
    note = [
        "To the left is better, and up. A point is on the front where no other has as many output tokens/s per device "
        "at as low a cost; each picture has its own front. Numbers are those of the table."
    ]
    if not pictures:
        note = ["No point has both figures: there is no front."]
    return Section("front", "Pareto front", note, pictures=pictures)


def _pareto(points: Sequence[Mapping[str, Any]], names: Sequence[str], cost: str) -> Picture | None:
    found = []
    for name, point in zip(names, points, strict=True):
        x, y = (number(point, f"figures.{key}.mean") for key in (cost, GAIN))
        if x is not None and y is not None:
            found.append((x, y, name, point))
    if not found:
        return None
    front, best = set(), float("-inf")
    for _, y, name, _ in sorted(found, key=lambda each: (each[0], -each[1])):
        if y > best:
            front.add(name)
            best = y
    dots = [
        Dot(
            name,
            x,
            y,
            number(point, f"figures.{cost}.ci95") or 0.0,
            number(point, f"figures.{GAIN}.ci95") or 0.0,
            front=name in front,
            hollow=at(point, "figures.stability.state") != STEADY,
        )
        for x, y, name, point in found
    ]
    each = next(figure_ for figure_ in FIGURES if figure_.key == cost)
    size, unit = scale([dot.x for dot in dots], each.unit)
    title = f"Throughput against {each.heading}"
    alt = f"{title} of {len(dots)} points. On the front: " + "; ".join(
        f"point {dot.name} with {figure(dot.y)} output tokens/s per device at {figure(dot.x / size)} {unit}"
        for dot in sorted(dots, key=lambda dot: dot.x)
        if dot.front
    )
    draw = pareto(dots, f"{each.heading}, {unit}", "output tokens/s per device", size, names=len(dots) <= _MOST_NAMED)
    caption = "Circles: on the front; squares: beaten; hollow: saturated, or too short to tell."
    return picture(f"pareto-{cost.replace('_', '-')}", title, f"{alt}.", caption, draw, height_in=3.6)


def _table(
    document: Mapping[str, Any], points: Sequence[Mapping[str, Any]], names: Sequence[str], part: str, caption: str
) -> Table:
    paths = list(document["grid"])
    figures = [f for f in FIGURES if is_shown(f, part, [_value(point, part, f) for point in points])]
    scales = [
        scale([number(point, f"{part}.{f.key}.mean") for point in points], f.unit)
        if f.unit in {"s", "J"}
        else (1.0, "")
        for f in figures
    ]
    columns = (
        "",
        *labels(paths),
        *(f"{f.heading}, {u}" if u else f.heading for f, (_, u) in zip(figures, scales, strict=True)),
    )
    rows = []
    for name, point in zip(names, points, strict=True):
        settings = point["settings"]
        state = text(point, "status")
        mark = name + ("*" if point.get("pareto") is True else "") + ("" if state == "done" else f" {state}")
        cells = [
            _cell(f, at(point, f"{part}.{f.key}"), size, len(document["seeds"]))
            for f, (size, _) in zip(figures, scales, strict=True)
        ]
        rows.append((mark, *(shown(settings.get(path)) for path in paths), *cells))
    return Table(caption, columns, rows)


def _value(point: Mapping[str, Any], part: str, each: Figure) -> object:
    """A mean, or a state."""
    if each.unit == "state":
        state = at(point, f"{part}.{each.key}.state")
        return state if isinstance(state, str) else None
    return number(point, f"{part}.{each.key}.mean")


def _cell(each: Figure, estimate: object, size: float, runs: int) -> str:
    if each.unit == "state":
        counted = numbers(estimate, "runs")
        state = text(estimate, "state")
        return state_text({"state": state, "runs": counted}, runs) if state in counted else ABSENT
    mean, ci95 = number(estimate, "mean"), number(estimate, "ci95")
    if mean is None:
        return ABSENT
    write = share if each.unit == "share" else whole if each.unit == "count" else figure
    return write(mean / size) if ci95 is None else f"{write(mean / size)} ± {write(ci95 / size)}"


def _failures(points: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Table | None:
    rows = [
        (name, text(run, "seed"), text(run, "error"))
        for name, point in zip(names, points, strict=True)
        for run in _runs(point)
        if text(run, "status") == "failed"
    ]
    return Table("Why they failed", ("point", "seed", "error"), rows, text=True) if rows else None


def _runs(point: Mapping[str, Any]) -> list[Any]:
    found = point.get("runs")
    return found if isinstance(found, list) else []


def _number_of(points: Sequence[Mapping[str, Any]], name: object) -> str:
    return next((str(index + 1) for index, point in enumerate(points) if point.get("name") == name), ABSENT)


def _provenance(document: Mapping[str, Any], place: Path) -> Section:
    rows = [
        ("folder", str(place)),
        ("digest of the scenario and the grid", text(document, "identity")),
        ("seeds", ", ".join(map(str, document["seeds"]))),
        *(
            (path, ", ".join(map(shown, values)))
            for path, values in document["grid"].items()
            if isinstance(values, list)
        ),
    ]
    return Section("provenance", "Provenance", tables=[Table("Provenance", ("", ""), rows, text=True)])
