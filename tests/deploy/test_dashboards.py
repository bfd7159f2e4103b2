"""Dashboards, rules and the console page: as generated, valid, and about metrics that there are."""

import itertools
import re
import shutil
import subprocess
import sys

import jsonschema
import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from pimserve.cluster.metrics.families import FAMILIES
from tests.deploy.queries import (
    CONSOLE,
    ROOT,
    boards,
    labels_by,
    metrics_in,
    panel_queries,
    panels,
    rules,
    substituted,
    written_out,
)

KINDS = {family.name: family.kind for family in FAMILIES}
LABELS = {family.name: set(family.labels) for family in FAMILIES}
EXPOSED = {
    *(name for name, kind in KINDS.items() if kind != "histogram"),
    *(f"{name}_{part}" for name, kind in KINDS.items() if kind == "histogram" for part in ("bucket", "sum", "count")),
}
NAMES = [*boards()]
QUERIES = [*panel_queries(), *rules()]
IDS = [f"{place}: {name}" for place, name, _ in QUERIES]
# What Grafana 11.6 asks of the parts that are used here; its own schema is not in the package of its types.
SCHEMA = {
    "type": "object",
    "required": ["title", "uid", "panels", "templating", "schemaVersion", "tags", "time", "links"],
    "properties": {
        "title": {"type": "string", "minLength": 1},
        "uid": {"type": "string", "pattern": "^[a-z-]{1,40}$"},
        "tags": {"type": "array", "items": {"type": "string"}},
        "schemaVersion": {"type": "integer", "minimum": 36},
        "templating": {
            "type": "object",
            "properties": {
                "list": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "required": ["name", "type"],
                        "properties": {"type": {"enum": ["datasource", "query", "interval", "textbox"]}},
                    },
                }
            },
        },
        "panels": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["id", "type", "title", "gridPos"],
                "properties": {
                    "id": {"type": "integer", "minimum": 1},
                    "type": {"enum": ["row", "timeseries", "stat", "bargauge", "table"]},
                    "gridPos": {
                        "type": "object",
                        "required": ["x", "y", "w", "h"],
                        "additionalProperties": False,
                        "properties": {
                            "x": {"type": "integer", "minimum": 0, "maximum": 23},
                            "y": {"type": "integer", "minimum": 0},
                            "w": {"type": "integer", "minimum": 1, "maximum": 24},
                            "h": {"type": "integer", "minimum": 1},
                        },
                    },
                    "targets": {
                        "type": "array",
                        "minItems": 1,
                        "items": {
                            "type": "object",
                            "required": ["refId", "expr", "datasource"],
                            "properties": {
                                "refId": {"type": "string", "pattern": "^[A-Z]$"},
                                "expr": {"type": "string", "minLength": 1},
                                "datasource": {
                                    "type": "object",
                                    "properties": {"uid": {"const": "${datasource}"}, "type": {"const": "prometheus"}},
                                },
                            },
                        },
                    },
                },
            },
        },
    },
}


@pytest.mark.medium
def test_what_is_committed_is_what_is_generated():
    done = subprocess.run([sys.executable, ROOT / "deploy/grafana/generate.py", "--check"], check=False)
    assert done.returncode == 0


@pytest.mark.parametrize("name", NAMES)
def test_dashboards_keep_to_the_schema(name):
    jsonschema.validate(boards()[name], SCHEMA)


@pytest.mark.parametrize("name", NAMES)
def test_grafanas_own_types_lose_nothing(name):
    board = boards()[name]
    again = JSONEncoder(sort_keys=True, indent=2).encode(Dashboard.from_json(board))
    assert again + "\n" == (ROOT / "deploy/grafana/dashboards" / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", NAMES)
def test_panels_can_be_read_and_do_not_overlap(name):
    board = boards()[name]
    everything = board["panels"]
    assert len({panel["id"] for panel in everything}) == len(everything)
    for panel in panels(board):
        assert panel["description"].endswith(".")
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert panel["datasource"]["uid"] == "${datasource}"
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
    squares = [
        {(x, y) for x in range(p["x"], p["x"] + p["w"]) for y in range(p["y"], p["y"] + p["h"])}
        for p in (panel["gridPos"] for panel in everything)
    ]
    assert not any(one & other for one, other in itertools.combinations(squares, 2))
    assert all(x < 24 for square in squares for x, _ in square)
    variables = {variable["name"] for variable in board["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", "".join(target["expr"] for p in panels(board) for target in p["targets"])))
    assert used <= variables | {"__rate_interval", "__range"}
    assert variables >= {"datasource", "run_id", "sampling", "docs"}
    assert {link["url"] for link in board["links"]} == {
        *(f"/d/{other['uid']}" for other in boards().values() if other is not board and other["uid"] != board["uid"]),
        "${docs}/dashboards.html",
    }


@pytest.mark.parametrize("name", NAMES)
def test_panels_lead_to_the_section_that_has_a_metric_of_theirs(name):
    page = (ROOT / "docs/metrics.md").read_text(encoding="utf-8")
    sections = {title.lower(): text for title, text in re.findall(r"(?ms)^## (\w+)\n(.*?)(?=^## |\Z)", page)}
    for panel in panels(boards()[name]):
        (link,) = panel["links"]
        section = re.fullmatch(r"\$\{docs\}/metrics\.html#(\w+)", link["url"])[1]
        named = {re.sub(r"_bucket$", "", metric) for metric in metrics_in(panel["targets"][0]["expr"])}
        assert not named or any(f"`{metric}`" in sections[section] for metric in named), (panel["title"], section)


@pytest.mark.medium
@pytest.mark.parametrize(("place", "name", "expr"), QUERIES, ids=IDS)
def test_queries_are_about_metrics_that_there_are(place, name, expr):
    recorded = {rule for _, rule, _ in rules()}
    assert metrics_in(expr) <= EXPOSED
    assert set(re.findall(r"run:[\w:]+", expr)) <= recorded
    assert metrics_in(expr) or "run:" in expr or "up{" in expr
    named = {re.sub(r"_(bucket|sum|count)$", "", m) if m not in LABELS else m for m in metrics_in(written_out(expr))}
    # Every label that is grouped by, all metrics of the query have, or one has and the others are joined by run_id.
    assert labels_by(expr) <= {"le", "instance"} | set().union(*(LABELS[metric] for metric in named))
    for metric, selected in re.findall(r"(pimserve_\w+)\{([^}]*)\}", expr):
        labels = LABELS[re.sub(r"_(bucket|sum|count)$", "", metric) if metric not in LABELS else metric]
        assert set(re.findall(r"(\w+)=", selected)) <= labels | {"le"}


def test_variables_are_patterns_and_select_all_metrics():
    """Grafana puts alternatives with escaped signs in, or .+ for all: an equality would find neither."""
    for place, name, expr in panel_queries():
        for variable in ("run_id", "engine", "role"):
            assert expr.count(f"${variable}") == expr.count(f'{variable}=~"${variable}"'), (place, name)
        assert expr.count('run_id=~"$run_id"') == len(re.findall(r"pimserve_\w+", expr)), (place, name)


@pytest.mark.parametrize("name", NAMES)
def test_lines_windows_and_colours_are_as_panels_say(name):
    for panel in panels(boards()[name]):
        kind, defaults = panel["type"], panel["fieldConfig"]["defaults"]
        for target in panel["targets"]:
            # Else rates of runs that are sampled seldom have windows without two samples.
            assert target["interval"] == "$sampling"
            assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= labels_by(target["expr"])
            # What is no range would be empty five minutes after a run that was backfilled.
            assert target["range"] == (kind != "table")
            assert kind != "table" or "[$__range]" in target["expr"]
        dashed = [override["matcher"]["options"] for override in panel["fieldConfig"]["overrides"]]
        assert ("Dashed" in panel["description"]) == (dashed == ["/^limit/"])
        assert ("Dashed" in panel["description"]) == any(
            t["legendFormat"].startswith("limit") for t in panel["targets"]
        )
        if kind == "stat":  # Grafana's default makes all above 80 red
            assert defaults["thresholds"]["steps"]
        if kind == "bargauge":
            assert defaults["color"]["mode"] == "palette-classic-by-name"


def test_every_family_is_to_be_seen():
    shown = " ".join(expr for _, _, expr in panel_queries())
    assert {name for name in KINDS if name not in shown} == set()


def test_windows_of_grafana_fit_the_scrapes_of_the_compose_file():
    source = yaml.safe_load((ROOT / "deploy/grafana/provisioning/datasources/prometheus.yaml").read_text())
    scrapes = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())["global"]["scrape_interval"]
    assert source["datasources"][0]["jsonData"]["timeInterval"] == scrapes
    for board in boards().values():
        sampling = next(each for each in board["templating"]["list"] if each["name"] == "sampling")
        assert sampling["current"]["value"] == scrapes
        assert scrapes in sampling["query"].split(",")


@pytest.mark.parametrize(("place", "name", "expr"), QUERIES, ids=IDS)
def test_counters_are_looked_at_by_their_growth(place, name, expr):
    whole = place == "pimserve-comparison.json" or name in {"Progress", "Hosts replaced", "Spans audited"}
    for metric in metrics_in(expr):
        counter = metric.endswith(("_total", "_bucket"))
        grown = re.search(rf"(rate|increase)\({metric}(\{{[^}}]*\}})?\[", expr)
        assert bool(grown) == (counter and not whole), metric
    if "rate(" in expr and place.endswith(".json"):
        assert "$__rate_interval" in expr
    if "histogram_quantile" in expr:
        assert re.search(r"histogram_quantile\(0\.\d+, sum by \(le, ", expr)
        assert expr.endswith(" >= 0")  # NaN is not, so runs without samples have no value


@pytest.mark.parametrize(("place", "name", "expr"), QUERIES, ids=IDS)
def test_histograms_are_looked_at_for_all_engines_since_they_may_be_merged(place, name, expr):
    for metric in metrics_in(expr):
        if metric.endswith("_bucket"):
            assert "engine" not in expr, (place, name)


@pytest.mark.medium
@pytest.mark.parametrize(("place", "name", "expr"), QUERIES, ids=IDS)
def test_rates_are_per_second_of_simulated_time(place, name, expr):
    text = written_out(expr)
    if "rate(" in text and "histogram_quantile" not in text:
        # Over the virtual clock, or over another counter that grows with it; the wall clock does too, in each run.
        above, _, below = text.partition(" / ")
        assert "pimserve_virtual_time_seconds_total" in text or ("rate(" in above and "rate(" in below)


def test_the_console_page_is_about_metrics_that_there_are():
    text = CONSOLE.read_text(encoding="utf-8")
    assert metrics_in(text) <= EXPOSED
    assert len(metrics_in(text)) > 8
    assert "http://" not in text
    assert "https://" not in text


def test_promtool_takes_every_query_and_rule(tmp_path):
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian package prometheus)")
    records = [f"  - record: q{index}\n    expr: {substituted(expr)!r}" for index, (_, _, expr) in enumerate(QUERIES)]
    (tmp_path / "queries.yml").write_text("groups:\n- name: q\n  rules:\n" + "\n".join(records) + "\n")
    folder = ROOT / "deploy/prometheus"
    for command in (
        ["check", "rules", tmp_path / "queries.yml", folder / "rules/recording.yml", folder / "rules/alerts.yml"],
        ["test", "rules", folder / "rules/tests.yml"],
        ["check", "config", "--syntax-only", folder / "prometheus.yml", folder / "local.yml"],
    ):
        done = subprocess.run([promtool, *command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
