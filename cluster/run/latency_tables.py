"""Tables of a summary's latencies, and of what limits at percentiles came to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pimserve.cluster.base.figures import ABSENT, count, figure, half_width, named, scale, scaled, share
from pimserve.cluster.base.tables import Row, Table
from pimserve.scheduler.interval_sections import HalfWidths, LatencyIntervals
from pimserve.scheduler.latency_sections import AtPercentile, Distribution, Latencies
from pimserve.scheduler.percentiles import PERCENTILES, has_enough, percentile_name

_FEW = "* of few samples: fewer than ten lie beyond it"
_NOISE = "± 95 % confidence interval by batch means"
_PARTLY = " (-: the run is too short for one)"
_TOO_SHORT = "no confidence intervals: the run is too short for them"
VERDICTS = {True: "pass", False: "fail", None: ABSENT}


def latency_table(latencies: Latencies, intervals: LatencyIntervals) -> Table:
    """Means and percentiles, and below them how far they may be off; a star beside those of few samples."""
    names = _percentiles(latencies)
    moments = ("mean", *names)
    rows, censored = [], []
    for key, latency in _shown(latencies):
        size, unit = scale([_at(latency, moment) for moment in moments], "s")
        n, hidden = latency.n or 0, getattr(latency, "censored", None)
        cells = [ABSENT if (value := _at(latency, moment)) is None else figure(value / size) for moment in moments]
        cells[1:] = [cell + _star(n, name) for cell, name in zip(cells[1:], names, strict=True)]
        if hidden:
            censored.append(f"{named(key)} {count(hidden)}")
        rows.append(
            Row(
                named(key) if n else f"{named(key)}, {unit}",
                (*cells, count(n), count(hidden)),
                unit if n else "",  # only figures have one
                short=named(key),
                only="wide" if latency.n is None else "",
            )
        )
        off = getattr(intervals, key, None)
        widths = [_width(_at(latency, moment), _at(off, moment), size) for moment in moments]
        if any(width != ABSENT for width in widths):
            rows.append(Row("  ±", (*widths, "", ""), short="  +-"))
    notes = list(_notes(rows, some=any(latency.n for _, latency in _shown(latencies))))
    return Table(
        "Latency",
        (*moments, "n", "left out"),
        rows,
        note="; ".join(notes),
        wide_columns=("left out",),
        narrow_note=f"left out, as the end of the run hides them: {', '.join(censored)}" if censored else "",
    )


def percentile_limit_table(limits: Mapping[str, AtPercentile]) -> Table:
    """What each limit at a percentile came to."""
    rows = []
    for key, limit in limits.items():
        latency, percentile, _ = key.split("_")
        few = "" if limit.enough_samples or limit.measured is None else "*"
        cells = (
            scaled(limit.limit, "s"),
            scaled(limit.measured, "s") + few,
            _signed(limit.margin, scaled(abs(limit.margin or 0.0), "s")),
            _signed(limit.relative_margin, share(abs(limit.relative_margin or 0.0))),
            count(limit.n),
            VERDICTS[limit.passed],
        )
        rows.append(Row(f"{named(latency)} {percentile}", cells))
    columns = ("limit", "measured", "margin", "relative", "n", "verdict")
    note = _FEW if any("*" in row.cells[1] for row in rows) else ""
    return Table("Limits at percentiles", columns, rows, note=note, name="limits")


def _shown(latencies: Latencies) -> list[tuple[str, Distribution]]:
    return [(key, latency) for key, latency in latencies if latency is not None]


def _percentiles(latencies: Latencies) -> list[str]:
    """Names of those that were asked for."""
    asked = next((latency.percentiles for _, latency in _shown(latencies) if latency.percentiles), None)
    return list(asked) if asked else [percentile_name(percent) for percent in PERCENTILES]


def _at(of: Distribution | HalfWidths | None, moment: str) -> float | None:
    """Mean or percentile."""
    return None if of is None else of.mean if moment == "mean" else of.percentile(moment)


def _star(n: int, name: str) -> str:
    return "*" if n and not has_enough(n, float(name[1:])) else ""


def _width(value: float | None, width: float | None, size: float) -> str:
    return ABSENT if value is None or width is None else half_width(figure, value / size, width / size)


def _signed(value: float | None, size: str) -> str:
    return ABSENT if value is None else f"-{size}" if value < 0 else size


def _notes(rows: list[Row], *, some: bool) -> Iterator[str]:
    """What stands below the table; `some`: whether there are any samples."""
    if any(cell.endswith("*") for row in rows for cell in row.cells):
        yield _FEW
    widths = [cell for row in rows if row.short == "  +-" for cell in row.cells]
    if widths:
        yield _NOISE + (_PARTLY if ABSENT in widths else "")
    elif some:
        yield _TOO_SHORT
