"""The dashboards."""

from __future__ import annotations

from panels import OF_ENGINE, OF_RUN, Board, Panel, Row, clock, growth, per_second, percentiles, quantile, share

ENGINE = ("run_id", "engine", "role")
_SLO = "pimserve_slo_requests_total"

_MET = growth(_SLO, of=f'{OF_RUN},slo="all",result="met"')
_COUNTED = growth(_SLO, of=f'{OF_RUN},slo="all"')

OVERVIEW = Board(
    "pimserve-overview",
    "pimserve: overview",
    "Throughput, goodput, SLO, latency and queues of simulated runs, per second of simulated time.",
    (
        Row(
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
                    "Requests finished per second",
                    "reqps",
                    "Per simulated second.",
                    ((per_second("pimserve_requests_total", of=f'{OF_RUN},outcome="finished"'), "{{run_id}}"),),
                    "stat",
                    6,
                    5,
                ),
                Panel(
                    "SLO attainment",
                    "percentunit",
                    "Share of the requests that left lately which met every limit; rejected ones did not. Empty where"
                    " a run has no limits.",
                    ((share(_MET, _COUNTED), "{{run_id}}"),),
                    "stat",
                    6,
                    5,
                    most=1,
                ),
                Panel(
                    "Progress",
                    "percentunit",
                    "Requests that have left over all of the workload.",
                    (
                        (
                            f"sum by (run_id) (pimserve_requests_total{{{OF_RUN}}})"
                            f" / sum by (run_id) (pimserve_requests_expected{{{OF_RUN}}})",
                            "{{run_id}}",
                        ),
                    ),
                    "bars",
                    6,
                    5,
                    most=1,
                ),
            ),
        ),
        Row(
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
                        (
                            per_second("pimserve_requests_total", of=f'{OF_RUN},outcome="finished"'),
                            "finished {{run_id}}",
                        ),
                        (per_second(_SLO, of=f'{OF_RUN},slo="all",result="met"'), "good {{run_id}}"),
                    ),
                ),
            ),
        ),
        Row(
            "Latency",
            (
                Panel(
                    "Time to first token",
                    "s",
                    "From arrival to the first token, of requests that finished. Dashed: the limit, if there is one.",
                    (
                        *percentiles("pimserve_time_to_first_token_seconds"),
                        (f'pimserve_slo_limit_seconds{{{OF_RUN},slo="ttft"}}', "limit {{run_id}}"),
                    ),
                ),
                Panel(
                    "Time per output token",
                    "s",
                    "Mean gap between tokens of each request that finished.",
                    (
                        *percentiles("pimserve_time_per_output_token_seconds"),
                        (f'pimserve_slo_limit_seconds{{{OF_RUN},slo="tpot"}}', "limit {{run_id}}"),
                    ),
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
                    "From arrival to the last token.",
                    (
                        *percentiles("pimserve_e2e_request_latency_seconds"),
                        (f'pimserve_slo_limit_seconds{{{OF_RUN},slo="e2e"}}', "limit {{run_id}}"),
                    ),
                ),
            ),
        ),
        Row(
            "Queue",
            (
                Panel(
                    "Requests",
                    "short",
                    "Running ones have KV blocks; waiting ones do not.",
                    (
                        (f"sum by (run_id) (pimserve_requests_running{{{OF_RUN}}})", "running {{run_id}}"),
                        (f"sum by (run_id) (pimserve_requests_waiting{{{OF_RUN}}})", "waiting {{run_id}}"),
                    ),
                ),
                Panel(
                    "Time in the queue",
                    "s",
                    "From arrival to the first step.",
                    percentiles("pimserve_request_queue_time_seconds"),
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
        ),
    ),
)

REPLICAS = Board(
    "pimserve-replicas",
    "pimserve: replicas and scheduler",
    "Queues, batches, KV caches and steps of each replica.",
    (
        Row(
            "Requests",
            (
                Panel(
                    "Running",
                    "short",
                    "Requests with KV blocks.",
                    ((f"pimserve_requests_running{{{OF_ENGINE}}}", "{{run_id}} {{role}} {{engine}}"),),
                ),
                Panel(
                    "Waiting",
                    "short",
                    "Requests that wait to be admitted.",
                    ((f"pimserve_requests_waiting{{{OF_ENGINE}}}", "{{run_id}} {{role}} {{engine}}"),),
                ),
                Panel(
                    "Decoding",
                    "short",
                    "Running requests that are past their prompt.",
                    ((f"pimserve_requests_decoding{{{OF_ENGINE}}}", "{{run_id}} {{role}} {{engine}}"),),
                ),
                Panel(
                    "Finished per second",
                    "reqps",
                    "Per simulated second.",
                    (
                        (
                            per_second("pimserve_engine_requests_total", of=OF_ENGINE, by=ENGINE),
                            "{{run_id}} {{role}} {{engine}}",
                        ),
                    ),
                ),
            ),
        ),
        Row(
            "KV cache",
            (
                Panel(
                    "In use",
                    "percentunit",
                    "KV blocks in use over those that there are.",
                    ((f"pimserve_kv_cache_usage_ratio{{{OF_ENGINE}}}", "{{run_id}} {{role}} {{engine}}"),),
                    most=1,
                ),
                Panel(
                    "Blocks in use",
                    "short",
                    "KV blocks.",
                    ((f"pimserve_kv_cache_used_blocks{{{OF_ENGINE}}}", "{{run_id}} {{role}} {{engine}}"),),
                ),
                Panel(
                    "Preemptions per second",
                    "short",
                    "Of requests that have finished, per simulated second: recomputed because blocks ran out.",
                    (
                        (
                            per_second("pimserve_preemptions_total", of=OF_ENGINE, by=ENGINE),
                            "{{run_id}} {{role}} {{engine}}",
                        ),
                    ),
                ),
                Panel(
                    "Context",
                    "short",
                    "Tokens that the next step attends to.",
                    ((f"pimserve_context_tokens{{{OF_ENGINE}}}", "{{run_id}} {{role}} {{engine}}"),),
                ),
            ),
        ),
        Row(
            "Steps",
            (
                Panel(
                    "Steps per second",
                    "short",
                    "Per simulated second.",
                    (
                        (
                            per_second("pimserve_steps_total", of=OF_ENGINE, by=ENGINE),
                            "{{run_id}} {{role}} {{engine}}",
                        ),
                    ),
                ),
                Panel(
                    "Duration of a step",
                    "s",
                    "Of the runs chosen; replicas together.",
                    percentiles("pimserve_step_duration_seconds"),
                ),
                Panel(
                    "Tokens in a step",
                    "short",
                    "Of prompts and outputs; replicas together.",
                    percentiles("pimserve_step_tokens"),
                ),
                Panel(
                    "Prompt and output lengths",
                    "short",
                    "Medians of the requests that finished.",
                    (
                        (quantile(50, "pimserve_request_prompt_tokens"), "prompt {{run_id}}"),
                        (quantile(50, "pimserve_request_generation_tokens"), "output {{run_id}}"),
                    ),
                ),
                Panel(
                    "Replicas that take part",
                    "short",
                    "Those that have not failed.",
                    ((f"sum by (run_id) (pimserve_engine_up{{{OF_ENGINE}}})", "{{run_id}}"),),
                ),
            ),
        ),
    ),
    with_engines=True,
)

_UNIT = (*ENGINE, "unit")
_JOULES = growth("pimserve_device_energy_joules_total")

DEVICES = Board(
    "pimserve-devices",
    "pimserve: devices",
    "Units, operators, energy and memory of the devices: Duplex and GPUs, crossbar chips.",
    (
        Row(
            "Units",
            (
                Panel(
                    "Busy share of each unit",
                    "percentunit",
                    "Of each device of a replica, which work in step: xPU, Logic-PIM and links of Duplex; tiles,"
                    " digital units and memories of crossbar chips. Units may work side by side.",
                    (
                        (
                            per_second("pimserve_device_busy_seconds_total", of=OF_ENGINE, by=_UNIT),
                            "{{unit}} {{run_id}} {{engine}}",
                        ),
                    ),
                    width=24,
                    most=1,
                ),
                Panel(
                    "Where steps spend their time",
                    "percentunit",
                    "Share of simulated time by operator, mean of the replicas; the rest is idle.",
                    (
                        (
                            "avg by (run_id, operator) ("
                            + per_second(
                                "pimserve_operator_time_seconds_total",
                                of=OF_ENGINE,
                                by=("run_id", "engine", "operator"),
                            )
                            + ")",
                            "{{operator}} {{run_id}}",
                        ),
                    ),
                    stacked=True,
                ),
                Panel(
                    "Link",
                    "percentunit",
                    "Busy share of the links between a replica's devices. Crossbar chips have theirs in the chain of"
                    " tiles.",
                    (
                        (
                            per_second("pimserve_device_busy_seconds_total", of=f'{OF_ENGINE},unit="link"', by=ENGINE),
                            "{{run_id}} {{engine}}",
                        ),
                    ),
                    most=1,
                ),
            ),
        ),
        Row(
            "Energy",
            (
                Panel(
                    "Power",
                    "watt",
                    "Joules per simulated second of all devices by operator; static is what they draw anyway.",
                    (
                        (
                            per_second("pimserve_device_energy_joules_total", of=OF_ENGINE, by=("run_id", "operator")),
                            "{{operator}} {{run_id}}",
                        ),
                    ),
                    stacked=True,
                ),
                Panel(
                    "Energy per output token",
                    "joule",
                    "Of all devices, over the tokens sampled meanwhile.",
                    ((share(_JOULES, growth("pimserve_generation_tokens_total")), "{{run_id}}"),),
                ),
                Panel(
                    "Memory or arithmetic",
                    "watt",
                    "Power by part: moving data (dram), multiplying (compute), static.",
                    (
                        (
                            per_second("pimserve_device_energy_joules_total", of=OF_ENGINE, by=("run_id", "part")),
                            "{{part}} {{run_id}}",
                        ),
                    ),
                    stacked=True,
                ),
            ),
        ),
        Row(
            "Memory",
            (
                Panel(
                    "Weights in each device",
                    "bytes",
                    "Of a replica's devices.",
                    (
                        (
                            f"max by (run_id, role, device_model) (pimserve_device_weight_bytes{{{OF_ENGINE}}})",
                            "{{device_model}} {{role}} {{run_id}}",
                        ),
                    ),
                    "bars",
                ),
                Panel(
                    "KV cache in use",
                    "bytes",
                    "Of all devices of a run, and what there is.",
                    (
                        (f"sum by (run_id) (pimserve_device_kv_bytes{{{OF_ENGINE}}})", "in use {{run_id}}"),
                        (f"sum by (run_id) (pimserve_device_kv_capacity_bytes{{{OF_ENGINE}}})", "there is {{run_id}}"),
                    ),
                ),
                Panel(
                    "Crossbar tiers in use",
                    "percentunit",
                    "Tiers of the chips that hold weights; crossbar chips only.",
                    (
                        (
                            f'max by (run_id) (pimserve_device_tiers{{{OF_ENGINE},state="used"}})'
                            f' / max by (run_id) (pimserve_device_tiers{{{OF_ENGINE},state="total"}})',
                            "{{run_id}}",
                        ),
                    ),
                    "bars",
                    most=1,
                ),
                Panel(
                    "Devices",
                    "short",
                    "Of all replicas of a run.",
                    (
                        (
                            f"sum by (run_id, device_model) (pimserve_devices{{{OF_ENGINE}}})",
                            "{{device_model}} {{run_id}}",
                        ),
                    ),
                    "stat",
                ),
            ),
        ),
    ),
    with_engines=True,
)

_DONE = f'sum by (run_id) (pimserve_requests_total{{{OF_RUN},outcome="finished"}})'
_TIME = f"(sum by (run_id) (pimserve_virtual_time_seconds_total{{{OF_RUN}}}) > 0)"
_TOKENS = f"sum by (run_id) (pimserve_generation_tokens_total{{{OF_RUN}}})"


def _whole(percent: float, metric: str) -> str:
    """A percentile of all samples so far."""
    return f"histogram_quantile({percent / 100:g}, sum by (le, run_id) ({metric}_bucket{{{OF_RUN}}}))"


COMPARISON = Board(
    "pimserve-comparison",
    "pimserve: comparison of runs",
    "Figures of whole runs side by side, since their beginning. Runs with ideal and with measured costs do not compare:"
    " the table of runs says which is which.",
    (
        Row(
            "Runs",
            (
                Panel(
                    "What they are",
                    "short",
                    "Model, device, workload, setting of the costs, seed and version.",
                    ((f"pimserve_run_info{{{OF_RUN}}}", ""),),
                    "table",
                    24,
                    7,
                ),
            ),
        ),
        Row(
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
                    ((f"{_TOKENS} / {_TIME} / sum by (run_id) (pimserve_devices{{{OF_RUN}}})", "{{run_id}}"),),
                    "bars",
                    8,
                ),
                Panel(
                    "Energy per output token",
                    "joule",
                    "Where devices' passive power is not known, it is missing.",
                    (
                        (
                            f"sum by (run_id) (pimserve_device_energy_joules_total{{{OF_RUN}}}) / ({_TOKENS} > 0)",
                            "{{run_id}}",
                        ),
                    ),
                    "bars",
                    8,
                ),
            ),
        ),
        Row(
            "Latency",
            tuple(
                Panel(
                    f"{title}, p{percent}",
                    "s",
                    "Of all samples since the beginning, to within a bucket.",
                    ((_whole(percent, metric), "{{run_id}}"),),
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
        ),
        Row(
            "Requests",
            (
                Panel("Finished", "short", "Requests.", ((_DONE, "{{run_id}}"),), "stat", 8, 5),
                Panel(
                    "SLO attainment",
                    "percentunit",
                    "Of the requests that have left since the beginning; empty without limits.",
                    (
                        (
                            f'sum by (run_id) ({_SLO}{{{OF_RUN},slo="all",result="met"}})'
                            f' / (sum by (run_id) ({_SLO}{{{OF_RUN},slo="all"}}) > 0)',
                            "{{run_id}}",
                        ),
                    ),
                    "stat",
                    8,
                    5,
                    most=1,
                ),
                Panel("Simulated time", "s", "That has passed.", ((_TIME, "{{run_id}}"),), "stat", 8, 5),
            ),
        ),
    ),
)

SIMULATOR = Board(
    "pimserve-simulator",
    "pimserve: the simulator itself",
    "How fast runs go, and whether their processes are well.",
    (
        Row(
            "Speed",
            (
                Panel(
                    "Simulated seconds per second",
                    "short",
                    "Of the clock that is scraped: the pace of a run.",
                    ((clock(), "{{run_id}}"),),
                ),
                Panel(
                    "Steps per wall-clock second",
                    "short",
                    "What the engine gets done.",
                    (
                        (
                            share(growth("pimserve_steps_total"), growth("pimserve_wall_time_seconds_total")),
                            "{{run_id}}",
                        ),
                    ),
                ),
                Panel(
                    "Windows per wall-clock second",
                    "short",
                    "Stretches of simulated time between which a run is seen and changed.",
                    (
                        (
                            share(growth("pimserve_sim_windows_total"), growth("pimserve_wall_time_seconds_total")),
                            "{{run_id}}",
                        ),
                    ),
                ),
                Panel(
                    "Memory",
                    "bytes",
                    "Of each run's process.",
                    ((f"max by (run_id) (pimserve_sim_memory_bytes{{{OF_RUN}}})", "{{run_id}}"),),
                ),
            ),
        ),
        Row(
            "Hosts",
            (
                Panel(
                    "Hosts replaced",
                    "short",
                    "Actors of shards and devices that died and were replaced, since the beginning.",
                    ((f"sum by (run_id) (pimserve_actor_restarts_total{{{OF_RUN}}})", "{{run_id}}"),),
                    "stat",
                    8,
                    5,
                ),
                Panel(
                    "Spans audited",
                    "short",
                    "Stretches of steps that devices evaluated again and found to be as the engine said.",
                    ((f"sum by (run_id) (pimserve_audit_checks_total{{{OF_RUN}}})", "{{run_id}}"),),
                    "stat",
                    8,
                    5,
                ),
                Panel(
                    "Scrapes that succeed",
                    "percentunit",
                    "Of the endpoints that expose runs, over the last minutes.",
                    (('avg by (instance) (avg_over_time(up{job="pimserve"}[5m]))', "{{instance}}"),),
                    "stat",
                    8,
                    5,
                    most=1,
                ),
            ),
        ),
    ),
)

BOARDS = (OVERVIEW, REPLICAS, DEVICES, COMPARISON, SIMULATOR)
