"""Throughput, goodput, SLO, latency and queues of runs."""

from __future__ import annotations

from panels import Board, Panel, Row
from promql import OF_RUN, growth, per_second, percentiles, share, total

_SLO = "pimserve_slo_requests_total"
_MET = f'{OF_RUN},slo="all",result="met"'
_FINISHED = per_second("pimserve_requests_total", of=f'{OF_RUN},outcome="finished"')


def _limit(slo: str) -> tuple[str, str]:
    return f'max by (run_id) (pimserve_slo_limit_seconds{{{OF_RUN},slo="{slo}"}})', "limit {{run_id}}"


_NOW = Row(
    "Now",
    (
        Panel(
            "Output tokens per second",
            "short",
            "Tokens sampled per simulated second, all replicas together.",
            ((per_second("pimserve_generation_tokens_total"), "{{run_id}}"),),
            "stat",
            6,
            5,
        ),
        Panel(
            "Requests finished per second", "reqps", "Per simulated second.", ((_FINISHED, "{{run_id}}"),), "stat", 6, 5
        ),
        Panel(
            "SLO attainment",
            "percentunit",
            "Share of the requests that left lately which met every limit; rejected ones did not. Red below 90 %, green"
            " from 99 %. Empty where a run has no limits.",
            ((share(growth(_SLO, of=_MET), growth(_SLO, of=f'{OF_RUN},slo="all"')), "{{run_id}}"),),
            "stat",
            6,
            5,
            most=1,
            steps=((None, "red"), (0.9, "yellow"), (0.99, "green")),
        ),
        Panel(
            "Progress",
            "percentunit",
            "Requests that have left over all of the workload.",
            ((share(total("pimserve_requests_total"), total("pimserve_requests_expected")), "{{run_id}}"),),
            "bars",
            6,
            5,
            most=1,
        ),
    ),
)

_THROUGHPUT = Row(
    "Throughput",
    (
        Panel(
            "Tokens per second",
            "short",
            "Prompt tokens computed (recomputed ones too) and tokens sampled, per simulated second.",
            (
                (per_second("pimserve_generation_tokens_total"), "output {{run_id}}"),
                (per_second("pimserve_prompt_tokens_total"), "prompt {{run_id}}"),
            ),
        ),
        Panel(
            "Requests per second",
            "reqps",
            "Arrivals, completions and goodput (completions that met every limit), per simulated second.",
            (
                (per_second("pimserve_requests_arrived_total"), "arrived {{run_id}}"),
                (_FINISHED, "finished {{run_id}}"),
                (per_second(_SLO, of=_MET), "good {{run_id}}"),
            ),
        ),
    ),
)

_LATENCY = Row(
    "Latency",
    (
        Panel(
            "Time to first token",
            "s",
            "From arrival to the first token, of measured requests that finished. Dashed: the limit, if there is one.",
            (*percentiles("pimserve_time_to_first_token_seconds"), _limit("ttft")),
        ),
        Panel(
            "Time per output token",
            "s",
            "Mean gap between tokens of each request that finished. Dashed: the limit, if there is one.",
            (*percentiles("pimserve_time_per_output_token_seconds"), _limit("tpot")),
        ),
        Panel(
            "Inter-token latency",
            "s",
            "Every gap between two tokens.",
            percentiles("pimserve_inter_token_latency_seconds"),
        ),
        Panel(
            "End-to-end latency",
            "s",
            "From arrival to the last token. Dashed: the limit, if there is one.",
            (*percentiles("pimserve_e2e_request_latency_seconds"), _limit("e2e")),
        ),
    ),
)

_QUEUE = Row(
    "Queue",
    (
        Panel(
            "Requests",
            "short",
            "Running ones have KV blocks; waiting ones do not.",
            (
                (total("pimserve_requests_running"), "running {{run_id}}"),
                (total("pimserve_requests_waiting"), "waiting {{run_id}}"),
            ),
        ),
        Panel(
            "Time in the queue",
            "s",
            "From arrival to the first step.",
            percentiles("pimserve_request_queue_time_seconds"),
        ),
        Panel(
            "Time in prefill",
            "s",
            "From the first step to the first token.",
            percentiles("pimserve_request_prefill_time_seconds"),
        ),
        Panel(
            "Time in decode",
            "s",
            "From the first token to the last.",
            percentiles("pimserve_request_decode_time_seconds"),
        ),
        Panel(
            "KV cache in use",
            "percentunit",
            "Mean and fullest of the replicas.",
            (
                (f"avg by (run_id) (pimserve_kv_cache_usage_ratio{{{OF_RUN}}})", "mean {{run_id}}"),
                (f"max by (run_id) (pimserve_kv_cache_usage_ratio{{{OF_RUN}}})", "fullest {{run_id}}"),
            ),
            most=1,
        ),
        Panel(
            "Limits missed",
            "reqps",
            "Requests per simulated second that missed each limit.",
            ((per_second(_SLO, of=f'{OF_RUN},result="missed"', by=("run_id", "slo")), "{{slo}} {{run_id}}"),),
        ),
    ),
)

_CLIENTS = Row(
    "Clients",
    (
        Panel(
            "Sessions",
            "short",
            "Active ones have begun and have requests under way or to come; of these, those that think have none under"
            " way. 0 without sessions.",
            (
                (total("pimserve_sessions_active"), "active {{run_id}}"),
                (total("pimserve_sessions_thinking"), "thinking {{run_id}}"),
            ),
        ),
        Panel(
            "Waiting at the client",
            "short",
            "Requests that are due, under a cap on requests in flight; users of a closed loop who think. 0 without.",
            (
                (total("pimserve_client_requests_waiting"), "requests {{run_id}}"),
                (total("pimserve_users_thinking"), "users {{run_id}}"),
            ),
        ),
    ),
)

OVERVIEW = Board(
    "pimserve-overview",
    "pimserve: overview",
    "Throughput, goodput, SLO, latency and queues of simulated runs, per second of simulated time.",
    (_NOW, _THROUGHPUT, _LATENCY, _QUEUE, _CLIENTS),
)
