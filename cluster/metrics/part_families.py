"""Metric families of parts of the requests: those of each stage of an arrival rate that steps, and of each class."""

from __future__ import annotations

from pimserve.cluster.metrics.buckets import E2E, ITL, TTFT
from pimserve.cluster.metrics.family import CLASS, CLASS_INFO, STAGE, Family

PART_FAMILIES = (
    # Stages of an arrival rate that steps.
    Family("pimserve_stage_offered_rate", "gauge", "Mean arrival rate of the stage, requests per second.", STAGE),
    Family(
        "pimserve_stage_requests_total",
        "counter",
        "Requests that arrived in the stage, in the measured window, and have left, by how.",
        (*STAGE, "outcome"),
    ),
    Family(
        "pimserve_stage_slo_requests_total",
        "counter",
        "Those of them of which it is known, by whether they met all limits.",
        (*STAGE, "result"),
    ),
    Family(
        "pimserve_stage_time_to_first_token_seconds",
        "histogram",
        "First token minus arrival, of requests that arrived in the stage, in the measured window.",
        STAGE,
        TTFT,
        "ttft_s",
    ),
    Family(
        "pimserve_stage_time_per_output_token_seconds",
        "histogram",
        "Time from first to last token over the tokens after the first, of these requests.",
        STAGE,
        ITL,
        "tpot_s",
    ),
    Family(
        "pimserve_stage_e2e_request_latency_seconds",
        "histogram",
        "Last token minus arrival, of these requests.",
        STAGE,
        E2E,
        "e2e_s",
    ),
    Family(
        "pimserve_stage_request_queue_time_seconds",
        "histogram",
        "First time in a step minus arrival, of these requests.",
        STAGE,
        E2E,
    ),
    # Classes of requests.
    Family("pimserve_class_info", "info", "Who sends requests of the class.", CLASS_INFO),
    Family(
        "pimserve_class_requests_total",
        "counter",
        "Requests of the class that arrived in the measured window and have left, by how.",
        (*CLASS, "outcome"),
    ),
    Family(
        "pimserve_class_slo_requests_total",
        "counter",
        "Those of them of which it is known, by whether they met all limits of the class.",
        (*CLASS, "result"),
    ),
    Family(
        "pimserve_class_slo_percentile_limit_seconds",
        "gauge",
        "Limit of a percentile of the class; slo as of the run, but for gaps between tokens.",
        (*CLASS, "slo"),
    ),
    Family(
        "pimserve_class_slo_percentile_seconds",
        "gauge",
        "The percentile so far, of measured requests of the class that have left, as of the run.",
        (*CLASS, "slo"),
    ),
    Family(
        "pimserve_class_slo_percentile_margin_seconds",
        "gauge",
        "The limit of the class less the percentile.",
        (*CLASS, "slo"),
    ),
    Family(
        "pimserve_class_slo_percentile_met",
        "gauge",
        "1 while the percentile of the class is at most its limit, 0 while it is above.",
        (*CLASS, "slo"),
    ),
    Family(
        "pimserve_class_time_to_first_token_seconds",
        "histogram",
        "First token minus arrival, of requests of the class that arrived in the measured window.",
        CLASS,
        TTFT,
        "ttft_s",
    ),
    Family(
        "pimserve_class_time_per_output_token_seconds",
        "histogram",
        "Time from first to last token over the tokens after the first, of these requests.",
        CLASS,
        ITL,
        "tpot_s",
    ),
    Family(
        "pimserve_class_e2e_request_latency_seconds",
        "histogram",
        "Last token minus arrival, of these requests.",
        CLASS,
        E2E,
        "e2e_s",
    ),
    Family(
        "pimserve_class_request_queue_time_seconds",
        "histogram",
        "First time in a step minus arrival, of these requests.",
        CLASS,
        E2E,
    ),
)
