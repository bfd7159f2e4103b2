"""Stages of a fleet that was run, for the terminal and as plain data; and stages as a command line names them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from rich.console import RenderableType
from rich.table import Table

from pimserve.cluster.base.figures import count, figure
from pimserve.errors import InputError

if TYPE_CHECKING:
    from pimserve.cluster.validation.fleet_run import StageOutcome

_COLUMNS = {
    "rate_per_s": "rate/s",
    "requests": "requests",
    "output_tokens_per_s": "out tok/s",
    "ttft_mean_s": "TTFT mean s",
    "ttft_p50_s": "p50",
    "ttft_p90_s": "p90",
    "e2e_p50_s": "E2E p50 s",
}


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


def stage_rows(stages: Sequence[StageOutcome]) -> list[Mapping[str, float]]:
    """Figures of stages, a mapping for each."""
    return [
        {
            "rate_per_s": stage.rate_per_s,
            "requests": stage.requests,
            "output_tokens_per_s": stage.output_tokens_per_s,
            "ttft_mean_s": float(stage.ttft_s.mean()),
            "ttft_p50_s": float(np.percentile(stage.ttft_s, 50)),
            "ttft_p90_s": float(np.percentile(stage.ttft_s, 90)),
            "e2e_p50_s": float(np.percentile(stage.e2e_s, 50)),
        }
        for stage in stages
    ]


def stages_report(stages: Sequence[StageOutcome]) -> RenderableType:
    """A table of them."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for head in _COLUMNS.values():
        table.add_column(head, justify="right", no_wrap=True)
    for row in stage_rows(stages):
        table.add_row(*(count(int(value)) if key == "requests" else figure(value) for key, value in row.items()))
    return table
