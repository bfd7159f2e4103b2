"""Stages of a fleet that was run, for the terminal and as plain data; and stages as a command line names them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from rich.console import RenderableType
from rich.table import Table

from pimserve.arrays import FloatArray
from pimserve.cluster.base.figures import count, figure
from pimserve.errors import InputError

if TYPE_CHECKING:
    from pimserve.cluster.validation.fleet_run import StageOutcome

_COLUMNS = {
    "rate_per_s": "rate/s",
    "requests": "requests",
    "requests_per_s": "req/s",
    "output_tokens_per_s": "tok/s",
    "ttft_mean_s": "TTFT mean s",
    "ttft_p50_s": "p50",
    "ttft_p90_s": "p90",
    "e2e_mean_s": "E2E mean s",
    "e2e_p90_s": "p90",
}


_SHARES = (50, 90, 95, 99)


def read_stages(texts: Sequence[str]) -> list[tuple[float, float]]:
    """Stages out of RATE:SECONDS.

    Raises:
        InputError: one is not of that form, or has no numbers above 0.
    """
    stages = []
    for text in texts:
        try:
            rate, seconds = map(float, text.split(":"))
        except ValueError:
            raise InputError("--stage", f"{text!r} is not RATE:SECONDS, such as 12:60") from None
        if not (0 < rate < math.inf and 0 < seconds < math.inf):
            raise InputError("--stage", f"{text!r}: rate and seconds must be above 0")
        stages.append((rate, seconds))
    return stages


def stage_rows(stages: Sequence[StageOutcome]) -> list[Mapping[str, float | None]]:
    """Figures of stages, a mapping for each."""
    return [
        {
            "rate_per_s": stage.rate_per_s or None,  # a fleet without stages has none
            "requests": stage.requests,
            "requests_per_s": stage.requests_per_s,
            "output_tokens_per_s": stage.output_tokens_per_s,
            **_latency("ttft", stage.ttft_s),
            **_latency("e2e", stage.e2e_s),
        }
        for stage in stages
    ]


def _latency(name: str, seconds: FloatArray) -> dict[str, float]:
    """Its mean and percentiles."""
    shares = {f"{name}_p{share}_s": float(np.percentile(seconds, share)) for share in _SHARES}
    return {f"{name}_mean_s": float(seconds.mean()), **shares}


def stages_report(stages: Sequence[StageOutcome]) -> RenderableType:
    """A table of them."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for head in _COLUMNS.values():
        table.add_column(head, justify="right", no_wrap=True)
    for row in stage_rows(stages):
        table.add_row(*(_cell(key, row[key]) for key in _COLUMNS))
    return table


def _cell(key: str, value: float | None) -> str:
    if value is None:
        return "-"
    return count(int(value)) if key == "requests" else figure(value)
