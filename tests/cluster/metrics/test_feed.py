"""Metrics of real runs: at the end they say what the summary says, and on the way they only grow."""

from pathlib import Path

import numpy as np
import pytest

from pimserve.cluster.metrics.families import FAMILIES, PREFIX_CACHE, SPEC_DECODE
from pimserve.cluster.metrics.family import ENGINE
from pimserve.cluster.metrics.feed import MetricsFeed
from pimserve.cluster.metrics.run_metrics import metrics_of
from pimserve.cluster.metrics.tier_families import KV_TIERS
from pimserve.cluster.metrics.vllm import as_vllm
from pimserve.cluster.run.live_control import LiveControl
from pimserve.cluster.run.running_latencies import RunningLatencies
from pimserve.cluster.scenario.document import load_scenario
from pimserve.cluster.scenario.prepared import prepare
from pimserve.loadgen.objectives import Objectives
from pimserve.scheduler.control import Inject
from pimserve.scheduler.requests import FINISHED, PREEMPTION_CAUSES
from pimserve.scheduler.simulation import Deployment
from tests.cluster.documents import run, serve

EXAMPLES = Path(__file__).parents[3] / "examples"

WINDOW_S = 3
LINK_BYTES_PER_S = 450e9  # of Duplex, one way
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


@pytest.mark.parametrize("case", CASES)
def test_in_the_end_metrics_say_what_the_summary_says(case, monkeypatch):
    monkeypatch.setattr("pimserve.cluster.run.live_control._LEDGERS_S", 0.0)
    summary, _, last, seen = watched(*CASES[case])
    values = last.values
    assert values["pimserve_requests_total"].tolist() == [summary["requests"][key] for key in ("finished", "rejected")]
    assert values["pimserve_requests_arrived_total"] == summary["requests"]["total"]
    assert values["pimserve_generation_tokens_total"].sum() == summary["tokens"]["output"]
    assert values["pimserve_steps_total"].sum() == summary["batch"]["steps"]
    late_s = values["pimserve_virtual_time_seconds_total"][0] - summary["end_s"]
    assert -1e-9 <= late_s < WINDOW_S
    preemptions_are_those_of(summary, last)
    energy = values["pimserve_device_energy_joules_total"]
    passive = np.array([key[4] == "passive" for key in last.layout.keys["pimserve_device_energy_joules_total"]])
    passive_joules = summary["energy"]["passive_joules"] or 0
    # The closed loop is the Duplex paper's, and leaves it out.
    assert (passive_joules > 0) == bool(passive.any()) == (CASES[case][0] != "closed_loop")
    assert energy[~passive].sum() == pytest.approx(summary["energy"]["active_joules"], rel=1e-9)
    assert energy[passive].sum() == pytest.approx(passive_joules, rel=late_s / summary["end_s"] + 1e-9)
    assert values["pimserve_operator_time_seconds_total"].sum() == pytest.approx(
        summary["busy_share"] * summary["end_s"] * len(last.layout.engines), rel=1e-9
    )
    assert (last.counts["pimserve_step_duration_seconds"].sum(), last.counts["pimserve_step_tokens"].sum()) == (
        summary["batch"]["steps"],
        summary["batch"]["steps"],
    )
    groups_are_those_of(summary, last, late_s)
    outcomes_are_those_of(summary, last)
    stages_are_those_of(summary, last)
    classes_are_those_of(summary, last)
    limits_at_percentiles_are_those_of(summary, last)
    latencies_are_those_of(summary, last)
    prefix_caches_are_those_of(summary, last)
    tiers_are_those_of(summary, last)
    drafts_are_those_of(summary, last)
    decisions_are_those_of(summary, last)
    grows(seen, last)
    assert not any(each.values["pimserve_run_stability"].any() for each in seen)


def groups_are_those_of(summary, last, late_s):
    """Of the replicas that have two groups of devices: those of the run, or of its decode pool."""
    groups = summary["pools"]["decode"].get("groups") if "pools" in summary else summary.get("groups")
    values, keys = last.values, last.layout.keys
    idle, busy = keys["pimserve_group_idle_seconds_total"], keys["pimserve_group_busy_seconds_total"]
    assert bool(groups) == bool(idle) == bool(busy) == bool(keys["pimserve_link_tokens_total"])
    for name in ("attention", "experts") if groups else ():
        group, replicas = groups[name], sum(key[4] == name for key in busy)
        seconds = replicas * summary["end_s"]
        mine = [key[4] == name for key in busy]
        worked = values["pimserve_group_busy_seconds_total"][mine].sum()
        assert worked == pytest.approx(group["shares_of_time"]["working"] * seconds, rel=1e-9)
        for cause in ("other_group", "link", "work"):
            waited = values["pimserve_group_idle_seconds_total"][[key[4:] == (name, cause) for key in idle]].sum()
            late = replicas * late_s if cause == "work" else 0.0
            assert waited == pytest.approx(group["shares_of_time"][cause] * seconds + late, rel=1e-9)
        assert {key[3] for key in busy if key[4] == name} == {group["device"]}
        assert values["pimserve_group_devices"][mine].sum() == group["devices"]
        assert values["pimserve_group_weight_bytes"][mine] == pytest.approx(group["weights_gb_per_device"] * 1e9)
    for way in ("dispatch", "combine") if groups else ():
        for figure in ("bytes", "tokens"):
            family = f"pimserve_link_{figure}_total"
            mine = [key[4:] == (way, "between_groups") for key in keys[family]]
            assert values[family][mine].sum() == pytest.approx(groups["link"][way][figure], rel=1e-9)


def prefix_caches_are_those_of(summary, last):
    """Of all replicas; vLLM's names say the same, of devices and tiers apart."""
    told, of_vllm = summary.get("prefix_cache"), as_vllm(last)
    found = {figure: last.values[family] for family, figure in PREFIX_CACHE.items()}
    assert {len(values) for values in found.values()} == {2 if told else 0}
    assert {figure: values.sum() for figure, values in found.items()} == (
        {figure: told[figure] for figure in found} if told else dict.fromkeys(found, 0)
    )
    assert all(values.all() for values in found.values())
    assert of_vllm.values["vllm:prefix_cache_queries_total"].tolist() == found["queried_tokens"].tolist()
    hits = {
        name: dict(zip((key[1] for key in of_vllm.layout.keys[name]), of_vllm.values[name].tolist(), strict=True))
        for name in ("vllm:prefix_cache_hits_total", "vllm:external_prefix_cache_hits_total")
    }
    on_devices, external = hits.values()
    assert [count + external.get(engine, 0) for engine, count in on_devices.items()] == found["hit_tokens"].tolist()


def drafts_are_those_of(summary, last):
    """Of all replicas but those that compute prompts alone."""
    told = summary.get("spec_decode")
    for family, figure in SPEC_DECODE.items():
        engines = [key[2] for key in last.layout.keys[family]]
        assert "prefill" not in engines
        assert bool(engines) == bool(told)
        assert last.values[family].sum() == (told[figure] if told else 0)


def tiers_are_those_of(summary, last):
    """Of all replicas but those that decode alone, by tier; all tiers together under vLLM's names."""
    told = summary.get("kv_tiers", {"tiers": []})["tiers"]
    keys, values, of_vllm = last.layout.keys, last.values, as_vllm(last).values
    replicas = sum(role != "decode" for _, role in last.layout.engines)
    assert {len(values[family]) for family in KV_TIERS} == {replicas * len(told)}
    for tier in told:
        endless = tier["capacity_blocks"] is None
        mine = [key[3] == tier["name"] for key in keys["pimserve_kv_tier_blocks"]]
        for family, figure in KV_TIERS.items():
            if figure in tier:
                assert values[family][mine].sum() == tier[figure], family
                assert (tier[figure] > 0) is (figure != "evicted_blocks" or not endless), family
        busy_s = values["pimserve_kv_tier_link_busy_seconds_total"][mine].sum()
        assert busy_s == pytest.approx(tier["link_busy_share"] * summary["end_s"] * replicas, rel=0.01)
        assert (np.isnan if endless else np.all)(values["pimserve_kv_tier_usage_ratio"][mine]).all()
    if told:
        assert of_vllm["vllm:external_prefix_cache_queries_total"].sum() == told[0]["queried_tokens"]
        assert of_vllm["vllm:external_prefix_cache_hits_total"].sum() == sum(tier["hit_tokens"] for tier in told)
        waits = summary["kv_tiers"]["load_wait_s"]
        assert values["pimserve_kv_load_waits_total"].sum() == waits["n"] > 0
        assert values["pimserve_kv_load_wait_seconds_total"].sum() == pytest.approx(waits["mean"] * waits["n"])


def preemptions_are_those_of(summary, last):
    """By cause; vLLM's name has them together, of each replica."""
    family = "pimserve_preemptions_total"
    found = dict.fromkeys(PREEMPTION_CAUSES, 0)
    for key, value in zip(last.layout.keys[family], last.values[family], strict=True):
        found[key[3]] += value
    requests = summary["requests"]
    assert found == requests["preemptions_by_cause"]
    assert found["swap"] == requests["swaps"]
    of_vllm = as_vllm(last).values["vllm:num_preemptions_total"]
    assert len(of_vllm) == len(last.layout.engines)
    assert of_vllm.sum() == requests["preemptions"] == sum(found.values())


def decisions_are_those_of(summary, last):
    """Of the router, by replica and reason; all replicas together where there are many."""
    family = "pimserve_router_decisions_total"
    told = {key[1:]: count for key, count in zip(last.layout.keys[family], last.values[family], strict=True) if count}
    router = summary.get("router")
    roles = {"prefill" if "pools" in summary else "mixed"}
    assert {role for _, role, _ in told} == (roles if router else set())
    found = {
        (str(each["replica"]), *roles, reason): count
        for each in (router["replicas"] if router else ())
        for reason, count in each["by_reason"].items()
    }
    assert told == found


def outcomes_are_those_of(summary, last):
    def by_labels(family):
        keys = [key[1:] for key in last.layout.keys[family]]
        return dict(zip(keys, last.values[family].tolist(), strict=True))

    told, slo = summary["slo"], by_labels("pimserve_slo_requests_total")
    shares = told["met"] | ({"all": told["attainment"]} if told["limits"] else {})
    for name, share in shares.items():
        met, missed = slo[name, "met"], slo[name, "missed"]
        assert met + missed == told["known"][name]
        assert met + missed + told["censored"][name] == summary["requests"]["measured"]
        assert met / (met + missed) == share
    assert by_labels("pimserve_slo_censored_requests_total") == {(name,): n for name, n in told["censored"].items()}
    reasons = {(reason,): n for reason, n in summary["requests"]["rejected_by_reason"].items()}
    assert by_labels("pimserve_admission_rejections_total") == reasons
    states = by_labels("pimserve_run_stability")
    assert [state for (state,), value in states.items() if value] == [summary["stability"]]
    assert set(states) == {("saturated",), ("steady",), ("too short to tell",)}


def limits_at_percentiles_are_those_of(summary, last):
    told = {(key,): limit for key, limit in summary["slo"].get("at_percentiles", {}).items()}
    of_classes = {
        (each["name"], key): limit
        for each in summary.get("classes") or []
        for key, limit in each["slo"].get("at_percentiles", {}).items()
    }
    for of, limits in (("", told), ("class_", of_classes)):
        found = {
            what: dict(zip((key[1:] for key in last.layout.keys[family]), last.values[family].tolist(), strict=True))
            for what in ("limit_seconds", "seconds", "margin_seconds", "met")
            for family in [f"pimserve_{of}slo_percentile_{what}"]
        }
        for (*part, key), limit in limits.items():
            series = (*part, key.removesuffix("_s"))
            assert found["limit_seconds"][series] == limit["limit"]
            assert bool(found["met"][series]) is limit["passed"]
            measured = np.inf if limit["measured"] is None else limit["measured"]
            assert found["seconds"][series] == pytest.approx(measured, rel=2**-11)
            assert found["margin_seconds"][series] == limit["limit"] - found["seconds"][series]
            assert (found["margin_seconds"][series] >= 0) is limit["passed"]
        assert {len(series) for series in found.values()} == {len(limits)}


def test_links_carry_what_the_tokens_ask_for_and_no_more_than_they_can(monkeypatch):
    """Two all-reduces of 16-bit vectors of 4,096 in each of 32 layers, between 4 devices in a ring."""
    monkeypatch.setattr("pimserve.cluster.run.live_control._LEDGERS_S", 0.0)
    _, _, last, _ = watched(None, ["cluster={replicas: 2, devices_per_node: 4}"])
    keys, sent = last.layout.keys["pimserve_link_bytes_total"], last.values["pimserve_link_bytes_total"]
    assert [key[1:3] + key[4:] for key in keys] == [
        (engine, "mixed", "all-reduce, as a ring", "intra_node") for engine in "01"
    ]
    computed = last.sums["pimserve_step_tokens"]
    assert sent.tolist() == (computed * 2 * 32 * 4096 * 2 * (2 * 3)).tolist()
    operators = [key[1::3] for key in last.layout.keys["pimserve_operator_time_seconds_total"]]
    for engine in "01":
        time_s = last.values["pimserve_operator_time_seconds_total"][operators.index((engine, "communication"))]
        assert 0 < sent[int(engine)] / 4 / LINK_BYTES_PER_S < time_s


@pytest.mark.parametrize("rule", ["null", "{max_local_prefill_tokens: 300}"])
def test_a_handover_brings_the_caches_that_the_summary_counts(rule):
    overrides = ["run={warmup_s: 0}", f"cluster.pools.conditional_disagg={rule}"]
    summary, _, last, _ = watched("prefill_decode_pools", overrides)
    keys, sent = last.layout.keys["pimserve_link_bytes_total"], last.values["pimserve_link_bytes_total"]
    brought = [value for key, value in zip(keys, sent, strict=True) if key[4] == "handover"]
    assert {key[2] for key in keys if key[4] == "handover"} == {"decode"}
    assert {key[5] for key in keys if key[4] == "handover"} == {"inter_pool"}
    assert sum(brought) == summary["pools"]["handover"]["bytes"]
    assert min(brought) > 0


def latencies_are_those_of(summary, last):
    for name, key in {
        "pimserve_time_to_first_token_seconds": "ttft",
        "pimserve_time_per_output_token_seconds": "tpot",
        "pimserve_e2e_request_latency_seconds": "e2e",
        "pimserve_inter_token_latency_seconds": "itl",
    }.items():
        theirs, counts = summary["latency_s"][key], last.counts[name].sum(axis=0)
        assert counts.sum() == theirs["n"]
        assert last.sums[name].sum() == pytest.approx(theirs["mean"] * theirs["n"], rel=1e-9)
        edges = [0, *last.layout.bounds[name], np.inf]
        bucket = int(np.searchsorted(np.cumsum(counts), np.ceil(0.99 * counts.sum())))
        assert edges[bucket] * (1 - 2**-12) <= theirs["p99"] <= edges[bucket + 1] * (1 + 2**-12)


def test_histograms_of_requests_are_those_of_the_table():
    _, served, last, _ = watched(None, ["cluster.replicas=2", "slo.ttft_s=0.02", "scheduler.max_model_len=1500"])
    table = served.table
    done = table["status"] == FINISHED
    assert 0 < done.sum() < len(table)
    arrival, scheduled, first, finish = (
        table[f"{name}_ps"][done] / 1e12 for name in ("arrival", "first_scheduled", "first_token", "finish")
    )
    found = {
        "time_to_first_token_seconds": first - arrival,
        "e2e_request_latency_seconds": finish - arrival,
        "request_queue_time_seconds": scheduled - arrival,
        "request_prefill_time_seconds": first - scheduled,
        "request_decode_time_seconds": finish - first,
        "request_prompt_tokens": table["input_tokens"][done],
        "request_generation_tokens": table["output_tokens"][done],
    }
    for name, samples in found.items():
        for engine in (0, 1):
            mine = samples[table["replica"][done] == engine]
            below = [int((mine <= bound).sum()) for bound in last.layout.bounds[f"pimserve_{name}"]]
            assert np.cumsum(last.counts[f"pimserve_{name}"][engine]).tolist() == [*below, len(mine)], name
            assert last.sums[f"pimserve_{name}"][engine] == pytest.approx(mine.sum(), rel=1e-6), name


def stages_are_those_of(summary, last):
    """Of a run that serves all; where it is cut off, the summary looks no further than the end of arrivals."""
    stages = summary.get("stages") or []
    values, counts = last.values, last.counts
    assert len(values["pimserve_stage_offered_rate"]) == len(stages)
    for number, stage in enumerate(stages):
        assert values["pimserve_stage_offered_rate"][number] == stage["rate_per_s"]
        left = values["pimserve_stage_requests_total"][2 * number : 2 * number + 2].sum()
        assert left == stage["requests"] or summary["requests"]["unfinished"] > 0
        met, missed = values["pimserve_stage_slo_requests_total"][2 * number : 2 * number + 2]
        assert met + missed + stage["slo"]["censored"] == stage["requests"]
        assert met == pytest.approx((stage["slo"]["attainment"] or 0) * (met + missed))
        for name, family in (
            ("ttft", "time_to_first_token"),
            ("tpot", "time_per_output_token"),
            ("e2e", "e2e_request_latency"),
            ("queue", "request_queue_time"),
        ):
            latency = stage["latency_s"][name]
            assert counts[f"pimserve_stage_{family}_seconds"][number].sum() == latency["n"]
            total = last.sums[f"pimserve_stage_{family}_seconds"][number]
            assert total == pytest.approx((latency["mean"] or 0) * latency["n"])


def classes_are_those_of(summary, last):
    for number, each in enumerate(summary.get("classes") or []):
        finished, rejected = last.values["pimserve_class_requests_total"][2 * number : 2 * number + 2]
        assert each["requests"]["total"] == each["requests"]["measured"]
        assert (finished, rejected) == (each["requests"]["finished"], each["requests"]["rejected"])
        met, missed = last.values["pimserve_class_slo_requests_total"][2 * number : 2 * number + 2]
        if each["slo"]["limits"]:
            assert met + missed + each["slo"]["censored"] == each["requests"]["measured"]
            assert met == pytest.approx(each["slo"]["attainment"] * (met + missed))
        for name, family in (
            ("ttft", "time_to_first_token"),
            ("tpot", "time_per_output_token"),
            ("queue", "request_queue_time"),
        ):
            latency = each["latency_s"][name]
            assert last.counts[f"pimserve_class_{family}_seconds"][number].sum() == latency["n"]
            total = last.sums[f"pimserve_class_{family}_seconds"][number]
            assert total == pytest.approx((latency["mean"] or 0) * latency["n"])


def grows(seen, last):
    assert len(seen) > 3
    for earlier, later in zip(seen, [*seen[1:], last], strict=True):
        assert earlier.layout is later.layout
        for name, values in earlier.values.items():
            if name.endswith("_total"):
                assert (later.values[name] >= values - 1e-9).all(), name
        for name, counts in earlier.counts.items():
            assert (later.counts[name] >= counts).all(), name


def test_metrics_change_no_bit():
    _, _, _, seen = watched(None, [])
    scenario = load_scenario(None, ["workload.num_requests=300"])
    summary, _, _, _ = watched(None, [])
    assert serve(prepare(scenario))[0]["digest"] == summary["digest"]
    assert seen


def test_a_feed_that_begins_in_the_middle_has_all_that_was_before(monkeypatch):
    monkeypatch.setattr("pimserve.cluster.run.live_control._LEDGERS_S", 0.0)
    scenario = load_scenario(None, ["workload.num_requests=300", "slo.ttft_s=0.02"])

    def feed():
        return MetricsFeed(metrics_of(prepare(scenario), "r"), Objectives(scenario.slo))

    class Restarting(Watcher):
        def barrier(self, view):
            if len(self.seen) == 5:
                self.observer = feed()
            super().barrier(view)

    whole, continued = (kind(feed(), RunningLatencies(Objectives(scenario.slo))) for kind in (Watcher, Restarting))
    for control in (whole, continued):
        serve(prepare(scenario), deployment=Deployment(control=control))
    one, other = whole.observer.latest(), continued.observer.latest()
    for name in set(one.values) - {"pimserve_wall_time_seconds_total", "pimserve_sim_memory_bytes"}:
        assert other.values[name] == pytest.approx(one.values[name]), name
    for name, counts in one.counts.items():
        assert np.array_equal(other.counts[name], counts), name


def test_put_together_they_are_the_sum_of_the_engines(monkeypatch):
    monkeypatch.setattr("pimserve.cluster.run.live_control._LEDGERS_S", 0.0)
    _, _, apart, _ = watched(None, ["cluster.replicas=9"], per_engine=True)
    _, _, together, _ = watched(None, ["cluster.replicas=9"])
    for name in (family.name for family in FAMILIES if family.kind == "histogram" and family.labels == ENGINE):
        counts = together.counts[name]
        assert (counts.shape[0], apart.counts[name].shape[0]) == (1, 9)
        assert np.array_equal(counts[0], apart.counts[name].sum(axis=0)), name
        assert together.sums[name][0] == pytest.approx(apart.sums[name].sum())


def test_a_run_that_grows_expects_more():
    # What is injected is of no class, and has the limits of the run.
    scenario = load_scenario(None, ["workload.num_requests=100", "slo.ttft_s=1e-9", CLASSES])
    objectives = prepare(scenario).objectives
    feed = MetricsFeed(metrics_of(prepare(scenario), "r"), objectives)

    class Injector(LiveControl):
        done = False

        def barrier(self, view):
            if not self.done:
                view.apply(Inject((5, 6), (7, 8)))
                self.done = True
            super().barrier(view)

    control = Injector(RunningLatencies(objectives), observer=feed)
    summary, _ = serve(prepare(scenario), deployment=Deployment(control=control))
    values = feed.latest().values
    assert values["pimserve_requests_expected"] == 102
    assert values["pimserve_requests_total"].tolist() == [102, 0]
    assert values["pimserve_class_requests_total"].sum() == 100
    assert sum(each["requests"]["total"] for each in summary["classes"]) == 100
    met = sum(each["slo"]["attainment"] * each["requests"]["total"] for each in summary["classes"])
    assert summary["slo"]["attainment"] == pytest.approx(met / 102)
    classes_are_those_of(summary, feed.latest())
