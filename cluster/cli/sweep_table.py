"""A sweep as tables for the terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from pimserve.cluster.base.figures import ABSENT, figure, half_width, scale, share, whole
from pimserve.cluster.sweep.grid import labels
from pimserve.cluster.sweep.key_figures import FIGURES, Figure, by_reason, compared_by, is_shown, state_text

_FRONT = "* on the Pareto front: by more than the noise, no other point is better in one of {axes}, and worse in none"
_OWN = "+- 95 % confidence interval of the run's own noise (batch means)"
_MOST_NAMED = 8
_MEANS = "means of {n} seeds, the same for all points, +- 95 % confidence interval"
_DIFFERENCES = "differences to {baseline}, paired by seed, +- 95 % confidence interval"


def sweep_report(document: Mapping[str, Any], screen: Console) -> RenderableType:
    """Key figures of all points, their differences to the baseline where there are several seeds, and what failed."""
    points, seeds = document["points"], document["seeds"]
    parts: list[RenderableType] = [*_tables(document, points, "figures", screen), ""]
    if document["pareto"]["front"]:
        parts += [Text(_FRONT.format(axes=compared_by(document)))]
    parts += [Text(f"not on a front: {_names(names)}: {reason}") for reason, names in by_reason(document).items()]
    parts += [Text(_MEANS.format(n=len(seeds)) if len(seeds) > 1 else _OWN)]
    if len(seeds) > 1:
        differing = [point for point in points if "difference_to_baseline" in point]
        if differing:
            title = Text(_DIFFERENCES.format(baseline=document["baseline"]), style="bold")
            parts += ["", title, *_tables(document, differing, "difference_to_baseline", screen)]
    parts += [""] * bool(document["warnings"])
    for each in document["warnings"]:
        which = "all points" if len(each["points"]) == len(points) else _names(each["points"])
        parts += [Text(f"warning: {which}: {each['warning']}", style="bold")]
    for point in points:
        errors = dict.fromkeys(run["error"] for run in point["runs"] if run["status"] == "failed")
        if errors:
            parts += ["", Text(f"failed: {point['name']}", style="bold")]
            parts += [Padding(Text(error), (0, 0, 0, 2)) for error in errors]
    return Group(*parts)


def _names(names: Sequence[str]) -> str:
    """Some points."""
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more


def _tables(
    document: Mapping[str, Any], points: Sequence[Mapping[str, Any]], part: str, screen: Console
) -> list[RenderableType]:
    """All figures, in as few tables as the screen's width allows."""
    shown_figures = [f for f in FIGURES if is_shown(f, part, [_value(point, part, f) for point in points])]
    unbounded = screen.options.update(width=10_000)
    parts: list[RenderableType] = []
    while shown_figures or not parts:
        taken = len(shown_figures)
        table = _table(document, points, part, shown_figures)
        while taken > 1 and screen.measure(table, options=unbounded).maximum > screen.width:
            taken -= 1
            table = _table(document, points, part, shown_figures[:taken])
        parts += [""] * bool(parts) + [table]
        shown_figures = shown_figures[taken:]
    return parts


def _table(
    document: Mapping[str, Any], points: Sequence[Mapping[str, Any]], part: str, figures: Sequence[Figure]
) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    paths = list(document["grid"])
    for label in labels(paths):
        table.add_column(label, overflow="fold")
    table.add_column("")
    writers = []
    for each in figures:
        size, unit = _size(points, part, each)
        table.add_column(f"{each.heading}, {unit}" if unit else each.heading, justify="right", no_wrap=True)
        writers.append(_writer(each, size, len(document["seeds"])))
    for point in points:
        state = "*" if point.get("pareto") else "" if point["status"] == "done" else point["status"]
        cells = [write(point.get(part, {}).get(each.key)) for each, write in zip(figures, writers, strict=True)]
        table.add_row(*(Text(point["shown"][path]) for path in paths), state, *cells)
    return table


def _mean(point: Mapping[str, Any], part: str, each: Figure) -> float | None:
    value: float | None = point.get(part, {}).get(each.key, {}).get("mean")
    return value


def _value(point: Mapping[str, Any], part: str, each: Figure) -> object:
    """A mean, or a state."""
    return point.get(part, {}).get(each.key, {}).get("state" if each.unit == "state" else "mean")


def _size(points: Sequence[Mapping[str, Any]], part: str, each: Figure) -> tuple[float, str]:
    if each.unit not in {"s", "J"}:
        return 1.0, ""
    return scale([_mean(point, part, each) for point in points], each.unit)


def _writer(each: Figure, size: float, runs: int) -> Callable[[Mapping[str, Any] | None], str]:
    """What writes a mean and its confidence interval in that unit; of states, the gravest."""
    write = share if each.unit == "share" else whole if each.unit == "count" else figure

    def cell(estimate: Mapping[str, Any] | None) -> str:
        if estimate is None:
            return ABSENT
        if each.unit == "state":
            return state_text(estimate, runs)
        mean, ci95 = estimate["mean"], estimate["ci95"]
        if mean is None:
            return ABSENT
        return (
            write(mean / size)
            if ci95 is None
            else f"{write(mean / size)} +-{half_width(write, mean / size, ci95 / size)}"
        )

    return cell
