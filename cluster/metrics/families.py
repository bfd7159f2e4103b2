"""The metric families: names, labels, help and buckets. Times are simulated unless their help says wall clock.

Names follow OpenMetrics 1.0 and what `promtool check metrics` asks for; buckets are in buckets.py. Bytes of KV caches
are in the data type of the model's catalogue entry.
"""

from __future__ import annotations

from pimserve.cluster.metrics.buckets import E2E, ITL, LENGTHS, SECONDS, TTFT
from pimserve.cluster.metrics.device_families import DEVICE_FAMILIES
from pimserve.cluster.metrics.family import DECISION, ENGINE, PREEMPTION, RUN, Family
from pimserve.cluster.metrics.part_families import PART_FAMILIES
from pimserve.cluster.metrics.tier_families import TIER_FAMILIES
from pimserve.scheduler.steplog import STEP_TOKENS

ALL_ENGINES = "all"  # the engine label of merged histograms, which hold the samples of every engine of a role
MOST_STAGES = 32  # that have series of their own: each has some 600
MERGED_ABOVE = 8  # engines: a histogram has up to 200 buckets, and each engine as many series of it

FAMILIES = (
    Family(
        "pimserve_run_info",
        "info",
        "What a run is about.",
        ("run_id", "name", "model_name", "device_model", "seed", "workload", "setting", "speed", "version", "policy"),
    ),
    # The clock.
    Family("pimserve_virtual_time_seconds_total", "counter", "Simulated time that has passed.", RUN),
    Family("pimserve_wall_time_seconds_total", "counter", "Wall-clock time since the run's process began it.", RUN),
    # Requests of the run.
    Family("pimserve_requests_expected", "gauge", "Requests of the whole workload.", RUN),
    Family("pimserve_requests_arrived_total", "counter", "Requests that have arrived.", RUN),
    Family("pimserve_requests_total", "counter", "Requests that have left, by how.", (*RUN, "outcome")),
    # Clients that wait for answers; 0 in runs without such.
    Family(
        "pimserve_sessions_active",
        "gauge",
        "Sessions that have begun, and have requests under way or to come.",
        RUN,
    ),
    Family(
        "pimserve_sessions_thinking",
        "gauge",
        "Active sessions without a request under way: between two turns, or while tools work.",
        RUN,
    ),
    Family(
        "pimserve_users_thinking",
        "gauge",
        "Users of a closed loop with think times who have had their answers and will send more requests.",
        RUN,
    ),
    Family(
        "pimserve_client_requests_waiting",
        "gauge",
        "Requests that are due, and wait at the client for others to end under a cap on requests in flight"
        " (workload.max_concurrency), or first turns on active sessions (workload.sessions.max_active).",
        RUN,
    ),
    Family(
        "pimserve_admission_rejections_total",
        "counter",
        "Rejected requests, by what they are too long for: max_model_len, or the KV cache of a replica (kv_cache);"
        " or by what it was too busy for: max_queued_requests (queue_full), or early_rejection (predicted_ttft).",
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
    # Limits at percentiles, such as ttft_p99.
    Family(
        "pimserve_slo_percentile_limit_seconds",
        "gauge",
        "Limit of a percentile; slo is its key in the scenario without _s, such as ttft_p99.",
        (*RUN, "slo"),
    ),
    Family(
        "pimserve_slo_percentile_seconds",
        "gauge",
        "The percentile so far, of measured requests that have left or of gaps between tokens, within 2^-12 of its"
        " value. Absent without samples, infinite where it is of requests never served.",
        (*RUN, "slo"),
    ),
    Family(
        "pimserve_slo_percentile_margin_seconds",
        "gauge",
        "The limit less the percentile: below 0 where the run fails it.",
        (*RUN, "slo"),
    ),
    Family(
        "pimserve_slo_percentile_met",
        "gauge",
        "1 while the percentile is at most its limit, 0 while it is above. Absent without samples.",
        (*RUN, "slo"),
    ),
    *PART_FAMILIES,
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
    Family(
        "pimserve_preemptions_total",
        "counter",
        "Preemptions of the requests that have finished, as the KV cache was full: computed again (recompute), swapped"
        " to host memory (swap), or computed again as there was no room, either (swap_space_full).",
        PREEMPTION,
    ),
    Family("pimserve_steps_total", "counter", "Steps of the engine.", ENGINE),
    # Prefix caches; no series in runs without such.
    Family(
        "pimserve_prefix_cache_queried_tokens_total",
        "counter",
        "Tokens of admitted requests, looked up in the prefix cache; not again after a preemption.",
        ENGINE,
    ),
    Family(
        "pimserve_prefix_cache_hit_tokens_total",
        "counter",
        "Of these, those that were cached, and not computed.",
        ENGINE,
    ),
    Family(
        "pimserve_prefix_cache_preempted_queried_tokens_total",
        "counter",
        "Tokens that requests looked up when they came back after a preemption.",
        ENGINE,
    ),
    Family(
        "pimserve_prefix_cache_preempted_hit_tokens_total",
        "counter",
        "Of these, those that were cached, and not computed again.",
        ENGINE,
    ),
    Family(
        "pimserve_prefix_cache_evicted_blocks_total",
        "counter",
        "Cached blocks that were forgotten, as others needed them.",
        ENGINE,
    ),
    Family(
        "pimserve_prefix_cache_blocks",
        "gauge",
        "KV blocks that can be found by their tokens, whether requests hold them or not.",
        ENGINE,
    ),
    *TIER_FAMILIES,
    # Drafts that steps verify; no series in runs without such.
    Family("pimserve_spec_decode_drafts_total", "counter", "Decoding requests of all steps that had drafts.", ENGINE),
    Family("pimserve_spec_decode_draft_tokens_total", "counter", "Tokens that were drafted.", ENGINE),
    Family(
        "pimserve_spec_decode_accepted_tokens_total", "counter", "Of these, those that became part of outputs.", ENGINE
    ),
    Family(
        "pimserve_router_decisions_total",
        "counter",
        "Requests that the router sent to a replica, by why it did; no series in runs with one replica.",
        DECISION,
    ),
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
    *DEVICE_FAMILIES,
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
PREFIX_CACHE = {  # families of prefix caches, and what of `PrefixFigures` they show
    "pimserve_prefix_cache_queried_tokens_total": "queried_tokens",
    "pimserve_prefix_cache_hit_tokens_total": "hit_tokens",
    "pimserve_prefix_cache_preempted_queried_tokens_total": "preempted_queried_tokens",
    "pimserve_prefix_cache_preempted_hit_tokens_total": "preempted_hit_tokens",
    "pimserve_prefix_cache_evicted_blocks_total": "evicted_blocks",
    "pimserve_prefix_cache_blocks": "cached_blocks",
}
SPEC_DECODE = {  # families of drafts, and what of `SpecDecodeFigures` they show
    "pimserve_spec_decode_drafts_total": "drafts",
    "pimserve_spec_decode_draft_tokens_total": "draft_tokens",
    "pimserve_spec_decode_accepted_tokens_total": "accepted_tokens",
}
PERCENTILES_SO_FAR = tuple(
    f"pimserve_{of}slo_percentile_{what}" for of in ("", "class_") for what in ("seconds", "margin_seconds", "met")
)
AT_PERCENTILES = tuple(name for name in BY_NAME if name.startswith("pimserve_slo_percentile_"))
