"""A summary as a run writes it, for tests that need no run."""

import copy
from collections.abc import Mapping


def distribution(mean, p50, p90, p99, n):
    return {"mean": mean, "p50": p50, "p90": p90, "p99": p99, "n": n}


_EXAMPLE = {
    "schema_version": 2,
    "name": "example",
    "model": "mixtral-8x7b",
    "device": "duplex",
    "devices": 8,
    "replicas": 2,
    "devices_per_replica": 4,
    "parallelism": {"nodes": 1, "devices_per_node": 4, "tensor": 4, "experts": "tp"},
    "seed": 7,
    "workload": "azure-conv-2023",
    "requests": {
        "total": 3000,
        "finished": 2990,
        "rejected": 4,
        "rejected_by_reason": {"max_model_len": 4, "kv_cache": 0, "queue_full": 0, "predicted_ttft": 0},
        "unfinished": 6,
        "truncated": 0,
        "preempted": 5,
        "swaps": 0,
        "preemptions": 9,
        "preemptions_by_cause": {"recompute": 9, "swap": 0, "swap_space_full": 0},
        "measured": 2934,
        "measured_finished": 2930,
        "measured_unfinished": 2,
    },
    "window": {"start_s": 20.0, "end_s": 633.169, "length_s": 613.169, "whole_run": False},
    "offered_requests_per_s": 4.7429,
    "throughput": {
        "requests_per_s": 4.7768,
        "output_tokens_per_s": 1005.77,
        "output_tokens_per_s_per_device": 125.721,
        "output_tokens_per_s_per_mm2": None,
    },
    "tokens": {"prompt": 3538925, "prompt_rejected": 160000, "output": 629618, "output_in_window": 616708},
    "latency_s": {
        "ttft": distribution(0.018276, 0.015503, 0.036615, 0.055772, 2934),
        "tpot": distribution(0.0034608, 0.0034903, 0.0041125, 0.0046069, 2934),
        "itl": distribution(0.0034617, 0.0033205, 0.0038993, 0.014343, 613774),
        "e2e": distribution(0.7435, 0.45896, 1.5965, 2.1826, 2934),
        "queue": distribution(0.0, 0.0, 0.0, 0.0, 2934),
    },
    "slo": {
        "limits": {"ttft_s": 2.0, "tpot_s": 0.2},
        "met": {"ttft": 0.99966, "tpot": 1.0},
        "known": {"ttft": 2934, "tpot": 2932, "all": 2932},
        "censored": {"ttft": 0, "tpot": 2, "all": 2},
        "attainment": 0.99966,
        "attainment_of_completed": 1.0,
        "goodput_requests_per_s": 4.785,
    },
    "energy": {
        "joules": 1000.0,
        "active_joules": 1000.0,
        "passive_joules": None,
        "joules_per_output_token": 0.31101,
        "active_joules_per_output_token": 0.31101,
        "passive_joules_per_output_token": None,
        "passive_power": "left_out",
        "tdp_joules_per_output_token": None,
        "joules_by_category": {
            "fc": {"dram": 80.0, "compute": 20.0},
            "attention_prefill": {"dram": 1.0, "compute": 1.0},
            "attention_decode": {"dram": 8.0, "compute": 0.0},
            "moe": {"dram": 790.0, "compute": 100.0},
            "communication": {"dram": 0.0, "compute": 0.0},
        },
    },
    "batch": {"mean_requests": 3.3229, "steps": 189660, "decode_only_share": 0.98144},
    "kv": {"capacity_tokens": 1646656, "mean_use": 0.0029308, "peak_use": 0.013846},
    "time_share": {
        "fc": 0.094928,
        "attention_prefill": 0.00090403,
        "attention_decode": 0.0054252,
        "moe": 0.51572,
        "communication": 0.38302,
    },
    "unit_busy_share": {"xpu": 0.14122, "logic_pim": 0.44158, "link": 0.35575},
    "unit_busy_share_of_busiest_device": {"xpu": 0.14122, "logic_pim": 0.47123, "link": 0.35575},
    "busy_share": 0.9288,
    "max_model_len": 32768,
    "end_s": 634.623,
    "stability": "steady",
    "in_system": {
        "at_last_arrival": 4,
        "waiting_at_last_arrival": 1,
        "growth_per_arrival": 0.0,
        "residence_times": 620.0,
    },
    "digest": "86d9",
    "silicon_mm2": None,
    "tdp_w": None,
    "costs": {"setting": "ideal"},
    "precision": {"weights": "bf16", "routed_weights": "fp8", "kv_cache": "bf16"},
    "device_facts": {},
    "warnings": [],
    "results": "results/example",
    "simulator": {
        "loop_s": 0.82142,
        "process_s": 1.4,
        "steps": 189660,
        "requests": 3000,
        "steps_per_s": 230893.0,
        "requests_per_s": 3652.2,
        "version": "0.1.0",
        "python": "3.11.7",
        "numpy": "2.4.6",
        "peak_memory_mb": 89.71,
    },
}


def example_summary(**changes):
    """The example with dotted paths changed: `latency_s__ttft__n=10` sets ["latency_s"]["ttft"]["n"]."""
    summary = copy.deepcopy(_EXAMPLE)
    for path, value in changes.items():
        *parents, last = path.split("__")
        place = summary
        for key in parents:
            place = place[key]
        place[last] = value
    return summary


def without_numbers(document):
    """The document with None for every number below the top level, as far as a run leaves them out."""
    if isinstance(document, Mapping):
        return {key: without_numbers(value) for key, value in document.items()}
    return None if isinstance(document, int | float) and not isinstance(document, bool) else document
