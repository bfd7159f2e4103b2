"""Figures of each stage of a rate that steps (`workload.arrival.rate_series`).

A stage lasts from one step of the series to the next. Where the series repeats, a stage is all of its stretches
together. Only what lies in the measured window counts, and only while requests arrive: those that arrived in a stage
(latencies, SLO), and those that finished while it lasted (throughput).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pimserve.loadgen.spec import PS_PER_S
from pimserve.scheduler.latencies import LATENCIES, Rows
from pimserve.scheduler.outcomes import ALL, counts, outcomes
from pimserve.scheduler.requests import FINISHED
from pimserve.scheduler.simulation import Served
from pimserve.scheduler.slo import SloSpec
from pimserve.scheduler.summary import of_requests


def stage_figures(served: Served, slo: SloSpec) -> dict[str, Any]:
    """{"stages": [...]}, one for each; times in s. Empty without stages, or where a command changed the arrivals."""
    stages, table = served.workload.stages, served.table
    # A run that is cut off has those that arrived before.
    if stages is None or not np.array_equal(table["arrival_ps"], served.workload.arrival_ps[: len(table)]):
        return {}
    start, end = served.window_s
    end = min(end, stages.end_s)
    arrival_s, finish_s = table["arrival_ps"] / PS_PER_S, table["finish_ps"] / PS_PER_S
    finished = table["status"] == FINISHED
    arrived_in = np.where((arrival_s >= start) & (arrival_s < end), stages.at(arrival_s), -1)
    finished_in = np.where(finished & (finish_s >= start) & (finish_s < end), stages.at(finish_s), -1)
    return {
        "stages": [
            {
                "from_s": stage.from_s,
                "to_s": stage.to_s,
                "rate_per_s": stage.rate_per_s,
                **_figures(served, slo, arrived_in == number, finished_in == number, time_s),
            }
            for number, (stage, time_s) in enumerate(zip(stages.stages, stages.times_s(start, end), strict=True))
        ]
    }


def _figures(served: Served, slo: SloSpec, arrived: Rows, finished: Rows, time_s: float) -> dict[str, Any]:
    """Of a stage in which these requests arrived and finished, and which lasted so long."""
    table, latencies = served.table, served.latencies(arrived)
    outcome = counts(outcomes(latencies, slo)).get(ALL)
    return {
        "time_s": time_s,
        "requests": int(arrived.sum()),
        "offered_requests_per_s": int(arrived.sum()) / time_s if time_s else None,
        "throughput": {
            "requests_per_s": int(finished.sum()) / time_s if time_s else None,
            "output_tokens_per_s": int(table["emitted_tokens"][finished].sum()) / time_s if time_s else None,
        },
        "latency_s": {name: of_requests(latencies[name]) for name in LATENCIES},
        "slo": {
            "attainment": outcome["met"] / known if outcome and (known := outcome["met"] + outcome["missed"]) else None,
            "censored": outcome["censored"] if outcome else 0,
        },
    }
