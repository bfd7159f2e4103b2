"""The PromQL of dashboards, rules and console, and what it names."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
DASHBOARDS = sorted((ROOT / "deploy/grafana/dashboards").glob("*.json"))
RULES = sorted(path for path in (ROOT / "deploy/prometheus/rules").glob("*.yml") if path.name != "tests.yml")
CONSOLE = ROOT / "deploy/prometheus/consoles/index.html"


def boards() -> dict[str, dict[str, Any]]:
    """Dashboards by file name."""
    return {path.name: json.loads(path.read_text(encoding="utf-8")) for path in DASHBOARDS}


def panels(board: dict[str, Any]) -> list[dict[str, Any]]:
    """Panels of a dashboard, without its rows."""
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def panel_queries() -> Iterator[tuple[str, str, str]]:
    """Dashboard, panel and PromQL of every query."""
    for name, board in boards().items():
        for panel in panels(board):
            for target in panel["targets"]:
                yield name, panel["title"], target["expr"]


def rules() -> Iterator[tuple[str, str, str]]:
    """File, name and PromQL of every rule."""
    for path in RULES:
        for group in yaml.safe_load(path.read_text(encoding="utf-8"))["groups"]:
            for rule in group["rules"]:
                yield path.name, rule.get("record") or rule["alert"], rule["expr"]


def substituted(expr: str, window: str = "30s", run: str = ".+") -> str:
    """PromQL with Grafana's variables filled in."""
    values = {"__rate_interval": window, "__range": "1h", "run_id": run, "engine": ".+", "role": ".+"}
    return re.sub(r"\$(\w+)", lambda found: values[found[1]], expr)


def written_out(expr: str) -> str:
    """PromQL of a rule with what it names of other rules put in."""
    recorded = {name: rule for _, name, rule in rules()}
    text = re.sub(r"(run:\w+:\w+)\[(\w+)\]", r"\1[\2:]", expr)  # ranges of expressions are subqueries
    return re.sub(r"run:\w+:\w+", lambda found: f"({written_out(recorded[found[0]])})", text)


def labels_by(expr: str) -> set[str]:
    """Labels that an expression groups or matches by."""
    return {label for found in re.findall(r"(?:by|on) \(([^)]*)\)", expr) for label in re.findall(r"\w+", found)}


def metrics_in(text: str) -> set[str]:
    """Names of the exporter's metrics in a text."""
    return set(re.findall(r"(?<![\w:])pimserve_[a-z0-9_]+", text))
