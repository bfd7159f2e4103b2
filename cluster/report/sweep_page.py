"""The report of a sweep: its points, and which of them no other beats."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pimserve.cluster.base.documents import at, number
from pimserve.cluster.base.figures import ABSENT, SCALED, figure, scale, text_of
from pimserve.cluster.base.tables import Table, table_of
from pimserve.cluster.report.content import Page, Section
from pimserve.cluster.report.front_pictures import Dot, pareto
from pimserve.cluster.report.svg import Picture, picture
from pimserve.cluster.sweep.grid import labels, value_names
from pimserve.cluster.sweep.key_figures import FIGURES, by_reason, called, compared_by
from pimserve.cluster.sweep.pareto import ENERGY, THROUGHPUT, Axis, front
from pimserve.cluster.sweep.sweep import SCHEMA_VERSION, SWEEP_FILE
from pimserve.cluster.sweep.sweep_tables import figure_columns, point_table
from pimserve.errors import InputError

_PARTS = {"seeds": list, "pareto.axes": list, "pareto.left_out": dict, "warnings": list}
_MOST_NAMED = 24  # dots with a name beside them
_FIGURE = {figure.key: figure for figure in FIGURES}
_ACROSS = ("tpot_p99_s", "ttft_p99_s", "joules_per_output_token", "silicon_mm2", "devices")


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
    complete = isinstance(axes, dict) and isinstance(points, list) and bool(points)
    complete = complete and all(isinstance(at(document, part), kind) for part, kind in _PARTS.items())
    if not complete or not all(isinstance(at(point, "settings"), dict) for point in points or ()):
        raise InputError(str(file), "has no points yet: let `pimserve sweep` go on, or end")
    return document


def sweep_page(document: Mapping[str, Any], place: Path, title: str | None) -> Page:
    """All points of a sweep."""
    points: list[Mapping[str, Any]] = document["points"]
    names = [str(index + 1) for index in range(len(points))]
    numbered = dict(zip(names, points, strict=True))
    seeds = len(document["seeds"])
    states = [text_of(at(point, "status")) for point in points]
    warnings = [
        f"{states.count(state)} of {len(points)} points {verb}"
        for state, verb in (("failed", "failed"), ("missing", "were not run"))
        if state in states
    ]
    warnings += _warnings(document, points)
    key_figures = Section(
        "points",
        "Points",
        _points_text(document, seeds),
        tables=[_table(document, numbered, "figures", "Key figures of all points")],
    )
    sections = [_front(document, points, names), key_figures]
    differing = {name: point for name, point in numbered.items() if "difference_to_baseline" in point}
    if differing:
        caption = f"Differences to point {_number_of(points, document.get('baseline'))}, paired by seed"
        table = _table(document, differing, "difference_to_baseline", caption)
        sections.append(Section("differences", "Differences", tables=[table]))
    failed = _failures(points, names)
    if failed:
        sections.append(Section("failed", "Failed runs", tables=[failed]))
    sections.append(_provenance(document, place))
    return Page(
        title or f"{text_of(at(document, 'name'))}: sweep",
        f"{len(points)} points over {', '.join(labels(list(document['grid'])))}",
        (f"{seeds} seed{'s' if seeds > 1 else ''} per point",),
        warnings,
        sections,
    )


def _warnings(document: Mapping[str, Any], points: Sequence[Mapping[str, Any]]) -> list[str]:
    """What keeps points from the front, and every warning of the runs, with the numbers of their points."""
    warnings = [(f"not on a front: {reason}", names) for reason, names in by_reason(document).items()]
    warnings += [(text_of(at(warning, "warning")), at(warning, "points")) for warning in document["warnings"]]
    texts = []
    for text, names in warnings:
        having = [_number_of(points, name) for name in names] if isinstance(names, list) else []
        texts.append(f"{_of_points(having, len(points))}: {text}")
    return texts


def _of_points(having: Sequence[str], total: int) -> str:
    if len(having) == total:
        return "all points"
    more = f" and {len(having) - _MOST_NAMED} more" if len(having) > _MOST_NAMED else ""
    return f"point{'s' if len(having) > 1 else ''} {', '.join(having[:_MOST_NAMED])}{more}"


def _points_text(document: Mapping[str, Any], seeds: int) -> list[str]:
    text = ["Each run has a results folder of its own, of which pimserve report makes a report of its own."]
    if document["pareto"]["axes"]:
        text.append(
            "*: on the Pareto front: by more than the noise, no other point is better in one of "
            f"{compared_by(document)}, and worse in none."
        )
    means = f"Means of {seeds} seeds, the same for all points, ± 95 % confidence interval."
    text.append(means if seeds > 1 else "± 95 % confidence interval of the run's own noise (batch means).")
    return text


def _front(document: Mapping[str, Any], points: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Section:
    free = number(document, "pareto.offered_requests_per_s") is None
    up = THROUGHPUT if free else ENERGY
    across = [Axis(key) for key in _ACROSS[: 3 if free else None] if key != up.key]
    pictures = [drawn for x in across if (drawn := _pareto(points, names, x, up)) is not None]
    better = "up" if up.more else "down"
    note = [
        f"To the left is better, and {better}. A point is on the front where, by more than the noise, no other is "
        "better in one of both and worse in none; each picture has its own front. Numbers are those of the table."
    ]
    if not free:
        note.append("All points were offered the same rate, so throughput is no merit of theirs.")
    if not pictures:
        note = ["No point has both figures: there is no front."]
    return Section("front", "Pareto front", note, pictures=pictures)


def _pareto(points: Sequence[Mapping[str, Any]], names: Sequence[str], across: Axis, up: Axis) -> Picture | None:
    """Points by two figures; None where nobody has both, or all are alike across."""
    known = [
        (name, point)
        for name, point in zip(names, points, strict=True)
        if all(number(point, f"figures.{axis.key}.mean") is not None for axis in (across, up))
    ]
    if not known:
        return None
    candidates = [index for index, (_, point) in enumerate(known) if at(point, "not_on_front") is None]
    figures = [{axis.key: _estimate(known[index][1], axis) for axis in (across, up)} for index in candidates]
    members = {candidates[index] for index in front(figures, (across, up)).members}
    dots = [
        Dot(
            name,
            _estimate(point, across)["mean"] or 0.0,
            _estimate(point, up)["mean"] or 0.0,
            _estimate(point, across)["ci95"] or 0.0,
            _estimate(point, up)["ci95"] or 0.0,
            front=index in members,
            hollow=index not in candidates,
        )
        for index, (name, point) in enumerate(known)
    ]
    if across.key in {"silicon_mm2", "devices"} and len({dot.x for dot in dots}) == 1:
        return None
    size, x_label = _axis(across, [dot.x for dot in dots])
    y_size, y_label = _axis(up, [dot.y for dot in dots])
    title = f"{called(_FIGURE[up.key])} against {called(_FIGURE[across.key])}"
    title = title[0].upper() + title[1:]
    on = [dot for dot in sorted(dots, key=lambda dot: dot.x) if dot.front]
    alt = f"{title} of {len(dots)} points. On the front: " + "; ".join(
        f"point {dot.name} with {figure(dot.y / y_size)} ({y_label}) at {figure(dot.x / size)} ({x_label})"
        for dot in on
    )
    draw = pareto(dots, x_label, y_label, (size, y_size), names=len(dots) <= _MOST_NAMED)
    caption = "Circles: on the front; squares: beaten; hollow: no candidates, for the reasons above."
    return picture(f"pareto-{across.key.replace('_', '-')}", title, f"{alt}.", caption, draw, height_in=3.6)


def _estimate(point: Mapping[str, Any], axis: Axis) -> dict[str, float | None]:
    return {part: number(point, f"figures.{axis.key}.{part}") for part in ("mean", "ci95")}


def _axis(axis: Axis, values: Sequence[float]) -> tuple[float, str]:
    """What one unit of an axis is, and its label."""
    shown = _FIGURE[axis.key]
    if shown.unit not in SCALED:
        return 1.0, called(shown)
    size, unit = scale(values, shown.unit)
    return size, f"{called(shown)}, {unit}"


def _table(document: Mapping[str, Any], points: Mapping[str, Mapping[str, Any]], part: str, caption: str) -> Table:
    """Points, of which `points` has the numbers, and their key figures."""
    columns = figure_columns(document, list(points.values()), part)
    return point_table(document, points, columns, caption)


def _failures(points: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Table | None:
    rows = [
        (name, text_of(at(run, "seed")), text_of(at(run, "error")))
        for name, point in zip(names, points, strict=True)
        for run in _runs(point)
        if text_of(at(run, "status")) == "failed"
    ]
    return table_of("Why they failed", ("point", "seed", "error"), rows, text=True) if rows else None


def _runs(point: Mapping[str, Any]) -> list[Any]:
    runs = point.get("runs")
    return runs if isinstance(runs, list) else []


def _number_of(points: Sequence[Mapping[str, Any]], name: object) -> str:
    return next((str(index + 1) for index, point in enumerate(points) if point.get("name") == name), ABSENT)


def _provenance(document: Mapping[str, Any], place: Path) -> Section:
    rows = [
        ("folder", str(place)),
        ("digest of the scenario and the grid", text_of(at(document, "identity"))),
        ("seeds", ", ".join(map(str, document["seeds"]))),
        *(
            (path, ", ".join(value_names(values)))
            for path, values in document["grid"].items()
            if isinstance(values, list)
        ),
    ]
    return Section("provenance", "Provenance", tables=[table_of("Provenance", ("", ""), rows, text=True)])
