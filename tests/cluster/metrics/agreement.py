"""What metrics at the end of a run have in common with its summary."""

import numpy as np
import pytest

from pimserve.cluster.metrics.families import PREFIX_CACHE, SPEC_DECODE
from pimserve.cluster.metrics.tier_families import KV_TIERS
from pimserve.cluster.metrics.vllm import as_vllm
from pimserve.scheduler.requests import PREEMPTION_CAUSES


def figures_are_those_of(summary, last, late_s):
    """All that follow; the last look was so much later than the end."""
    groups_are_those_of(summary, last, late_s)
    for each in (
        preemptions_are_those_of,
        outcomes_are_those_of,
        stages_are_those_of,
        classes_are_those_of,
        limits_at_percentiles_are_those_of,
        latencies_are_those_of,
        prefix_caches_are_those_of,
        tiers_are_those_of,
        drafts_are_those_of,
        decisions_are_those_of,
    ):
        each(summary, last)


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
    for figure in ("queried_tokens", "hit_tokens"):  # on a decode replica who was preempted alone looks anything up
        assert (found[figure] + found[f"preempted_{figure}"]).all()
    assert found["evicted_blocks"].all()
    assert found["cached_blocks"].all()
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
