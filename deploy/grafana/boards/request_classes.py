"""Classes of requests, side by side."""

from __future__ import annotations

from panels import Panel, Row
from promql import OF_RUN, quantile_of_all, share, total

from boards.percentile_limits import limit_panels

_BY = ("run_id", "slo_class")
_CLASS = "{{slo_class}} {{run_id}}"
_SLO = "pimserve_class_slo_requests_total"
_COLUMNS = (("run_id", "run"), ("slo_class", "class"), ("tenant", "tenant"), ("priority", "priority"))
_INFO = f"last_over_time(pimserve_class_info{{{OF_RUN}}}[$__range])"

REQUEST_CLASSES = Row(
    "Classes of requests",
    (
        Panel(
            "Classes",
            "short",
            "Whose requests they are. This row is empty where the workload has no classes.",
            ((f"max by ({', '.join(name for name, _ in _COLUMNS)}) ({_INFO})", ""),),
            "table",
            24,
            6,
            columns=_COLUMNS,
        ),
        Panel(
            "Requests of each class",
            "short",
            "That have left, of the measured window.",
            ((total("pimserve_class_requests_total", by=_BY), _CLASS),),
            "bars",
            12,
        ),
        Panel(
            "SLO attainment of each class",
            "percentunit",
            "Share of its requests which met every limit of the class; empty without limits.",
            ((share(total(_SLO, of=f'{OF_RUN},result="met"', by=_BY), total(_SLO, by=_BY)), _CLASS),),
            "bars",
            12,
            most=1,
        ),
        *(
            Panel(
                f"{title} by class, p99",
                "s",
                "Of all measured requests of the class, within 10 %.",
                ((quantile_of_all(99, f"pimserve_class_{metric}_seconds", by=_BY), _CLASS),),
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
        *limit_panels("class", _CLASS),
    ),
)
