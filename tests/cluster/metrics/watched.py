"""Runs of many kinds whose metrics are looked at on the way."""

from pathlib import Path

from pimserve.cluster.metrics.feed import MetricsFeed
from pimserve.cluster.metrics.run_metrics import metrics_of
from pimserve.cluster.run.live_control import LiveControl
from pimserve.cluster.run.running_latencies import RunningLatencies
from pimserve.cluster.scenario.document import load_scenario
from pimserve.cluster.scenario.prepared import prepare
from pimserve.scheduler.simulation import Deployment
from tests.cluster.documents import run, serve

EXAMPLES = Path(__file__).parents[3] / "examples"
WINDOW_S = 3
LIMITS = "slo={ttft_s: 0.02, tpot_s: 0.0039, e2e_s: 1}"
STAGES = (
    "workload={arrival: {stages: [{rate_per_s: 8, duration_s: 5}, {rate_per_s: 0, duration_s: 3}, "
    "{rate_per_s: 30, duration_s: 7}]}, preset: azure-conv-2023}"
)
CLASSES = (
    "workload.classes=[{name: chat, share: 2, slo: {ttft_s: 0.01, e2e_s: 0.7}}, {name: batch, slo: {tpot_s: 0.0035}}]"
)
AT_PERCENTILES = "slo={ttft_p99_s: 0.02, tpot_p50_s: 0.0039, itl_p99.9_s: 0.01, e2e_p90_s: 1, queue_p95_s: 0.01}"
CLASSES_AT_PERCENTILES = "workload.classes=[{name: chat, share: 2, slo: {ttft_p90_s: 0.01, e2e_s: 0.7}}, {name: batch}]"
MIXED = "cluster.placement={experts: {device: aimc-realistic}, micro_batches: 2, lm_head: experts}"
MIXED_POOL = "cluster.pools.decode.placement={experts: {device: h100}, micro_batches: 2}"
CASES = {
    "duplex": (None, ["cluster.replicas=2", LIMITS]),
    "warm-up": (None, ["run.warmup_s=5", "slo.ttft_s=0.02"]),
    "cool-down": (None, ["run={warmup_s: 2, cooldown_s: 8}", "slo.ttft_s=0.02"]),
    "measured": ("llama_h100_measured", []),
    "aimc": ("mixtral_aimc", ["run={warmup_s: 0, cooldown_s: 0}"]),
    "mixed": (None, ["cluster.replicas=2", MIXED]),
    "mixed, drafts": (
        None,
        [MIXED, "scheduler.speculative={method: mtp, num_speculative_tokens: 2, acceptance: 0.7}"],
    ),
    "mixed pools": ("prefill_decode_pools", [MIXED_POOL, "run={warmup_s: 0}"]),
    "rebalanced": (
        None,
        [
            "cluster={device: h100, replicas: 2, expert_placement: {order: popularity, rebalance: {interval_s: 1}}}",
            "routing={popularity: zipf, zipf_exponent: 1, drift: {interval_s: 0.5, sigma: 0.4}}",
        ],
    ),
    "mixed, drifting": (
        None,
        [
            "cluster.placement={experts: {device: h100, devices_per_node: 4}, micro_batches: 2}",
            "routing={popularity: zipf, zipf_exponent: 1, drift: {interval_s: 5, sigma: 1}}",
        ],
    ),
    "mixed, slow": (
        None,
        ["cluster.replicas=2", MIXED, "faults={events: [{at_s: 2, replica: 1, kind: slow, factor: 3}]}"],
    ),
    "pools": ("prefill_decode_pools", ["slo={ttft_s: 0.2}", "run={warmup_s: 0}"]),
    "faults": ("faults", []),
    "nobody left": (None, ["faults.events=[{at_s: 15, replica: 0, kind: fail}]", "slo.ttft_s=2"]),
    "closed": ("closed_loop", ["cluster.replicas=2", "run.warmup_s=1"]),
    "cut off": (None, ["workload.arrival={process: poisson, rate_per_s: 15}", "run.max_time_s=18", LIMITS]),
    "rejected": (None, ["scheduler.max_model_len=1000", "slo.ttft_s=0.02"]),
    "stages": (None, [STAGES, LIMITS, "run.warmup_s=2"]),
    "sessions, cut off": (
        None,
        [
            "workload={sessions: {turns: 4, num_sessions: 30, think_time_s: 1}}",
            "cluster.replicas=2",
            "run.max_time_s=9",
        ],
    ),
    "a cap on active sessions, cut off": (
        None,
        [
            "workload={arrival: {rate_per_s: 5}, "
            "sessions: {turns: 4, num_sessions: 30, think_time_s: 1, max_active: 4}}",
            "cluster.replicas=2",
            "run.max_time_s=9",
        ],
    ),
    "clients of one session after another, cut off": (
        None,
        [
            "workload={sessions: {turns: 4, num_sessions: 30, think_time_s: 1, max_active: 4}}",
            "run.max_time_s=19",
            "run.warmup_s=1",
        ],
    ),
    "a cap on requests in flight, cut off": (
        None,
        ["workload={max_concurrency: 3, num_requests: 40}", "run.max_time_s=9"],
    ),
    "users who think, cut off": (
        None,
        [
            "workload={mode: closed, concurrency: 9, num_requests: 60, think_time_s: 0.5}",
            "run.max_time_s=4",
            "run.warmup_s=1",
        ],
    ),
    "longest gaps": (None, ["cluster.replicas=2", "slo={itl_max_s: 0.02, ttft_s: 0.02}", "run.warmup_s=2"]),
    "longest gaps, handed over": ("prefill_decode_pools", ["slo={itl_max_s: 0.05}", "run={warmup_s: 0}"]),
    "longest gaps of classes, cut off": (
        None,
        [
            "workload.classes=[{name: chat, slo: {itl_max_s: 0.008}}, {name: batch}]",
            "slo.tpot_s=0.005",
            "workload.arrival={rate_per_s: 15}",
            "run.max_time_s=18",
        ],
    ),
    "limits at percentiles": (None, [AT_PERCENTILES, "cluster.replicas=2", "run.warmup_s=3"]),
    "limits at percentiles of classes, cut off": (
        None,
        [AT_PERCENTILES, CLASSES_AT_PERCENTILES, "workload.arrival={rate_per_s: 15}", "run.max_time_s=18"],
    ),
    "limits at percentiles, rejected": (None, ["scheduler.max_model_len=1000", "slo={ttft_p99_s: 9, ttft_p10_s: 9}"]),
    "classes": (None, [CLASSES, LIMITS]),
    "classes, cut off": (None, [CLASSES, "workload.arrival={rate_per_s: 15}", "run.max_time_s=18"]),
    "stages, cut off": (None, [STAGES, "slo.ttft_s=0.02", "run.max_time_s=14"]),
    "prefix caches": (
        None,
        [
            "scheduler={enable_prefix_caching: true, kv_blocks: 1500}",
            "cluster.replicas=2",
            "workload.prefix={groups: 20, shared_tokens: 900}",
        ],
    ),
    "tiers": (
        None,
        [
            "scheduler={enable_prefix_caching: true, kv_blocks: 700, kv_tiers: [{name: host, capacity_gb: 0.5, "
            "gb_per_s: 2, write: back}, {name: disk, gb_per_s: 1, latency_us: 100, write: back}]}",
            "cluster.replicas=2",
            "workload.prefix={groups: 20, shared_tokens: 900}",
        ],
    ),
    "tiers in pools": (
        "prefill_decode_pools",
        [
            "scheduler={enable_prefix_caching: true, kv_blocks: 900, kv_tiers: [{name: host, gb_per_s: 5}]}",
            "workload.prefix={groups: 20, shared_tokens: 900}",
            "run={warmup_s: 0}",
        ],
    ),
    "drafts in pools": (
        "prefill_decode_pools",
        [
            "scheduler={speculative: {method: mtp, num_speculative_tokens: 3, acceptance: 0.6}}",
            "cluster.pools.decode.tensor_parallel=2",
            "run={warmup_s: 0}",
        ],
    ),
    "drafts": (
        None,
        [
            "scheduler={speculative: {method: mtp, num_speculative_tokens: 2, acceptance: 0.6}}",
            "cluster.replicas=2",
            "workload.arrival={rate_per_s: 15}",
        ],
    ),
    "swap": (
        None,
        ["scheduler={kv_blocks: 250, preemption: swap, swap_gb_per_s: 50, swap_space_gb: 0.02}", "cluster.replicas=2"],
    ),
    "closed and cut off": ("closed_loop", ["run.max_time_s=25", "run.warmup_s=0.2", LIMITS]),
}


class Watcher(LiveControl):
    """Looks at the metrics at the end of every window."""

    def __init__(self, metrics, latencies):
        super().__init__(latencies, observer=metrics)
        self.seen = []

    def next_barrier_fs(self, now_fs):
        return now_fs + WINDOW_S * 10**15

    def barrier(self, view):
        super().barrier(view)
        self.seen.append(self.observer.latest())


def watched(example, overrides, *, out=None, **options):
    """Summary, requests (without a results folder `out`), and metrics: the last and those at the ends of windows."""
    path = None if example is None else EXAMPLES / f"{example}.yaml"
    prepared = prepare(load_scenario(path, ["workload.num_requests=300", *overrides]))
    objectives, frontend_ps = prepared.objectives, prepared.frontend_ps
    feed = MetricsFeed(metrics_of(prepared, "r", **options), objectives, frontend_ps=frontend_ps)
    control = Watcher(feed, RunningLatencies(objectives, frontend_ps=frontend_ps))
    if out is None:
        summary, served = serve(prepared, deployment=Deployment(control=control))
    else:
        summary, served = run(prepared, out, control=control), None
    return summary, served, feed.latest(), control.seen
