"""Stages of a rate that steps, for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from pimserve.cluster.base.figures import count, figure, scaled, share


def stage_table(stages: Sequence[Mapping[str, Any]]) -> RenderableType:
    """A row for each stage; 80 columns wide at most."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("stage", no_wrap=True)
    for column in ("requests", "offered\n/s", "finished\n/s", "TTFT\np50", "TTFT\np99", "TPOT\np99", "SLO"):
        table.add_column(column, justify="right", no_wrap=True)
    for stage in stages:
        latency = stage["latency_s"]
        table.add_row(
            Text(f"{stage['from_s']:g} to {stage['to_s']:g} s"),
            count(stage["requests"]),
            figure(stage["offered_requests_per_s"]),
            figure(stage["throughput"]["requests_per_s"]),
            scaled(latency["ttft"]["p50"], "s"),
            scaled(latency["ttft"]["p99"], "s"),
            scaled(latency["tpot"]["p99"], "s"),
            share(stage["slo"]["attainment"]),
        )
    return table
