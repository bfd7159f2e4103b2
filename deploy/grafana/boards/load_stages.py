"""Stages of an arrival rate that steps, side by side."""

from __future__ import annotations

from panels import Panel, Row
from promql import OF_RUN, quantile_of_all, share, total

_BY = ("run_id", "stage")
_STAGE = "stage {{stage}} {{run_id}}"
_SLO = "pimserve_stage_slo_requests_total"

LOAD_STAGES = Row(
    "Stages of the load",
    (
        Panel(
            "Arrival rate of each stage",
            "reqps",
            "As the workload asks for it, per simulated second. This row is empty where the rate has no steps.",
            ((f"max by (run_id, stage) (pimserve_stage_offered_rate{{{OF_RUN}}})", _STAGE),),
            "bars",
            8,
        ),
        Panel(
            "Requests of each stage",
            "short",
            "That arrived in it and have left.",
            ((total("pimserve_stage_requests_total", by=_BY), _STAGE),),
            "bars",
            8,
        ),
        Panel(
            "SLO attainment of each stage",
            "percentunit",
            "Share of its requests which met every limit; empty without limits.",
            ((share(total(_SLO, of=f'{OF_RUN},result="met"', by=_BY), total(_SLO, by=_BY)), _STAGE),),
            "bars",
            8,
            most=1,
        ),
        *(
            Panel(
                f"{title} by stage, p99",
                "s",
                "Of all measured requests of the stage, within 10 %.",
                ((quantile_of_all(99, f"pimserve_stage_{metric}_seconds", by=_BY), _STAGE),),
                "bars",
                6,
            )
            for title, metric in (
                ("Time to first token", "time_to_first_token"),
                ("Time per output token", "time_per_output_token"),
                ("End-to-end latency", "e2e_request_latency"),
                ("Queue time", "request_queue_time"),
            )
        ),
    ),
)
