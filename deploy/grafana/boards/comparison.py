"""Whole runs side by side."""

from __future__ import annotations

from panels import Board, Panel, Row
from promql import OF_RUN, quantile_of_all, share, total

from boards.load_stages import LOAD_STAGES
from boards.percentile_limits import PERCENTILE_LIMITS
from boards.request_classes import REQUEST_CLASSES

_TIME = f"({total('pimserve_virtual_time_seconds_total')} > 0)"
_TOKENS = total("pimserve_generation_tokens_total")
_JOULES = "pimserve_device_energy_joules_total"
_SLO = "pimserve_slo_requests_total"
_ALL = f'{OF_RUN},slo="all"'
_COLUMNS = (
    ("run_id", "run"),
    ("name", "name"),
    ("model_name", "model"),
    ("device_model", "device"),
    ("setting", "costs"),
    ("workload", "workload"),
    ("policy", "policy"),
    ("seed", "seed"),
    ("speed", "pace"),
    ("version", "version"),
)
_INFO = f"last_over_time(pimserve_run_info{{{OF_RUN}}}[$__range])"

_RUNS = Row(
    "Runs",
    (
        Panel(
            "What they are",
            "short",
            "Model, device, setting of the costs, workload, policy of the queue, seed and version of the runs that were"
            " there meanwhile.",
            ((f"max by ({', '.join(name for name, _ in _COLUMNS)}) ({_INFO})", ""),),
            "table",
            24,
            7,
            columns=_COLUMNS,
        ),
    ),
)

_THROUGHPUT = Row(
    "Throughput and energy",
    (
        Panel(
            "Output tokens per second",
            "short",
            "Of simulated time, since the beginning.",
            ((f"{_TOKENS} / {_TIME}", "{{run_id}}"),),
            "bars",
            8,
        ),
        Panel(
            "Output tokens per second and device",
            "short",
            "Of simulated time, since the beginning.",
            ((f"{_TOKENS} / {_TIME} / {total('pimserve_devices')}", "{{run_id}}"),),
            "bars",
            8,
        ),
        Panel(
            "Energy per output token",
            "joule",
            "Active: of work; passive: what devices draw anyway, missing where it is not known or left out.",
            (
                (share(total(_JOULES), _TOKENS), "{{run_id}}"),
                (share(total(_JOULES, of=f'{OF_RUN},part!="passive"'), _TOKENS), "active {{run_id}}"),
                (share(total(_JOULES, of=f'{OF_RUN},part="passive"'), _TOKENS), "passive {{run_id}}"),
            ),
            "bars",
            8,
        ),
    ),
)

_LATENCY = Row(
    "Latency",
    tuple(
        Panel(
            f"{title}, p{percent}",
            "s",
            "Of all measured samples since the beginning, within 10 %.",
            ((quantile_of_all(percent, metric), "{{run_id}}"),),
            "bars",
            8,
        )
        for percent in (50, 99)
        for title, metric in (
            ("Time to first token", "pimserve_time_to_first_token_seconds"),
            ("Time per output token", "pimserve_time_per_output_token_seconds"),
            ("End-to-end latency", "pimserve_e2e_request_latency_seconds"),
        )
    ),
)

_POLICY = f"max by (run_id, policy) ({_INFO})"
_QUEUE = Row(
    "Queue, by policy",
    tuple(
        Panel(
            f"Time in the queue, p{percent}",
            "s",
            "Of all measured requests since the beginning, within 10 %, with the policy by which they were admitted.",
            (
                (
                    f"{_POLICY} * on (run_id) group_left () "
                    + quantile_of_all(percent, "pimserve_request_queue_time_seconds"),
                    "{{policy}} {{run_id}}",
                ),
            ),
            "bars",
            12,
        )
        for percent in (50, 99)
    ),
)

_REQUESTS = Row(
    "Requests",
    (
        Panel(
            "Finished",
            "short",
            "Requests.",
            ((total("pimserve_requests_total", of=f'{OF_RUN},outcome="finished"'), "{{run_id}}"),),
            "stat",
            8,
            5,
        ),
        Panel(
            "SLO attainment",
            "percentunit",
            "Of the requests that have left since the beginning; empty without limits.",
            ((share(total(_SLO, of=f'{_ALL},result="met"'), total(_SLO, of=_ALL)), "{{run_id}}"),),
            "stat",
            8,
            5,
            most=1,
            steps=((None, "red"), (0.9, "yellow"), (0.99, "green")),
        ),
        Panel("Simulated time", "s", "That has passed.", ((_TIME, "{{run_id}}"),), "stat", 8, 5),
        Panel(
            "Stability",
            "short",
            "Whether what came was served: 1 of the state that a run has once it has ended (steady; saturated, so that"
            " latencies grow with the length of the run; or too short to tell), 0 of all until then.",
            ((total("pimserve_run_stability", by=("run_id", "state")), "{{run_id}}: {{state}}"),),
            "stat",
            8,
            5,
        ),
        Panel(
            "Rejected",
            "short",
            "Requests, by what they were too long for: max_model_len, or the KV cache of a replica.",
            ((total("pimserve_admission_rejections_total", by=("run_id", "reason")), "{{reason}} {{run_id}}"),),
            "stat",
            8,
            5,
        ),
        Panel(
            "Censored",
            "short",
            "Measured requests that the end of the run cut off before it was known whether they meet all limits: not"
            " part of the SLO attainment. Empty without limits.",
            ((total("pimserve_slo_censored_requests_total", of=_ALL), "{{run_id}}"),),
            "stat",
            8,
            5,
        ),
    ),
)

COMPARISON = Board(
    "pimserve-comparison",
    "pimserve: comparison of runs",
    "Figures of whole runs side by side, since their beginning. Runs with ideal and with measured costs do not compare:"
    " the table of runs says which is which.",
    (_RUNS, _THROUGHPUT, _LATENCY, _QUEUE, _REQUESTS, PERCENTILE_LIMITS, LOAD_STAGES, REQUEST_CLASSES),
)
