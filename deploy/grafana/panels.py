"""What dashboards are made of: panels as data, the PromQL that they share, and their way to Grafana's JSON.

Counters grow with simulated time, at any multiple of the wall clock: rates are divided by the rate of the virtual
clock, which leaves figures per simulated second, and nothing where the clock stands still.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from grafana_foundation_sdk.builders import bargauge, common, dashboard, prometheus, stat, table, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as options
from grafana_foundation_sdk.models import dashboard as models

DOCS = "http://127.0.0.1:8000"  # where `make site-serve` puts the documentation; a variable of each dashboard
SOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
OF_RUN = 'run_id=~"$run_id"'
OF_ENGINE = 'run_id=~"$run_id",engine=~"$engine",role=~"$role"'
_COLUMNS = 24
Variable = dashboard.DatasourceVariable | dashboard.QueryVariable | dashboard.TextBoxVariable


@dataclass(frozen=True)
class Panel:
    """A panel.

    Args:
        title: what it shows.
        unit: Grafana's name of the unit.
        description: how to read it.
        queries: PromQL and legend of each query.
        kind: how it is drawn.
        width: of 24 columns.
        height: in grid rows.
        stacked: whether series are stacked.
        most: upper end of the axis, where there is one.
    """

    title: str
    unit: str
    description: str
    queries: tuple[tuple[str, str], ...]
    kind: Literal["lines", "stat", "bars", "table"] = "lines"
    width: int = 12
    height: int = 8
    stacked: bool = False
    most: float | None = None


@dataclass(frozen=True)
class Row:
    """A row of panels under a title."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Board:
    """A dashboard."""

    uid: str
    title: str
    description: str
    rows: tuple[Row, ...]
    with_engines: bool = False


def per_second(metric: str, *, of: str = OF_RUN, by: Sequence[str] = ("run_id",)) -> str:
    """A counter's growth per simulated second."""
    labels = ", ".join(by)
    growth = f"sum by ({labels}) (rate({metric}{{{of}}}[$__rate_interval]))"
    return f"{growth} / on (run_id) group_left () {clock()}"


def clock() -> str:
    """Simulated seconds per second, where the clock goes."""
    return f"(sum by (run_id) (rate(pimserve_virtual_time_seconds_total{{{OF_RUN}}}[$__rate_interval])) > 0)"


def share(part: str, whole: str) -> str:
    """One rate over another; both are of the same clock."""
    return f"({part}) / ({whole} > 0)"


def growth(metric: str, *, of: str = OF_RUN, by: Sequence[str] = ("run_id",)) -> str:
    """A counter's growth per second of the clock that is scraped: only for ratios of two of them."""
    return f"sum by ({', '.join(by)}) (rate({metric}{{{of}}}[$__rate_interval]))"


def quantile(percent: float, metric: str, *, of: str = OF_RUN, by: Sequence[str] = ("run_id",)) -> str:
    """A percentile of a histogram; rates of buckets need no division, since only their shares count."""
    buckets = f"sum by ({', '.join(('le', *by))}) (rate({metric}_bucket{{{of}}}[$__rate_interval]))"
    return f"histogram_quantile({percent / 100:g}, {buckets})"


def percentiles(metric: str, legend: str = "{{run_id}}") -> tuple[tuple[str, str], ...]:
    """p50, p90 and p99."""
    return tuple((quantile(percent, metric), f"p{percent} {legend}") for percent in (50, 90, 99))


def render(board: Board, links: Sequence[Board]) -> str:
    """The dashboard's JSON."""
    built = (
        dashboard.Dashboard(board.title)
        .uid(board.uid)
        .description(board.description)
        .tags(["pimserve"])
        .editable()
        .refresh("10s")
        .time("now-1h", "now")
        .timezone("utc")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .links([_link(other) for other in links] + [_docs()])
    )
    for variable in _variables(board):
        built = built.with_variable(variable)
    number, at = 1, 0
    for row in board.rows:
        place = models.GridPos(h=1, w=_COLUMNS, x=0, y=at)
        built = built.with_row(dashboard.Row(row.title).id(number).grid_pos(place))
        number, at, across, tallest = number + 1, at + 1, 0, 0
        for panel in row.panels:
            if across + panel.width > _COLUMNS:
                at, across, tallest = at + tallest, 0, 0
            place = models.GridPos(h=panel.height, w=panel.width, x=across, y=at)
            built = built.with_panel(_panel(panel, number).id(number).grid_pos(place))
            number, across, tallest = number + 1, across + panel.width, max(tallest, panel.height)
        at += tallest
    return JSONEncoder(sort_keys=True, indent=2).encode(built.build()) + "\n"


def _panel(panel: Panel, number: int) -> timeseries.Panel | stat.Panel | bargauge.Panel | table.Panel:
    made = {"lines": timeseries.Panel, "stat": stat.Panel, "bars": bargauge.Panel, "table": table.Panel}[panel.kind]()
    made = made.title(panel.title).description(panel.description).unit(panel.unit).datasource(SOURCE).min(0)
    if panel.most is not None:
        made = made.max(panel.most)
    latest = panel.kind != "lines"
    for index, (expr, legend) in enumerate(panel.queries):
        query = prometheus.Dataquery().expr(expr).legend_format(legend).ref_id(chr(ord("A") + index)).datasource(SOURCE)
        query = query.instant().format("table") if panel.kind == "table" else query.range()
        made = made.with_target(query)
    if latest and panel.kind != "table":
        made = made.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    if panel.kind == "stat":
        made = made.graph_mode(options.BigValueGraphMode.AREA)
    if panel.kind == "bars":
        made = made.orientation(options.VizOrientation.HORIZONTAL)
    if panel.kind == "lines":
        legend_options = (
            common.VizLegendOptions()
            .display_mode(options.LegendDisplayMode.TABLE)
            .placement(options.LegendPlacement.BOTTOM)
            .show_legend(True)
            .calcs(["mean", "lastNotNull"])
        )
        tooltip = common.VizTooltipOptions().mode(options.TooltipDisplayMode.MULTI)
        made = made.legend(legend_options).tooltip(tooltip).fill_opacity(60 if panel.stacked else 8)
        if panel.stacked:
            made = made.stacking(common.StackingConfig().mode(options.StackingMode.NORMAL))
    return made


def _variables(board: Board) -> list[Variable]:
    source = dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus")
    engines = [("engine", "Replica"), ("role", "Role")] if board.with_engines else []
    found: list[Variable] = [source]
    for name, label in [("run_id", "Run"), *engines]:
        metric = "pimserve_run_info" if name == "run_id" else f"pimserve_requests_running{{{OF_RUN}}}"
        found.append(
            dashboard.QueryVariable(name)
            .label(label)
            .datasource(SOURCE)
            .query({"query": f"label_values({metric}, {name})", "refId": name})
            .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
            .sort(models.VariableSort.NATURAL_ASC)
            .multi(True)
            .include_all(True)
            .all_value(".+")
        )
    return [*found, dashboard.TextBoxVariable("docs").label("Documentation").default_value(DOCS)]


def _link(board: Board) -> dashboard.DashboardLink:
    return (
        dashboard.DashboardLink(board.title)
        .type(models.DashboardLinkType.LINK)
        .url(f"/d/{board.uid}")
        .include_vars(True)
        .keep_time(True)
    )


def _docs() -> dashboard.DashboardLink:
    link = dashboard.DashboardLink("What it means").type(models.DashboardLinkType.LINK)
    return link.url("${docs}/dashboards.html").target_blank(True)
