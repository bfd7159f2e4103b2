"""What dashboards are made of: panels as data, and their way to Grafana's JSON."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from grafana_foundation_sdk.builders import bargauge, common, dashboard, prometheus, stat, table, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as options
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models.prometheus import PromQueryFormat
from promql import OF_RUN

from pimserve.cluster.metrics.families import BY_NAME

DOCS = "http://127.0.0.1:8000"  # where `make site-serve` puts the documentation; a variable of each dashboard
SOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
# Seconds between samples: the scrape interval, or that of a backfill. $__rate_interval is four of them or more.
SAMPLING = ("5s", "1s", "2s", "10s", "15s", "30s", "1m", "2m", "5m", "10m", "30m", "1h")
LIMIT = "limit"  # legends that begin so are drawn dashed
_COLUMNS = 24
_NEUTRAL = ((None, "blue"),)  # Grafana's own thresholds make all above 80 red
Steps = tuple[tuple[float | None, str], ...]
Drawn = timeseries.Panel | stat.Panel | bargauge.Panel | table.Panel
Variable = (
    dashboard.DatasourceVariable | dashboard.QueryVariable | dashboard.IntervalVariable | dashboard.TextBoxVariable
)


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
        steps: values of a stat from which it has a colour; None: from the least one.
        columns: labels that a table has for columns, in order, and their titles.
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
    steps: Steps = _NEUTRAL
    columns: tuple[tuple[str, str], ...] = ()


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
        .links([*map(_link, links), _docs()])
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
            built = built.with_panel(_panel(panel).id(number).grid_pos(place))
            number, across, tallest = number + 1, across + panel.width, max(tallest, panel.height)
        at += tallest
    return JSONEncoder(sort_keys=True, indent=2).encode(built.build()) + "\n"


def _panel(panel: Panel) -> Drawn:
    drawn: dict[str, Callable[[Panel], Drawn]] = {"lines": _lines, "stat": _stat, "bars": _bars, "table": _table}
    made = drawn[panel.kind](panel)
    made = made.title(panel.title).description(panel.description).unit(panel.unit).datasource(SOURCE).min(0)
    made = made.links([_metrics(panel)])
    if panel.most is not None:
        made = made.max(panel.most)
    for index, (expr, legend) in enumerate(panel.queries):
        query = prometheus.Dataquery().expr(expr).legend_format(legend).ref_id(chr(ord("A") + index)).datasource(SOURCE)
        query = query.instant().format(PromQueryFormat.TABLE) if panel.kind == "table" else query.range()
        made = made.with_target(query.interval("$sampling"))
    return made


def _lines(panel: Panel) -> timeseries.Panel:
    legend = (
        common.VizLegendOptions()
        .display_mode(options.LegendDisplayMode.TABLE)
        .placement(options.LegendPlacement.BOTTOM)
        .show_legend(True)
        .calcs(["mean", "lastNotNull"])
    )
    tooltip = common.VizTooltipOptions().mode(options.TooltipDisplayMode.MULTI)
    made = timeseries.Panel().legend(legend).tooltip(tooltip).fill_opacity(60 if panel.stacked else 8)
    if panel.stacked:
        made = made.stacking(common.StackingConfig().mode(options.StackingMode.NORMAL))
    if any(name.startswith(LIMIT) for _, name in panel.queries):
        dashed = models.DynamicConfigValue("custom.lineStyle", {"fill": "dash", "dash": [10, 10]})
        made = made.override_by_regexp(f"/^{LIMIT}/", [dashed, models.DynamicConfigValue("custom.fillOpacity", 0)])
    return made


def _stat(panel: Panel) -> stat.Panel:
    steps = dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE)
    steps = steps.steps([models.Threshold(value, color) for value, color in panel.steps])
    made = stat.Panel().thresholds(steps).graph_mode(options.BigValueGraphMode.AREA)
    return made.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))


def _bars(_: Panel) -> bargauge.Panel:
    made = bargauge.Panel().orientation(options.VizOrientation.HORIZONTAL)
    made = made.color_scheme(dashboard.FieldColor().mode(models.FieldColorModeId.PALETTE_CLASSIC_BY_NAME))
    return made.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))


def _table(panel: Panel) -> table.Panel:
    names = [name for name, _ in panel.columns]
    arranged = {
        "excludeByName": {"Time": True, "Value": True, "Value #A": True},
        "indexByName": {name: index for index, name in enumerate(names)},
        "renameByName": dict(panel.columns),
    }
    return table.Panel().with_transformation(models.DataTransformerConfig("organize", options=arranged))


def _variables(board: Board) -> list[Variable]:
    source = dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus")
    engines = [("engine", "Replica"), ("role", "Role")] if board.with_engines else []
    variables: list[Variable] = [source]
    for name, label in [("run_id", "Run"), *engines]:
        metric = "pimserve_run_info" if name == "run_id" else f"pimserve_requests_running{{{OF_RUN}}}"
        variables.append(
            dashboard.QueryVariable(name)
            .label(label)
            .datasource(SOURCE)
            .query({"query": f"label_values({metric}, {name})", "refId": name})
            .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
            .sort(models.VariableSort.NATURAL_ASC)
            .multi(True)
            .include_all(True)
            .all_value(".+")
            .current(models.VariableOption(True, ["All"], ["$__all"]))
        )
    sampling = (
        dashboard.IntervalVariable("sampling")
        .label("Sample interval")
        .description("At least the scrape interval, or that of the backfill: rates are of four of them or more.")
        .values(",".join(SAMPLING))
        .current(models.VariableOption(True, SAMPLING[0], SAMPLING[0]))
    )
    return [*variables, sampling, dashboard.TextBoxVariable("docs").label("Documentation").default_value(DOCS)]


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


def _metrics(panel: Panel) -> dashboard.DashboardLink:
    """To the section of the documentation that has the metrics of the panel's first query."""
    labels = {label for name in re.findall(r"pimserve_\w+", panel.queries[0][0]) for label in _labels(name)}
    sections = {"device_model": "devices", "engine": "engines", "stage": "stages", "slo_class": "classes"}
    section = next((of for label, of in sections.items() if label in labels), "runs")
    link = dashboard.DashboardLink("Its metrics").type(models.DashboardLinkType.LINK)
    return link.url(f"${{docs}}/metrics.html#{section}").target_blank(True)


def _labels(name: str) -> Sequence[str]:
    """Labels of a metric, but for those that tell what a run is about."""
    family = BY_NAME[name.removesuffix("_bucket")]
    return () if family.name == "pimserve_run_info" else family.labels
