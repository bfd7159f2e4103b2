"""The metric families: names, labels, help and buckets. Times are simulated unless their help says wall clock.

Names follow OpenMetrics 1.0 and what `promtool check metrics` asks for; buckets are in buckets.py. Not modelled, so
absent: prefix caches and swapping. Bytes of KV caches are in the data type of the model's catalogue entry.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from pimserve.cluster.metrics.buckets import E2E, ITL, LENGTHS, SECONDS, TTFT
from pimserve.scheduler.steplog import STEP_TOKENS

Kind = Literal["counter", "gauge", "histogram", "info"]
RUN = ("run_id",)
ENGINE = ("run_id", "engine", "role")
DEVICE = ("run_id", "engine", "role", "device_model")
GROUP = (*DEVICE, "group")

ALL_ENGINES = "all"  # the engine label of merged histograms, which hold the samples of every engine of a role
MERGED_ABOVE = 8  # engines: a histogram has up to 200 buckets, and each engine as many series of it


@dataclass(frozen=True, slots=True)
class Family:
    """A metric family.

    Args:
        name: as exposed; counters end in _total.
        kind: of metric.
        help: one sentence.
        labels: names, in order.
        bounds: upper bounds of a histogram's buckets, without +Inf.
        slo: the SLO limit that is merged into the bounds.
    """

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...]
    bounds: tuple[float, ...] = ()
    slo: Literal["", "ttft_s", "tpot_s", "e2e_s"] = ""


FAMILIES = (
    Family(
        "pimserve_run_info",
        "info",
        "What a run is about.",
        ("run_id", "name", "model_name", "device_model", "seed", "workload", "setting", "speed", "version"),
    ),
    # The clock.
    Family("pimserve_virtual_time_seconds_total", "counter", "Simulated time that has passed.", RUN),
    Family("pimserve_wall_time_seconds_total", "counter", "Wall-clock time since the run's process began it.", RUN),
    # Requests of the run.
    Family("pimserve_requests_expected", "gauge", "Requests of the whole workload.", RUN),
    Family("pimserve_requests_arrived_total", "counter", "Requests that have arrived.", RUN),
    Family("pimserve_requests_total", "counter", "Requests that have left, by how.", (*RUN, "outcome")),
    Family(
        "pimserve_admission_rejections_total",
        "counter",
        "Rejected requests, by what they are too long for: max_model_len, or the KV cache of a replica (kv_cache).",
        (*RUN, "reason"),
    ),
    Family(
        "pimserve_slo_requests_total",
        "counter",
        "Requests that arrived in the measured window and have left, by whether they met the limit, or all limits;"
        " rejected ones missed it.",
        (*RUN, "slo", "result"),
    ),
    Family(
        "pimserve_slo_censored_requests_total",
        "counter",
        "Measured requests that the end of the run cut off before it was known whether they meet the limit, or all.",
        (*RUN, "slo"),
    ),
    Family(
        "pimserve_run_stability",
        "gauge",
        "1 for the state of the run once it has ended: saturated, steady or too short to tell. 0 for all until then.",
        (*RUN, "state"),
    ),
    Family("pimserve_slo_limit_seconds", "gauge", "Limit of the service-level objective.", (*RUN, "slo")),
    # Engines: replicas, in the words of vLLM.
    Family("pimserve_engine_up", "gauge", "1 while the replica takes part, 0 while it has failed.", ENGINE),
    Family("pimserve_requests_running", "gauge", "Requests that have KV blocks.", ENGINE),
    Family("pimserve_requests_waiting", "gauge", "Requests that wait to be admitted.", ENGINE),
    Family("pimserve_requests_decoding", "gauge", "Running requests that are past their prompt.", ENGINE),
    Family("pimserve_context_tokens", "gauge", "Tokens that the next step attends to.", ENGINE),
    Family("pimserve_kv_cache_used_blocks", "gauge", "KV blocks in use.", ENGINE),
    Family("pimserve_kv_cache_blocks", "gauge", "KV blocks that there are.", ENGINE),
    Family("pimserve_kv_cache_block_tokens", "gauge", "Tokens that a KV block holds.", ENGINE),
    Family("pimserve_kv_cache_usage_ratio", "gauge", "KV blocks in use over those that there are.", ENGINE),
    Family("pimserve_engine_requests_total", "counter", "Requests that finished on this replica.", ENGINE),
    Family("pimserve_prompt_tokens_total", "counter", "Prompt tokens computed, recomputed ones too.", ENGINE),
    Family("pimserve_generation_tokens_total", "counter", "Tokens sampled.", ENGINE),
    Family("pimserve_preemptions_total", "counter", "Preemptions of the requests that have finished.", ENGINE),
    Family("pimserve_steps_total", "counter", "Steps of the engine.", ENGINE),
    # Distributions.
    Family(
        "pimserve_time_to_first_token_seconds",
        "histogram",
        "First token minus arrival, of requests that arrived in the measured window and finished; at the end of the"
        " run, of those that it cut off too.",
        ENGINE,
        TTFT,
        "ttft_s",
    ),
    Family(
        "pimserve_time_per_output_token_seconds",
        "histogram",
        "Time from first to last token over the tokens after the first, of requests that arrived in the measured window"
        " and finished.",
        ENGINE,
        ITL,
        "tpot_s",
    ),
    Family(
        "pimserve_inter_token_latency_seconds",
        "histogram",
        "Every gap between two tokens of a request that ends in the measured window.",
        ENGINE,
        ITL,
        "tpot_s",
    ),
    Family(
        "pimserve_e2e_request_latency_seconds",
        "histogram",
        "Last token minus arrival, of requests that arrived in the measured window and finished.",
        ENGINE,
        E2E,
        "e2e_s",
    ),
    Family(
        "pimserve_request_queue_time_seconds",
        "histogram",
        "First time in a step minus arrival, of requests that arrived in the measured window and finished.",
        ENGINE,
        E2E,
    ),
    Family(
        "pimserve_request_prefill_time_seconds",
        "histogram",
        "First token minus first time in a step, of requests that arrived in the measured window and finished.",
        ENGINE,
        E2E,
    ),
    Family(
        "pimserve_request_decode_time_seconds",
        "histogram",
        "Last token minus first token, of requests that arrived in the measured window and finished.",
        ENGINE,
        E2E,
    ),
    Family("pimserve_step_duration_seconds", "histogram", "Duration of a step, of the whole run.", ENGINE, SECONDS),
    Family("pimserve_step_tokens", "histogram", "Tokens that a step computes.", ENGINE, STEP_TOKENS),
    Family("pimserve_request_prompt_tokens", "histogram", "Prompt length of finished requests.", ENGINE, LENGTHS),
    Family("pimserve_request_generation_tokens", "histogram", "Output length of finished requests.", ENGINE, LENGTHS),
    # Devices.
    Family(
        "pimserve_device_busy_seconds_total",
        "counter",
        "Busy time of a unit, in the mean over the devices of the replica.",
        (*DEVICE, "unit"),
    ),
    Family(
        "pimserve_busiest_device_busy_seconds_total",
        "counter",
        "Busy time of a unit on the device of the replica where it has most to do.",
        (*DEVICE, "unit"),
    ),
    Family(
        "pimserve_operator_time_seconds_total", "counter", "Time of a step that operators take.", (*DEVICE, "operator")
    ),
    Family(
        "pimserve_device_energy_joules_total",
        "counter",
        "Energy of all devices of the replica: active energy by operator and part (dram, compute), and passive energy"
        " (operator and part passive), what they draw whether they work or not, where it is known and not left out.",
        (*DEVICE, "operator", "part"),
    ),
    Family(
        "pimserve_link_bytes_total",
        "counter",
        "Bytes that all devices of the replica have sent over their links, by operator and link (intra_node,"
        " inter_node, between_groups, inter_pool); of all-reduces those of a ring, whichever way their time is of;"
        " operator handover is"
        " what the KV caches of its finished requests brought from the"
        " prefill pool.",
        (*DEVICE, "operator", "link"),
    ),
    Family(
        "pimserve_link_tokens_total",
        "counter",
        "Tokens whose vectors went over the link between groups of devices, by operator (dispatch, combine), one for"
        " each layer and each device that they went to, as popularities of experts make expect.",
        (*DEVICE, "operator", "link"),
    ),
    # Groups of devices, where routed experts have devices of their own; device_model is then the group's.
    Family(
        "pimserve_group_busy_seconds_total",
        "counter",
        "Time in which a group of devices of the replica worked, with the links among them; groups are attention and"
        " experts.",
        GROUP,
    ),
    Family(
        "pimserve_group_idle_seconds_total",
        "counter",
        "Time in which a group of devices did not work, by what it waited for: the other group (other_group), what was"
        " on its way between both (link), or a step (work). Idle and busy time add up to the time that has passed.",
        (*GROUP, "cause"),
    ),
    Family(
        "pimserve_group_devices",
        "gauge",
        "Devices of a group of the replica; those of hot experts, where these have their own, are group hot_experts.",
        GROUP,
    ),
    Family("pimserve_group_weight_bytes", "gauge", "Weights in memory of each device of a group.", GROUP),
    Family("pimserve_devices", "gauge", "Devices of the replica.", DEVICE),
    Family(
        "pimserve_device_weight_bytes",
        "gauge",
        "Weights in each device; where experts have devices of their own, in each of the others.",
        DEVICE,
    ),
    Family(
        "pimserve_device_kv_bytes",
        "gauge",
        "KV cache in use in all devices of the replica, in the model's data type.",
        DEVICE,
    ),
    Family(
        "pimserve_device_kv_capacity_bytes",
        "gauge",
        "KV cache of all devices of the replica, in the model's data type.",
        DEVICE,
    ),
    Family("pimserve_device_tiers", "gauge", "Crossbar tiers of each chip, by use.", (*DEVICE, "state")),
    # The simulator itself.
    Family(
        "pimserve_sim_events_total", "counter", "Spans of like steps that engines have executed, each in one go.", RUN
    ),
    Family("pimserve_sim_windows_total", "counter", "Windows of simulated time that have ended.", RUN),
    Family("pimserve_actor_restarts_total", "counter", "Hosts of shards and devices that were replaced.", RUN),
    Family("pimserve_audit_checks_total", "counter", "Spans of steps that devices evaluated again.", RUN),
    Family("pimserve_sim_memory_bytes", "gauge", "Resident memory of the run's process.", RUN),
)
BY_NAME = {family.name: family for family in FAMILIES}


def bounds(family: Family, limits: dict[str, float]) -> tuple[float, ...]:
    """Upper bounds of a histogram's buckets, the SLO limit among them.

    Args:
        family: of kind histogram.
        limits: SLO limits, s, by name.
    """
    merged: Iterable[float] = family.bounds
    if family.slo in limits:
        merged = {*family.bounds, limits[family.slo]}
    return tuple(sorted(float(bound) for bound in merged))
