"""Figures of each stage of a rate that steps (`rate_series` or `stages` of `workload.arrival`).

A stage lasts from one step of the series to the next. Where the series repeats, a stage is all of its stretches
together. Only what lies in the measured window counts, and only while requests arrive: those that arrived in a stage
(latencies, SLO), and those that finished while it lasted (throughput).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pimserve.arrays import BoolArray
from pimserve.loadgen.objectives import Objectives
from pimserve.loadgen.rate_stages import Stage
from pimserve.loadgen.spec import PS_PER_S
from pimserve.scheduler.distributions import of_requests
from pimserve.scheduler.latencies import LATENCIES
from pimserve.scheduler.outcomes import ALL, counts, outcomes
from pimserve.scheduler.part_sections import StageFigures, StageLatencies, StageSlo, StageThroughput
from pimserve.scheduler.requests import FINISHED
from pimserve.scheduler.sessions import Sessions
from pimserve.scheduler.simulation import Served


def stage_figures(served: Served, objectives: Objectives, percentiles: Sequence[float]) -> list[StageFigures] | None:
    """One for each stage, with these percentiles; times in s.

    None without stages, or where a command changed the arrivals. Turns that wait for others are of the stage in which
    they were sent.
    """
    stages, table = served.workload.stages, served.table
    if stages is None or not _as_planned(served):
        return None
    start, end = served.window_s
    end = min(end, stages.end_s)
    arrival_s, finish_s = table["arrival_ps"] / PS_PER_S, table["finish_ps"] / PS_PER_S
    finished = table["status"] == FINISHED
    arrived_in = np.where((arrival_s >= start) & (arrival_s < end), stages.at(arrival_s), -1)
    finished_in = np.where(finished & (finish_s >= start) & (finish_s < end), stages.at(finish_s), -1)
    times_s = stages.times_s(start, end)
    return [
        _figures(served, objectives, percentiles, stage, arrived_in == number, finished_in == number, times_s[number])
        for number, stage in enumerate(stages.stages)
    ]


def _as_planned(served: Served) -> bool:
    """Whether requests came when the workload said, as far as it did, and no others."""
    arrival_ps, clients, planned = served.table["arrival_ps"], served.clients, len(served.table)
    if isinstance(clients, Sessions):
        if len(clients.turns) != len(arrival_ps):
            return False
        planned = clients.starts
    # A run that is cut off has those that arrived before.
    return np.array_equal(arrival_ps[:planned], served.workload.arrival_ps[:planned])


def _figures(
    served: Served,
    objectives: Objectives,
    percentiles: Sequence[float],
    stage: Stage,
    arrived: BoolArray,
    finished: BoolArray,
    time_s: float,
) -> StageFigures:
    """Of a stage in which these requests arrived and finished, and which lasted so long."""
    latencies = served.latencies(arrived)
    outcome = counts(outcomes(latencies, objectives)).get(ALL)
    requests, tokens = int(arrived.sum()), int(served.table["emitted_tokens"][finished].sum())
    return StageFigures(
        from_s=stage.from_s,
        to_s=stage.to_s,
        rate_per_s=stage.rate_per_s,
        time_s=time_s,
        requests=requests,
        offered_requests_per_s=requests / time_s if time_s else None,
        throughput=StageThroughput(
            requests_per_s=int(finished.sum()) / time_s if time_s else None,
            output_tokens_per_s=tokens / time_s if time_s else None,
        ),
        latency_s=StageLatencies(**{name: of_requests(latencies[name], percentiles) for name in LATENCIES}),
        slo=StageSlo(
            attainment=outcome["met"] / known if outcome and (known := outcome["met"] + outcome["missed"]) else None,
            censored=outcome["censored"] if outcome else 0,
        ),
    )
