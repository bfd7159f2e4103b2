"""Which series a run has."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pimserve.cluster.metrics.families import (
    AT_PERCENTILES,
    BY_NAME,
    FAMILIES,
    MOST_STAGES,
    PREFIX_CACHE,
    SPEC_DECODE,
)
from pimserve.cluster.metrics.family import ENGINE, bounds
from pimserve.cluster.metrics.layout import Layout
from pimserve.cluster.metrics.run_metrics import metrics_of
from pimserve.cluster.metrics.tier_families import KV_LOADS, KV_TIERS
from pimserve.cluster.scenario.document import load_scenario
from pimserve.cluster.scenario.prepared import prepare

EXAMPLES = Path(__file__).parents[3] / "examples"


def metrics(*overrides, example=None, **options):
    scenario = load_scenario(None if example is None else EXAMPLES / f"{example}.yaml", overrides)
    return metrics_of(prepare(scenario), "r", **options)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_names_follow_the_conventions(family):
    assert family.name.startswith("pimserve_")
    assert ":" not in family.name
    assert family.name.endswith("_total") == (family.kind == "counter")
    assert family.name.endswith("_info") == (family.kind == "info")
    assert not family.name.endswith(("_count", "_sum", "_bucket"))
    assert family.help.endswith(".")
    assert family.labels[0] == "run_id"
    assert not any(label in family.name.split("_") for label in ("engine",) if family.kind == "histogram")
    assert bool(family.bounds) == (family.kind == "histogram")
    assert list(family.bounds) == sorted(set(family.bounds))


@given(limit=st.floats(1e-6, 1e5))
def test_a_limit_of_the_slo_is_a_bound(limit):
    family = BY_NAME["pimserve_time_to_first_token_seconds"]
    found = bounds(family, {"ttft_s": {limit}, "tpot_s": [3.21]})
    assert limit in found
    assert 3.21 not in found
    assert set(family.bounds) <= set(found)
    assert list(found) == sorted(set(found))


def stages(*rates, slo="slo={}"):
    listed = ", ".join(f"{{rate_per_s: {rate}, duration_s: 10}}" for rate in rates)
    return metrics(f"workload={{arrival: {{stages: [{listed}]}}, preset: azure-conv-2023}}", slo)


def test_stages_have_series_where_they_are_few():
    found = stages(1, 2, slo="slo.ttft_s=1")
    assert found.layout.keys["pimserve_stage_offered_rate"] == (("r", "0"), ("r", "1"))
    assert found.values["pimserve_stage_offered_rate"].tolist() == [1, 2]
    assert found.layout.keys["pimserve_stage_slo_requests_total"][:2] == (("r", "0", "met"), ("r", "0", "missed"))
    assert Layout.from_json(found.layout.to_json()) == found.layout
    assert not stages(1, 2).layout.keys["pimserve_stage_slo_requests_total"]
    assert len(stages(*[1] * MOST_STAGES).layout.keys["pimserve_stage_requests_total"]) == 2 * MOST_STAGES
    assert not stages(*[1] * (MOST_STAGES + 1)).layout.keys["pimserve_stage_requests_total"]


def test_classes_have_series_and_their_limits_are_bounds():
    classes = "workload.classes=[{name: chat, tenant: us, slo: {ttft_s: 0.123}}, {name: batch, priority: 3}]"
    layout = metrics(classes, "slo.e2e_s=77").layout
    assert layout.keys["pimserve_class_info"] == (("r", "chat", "us", "0"), ("r", "batch", "batch", "3"))
    assert layout.keys["pimserve_class_time_to_first_token_seconds"] == (("r", "chat"), ("r", "batch"))
    assert layout.keys["pimserve_class_slo_requests_total"] == tuple(
        ("r", name, result) for name in ("chat", "batch") for result in ("met", "missed")
    )
    assert {0.123} <= set(layout.bounds["pimserve_class_time_to_first_token_seconds"])
    assert {77.0} <= set(layout.bounds["pimserve_e2e_request_latency_seconds"])
    assert [slo for _, slo in layout.keys["pimserve_slo_limit_seconds"]] == ["e2e"]  # of the run
    assert [slo for _, slo in layout.keys["pimserve_slo_censored_requests_total"]] == ["ttft", "e2e", "all"]
    assert not metrics("workload.classes=[{name: chat}]").layout.keys["pimserve_class_slo_requests_total"]
    assert Layout.from_json(layout.to_json()) == layout


def test_every_family_has_its_series_from_the_start():
    found = metrics("cluster.replicas=2", "slo={ttft_s: 0.3, tpot_s: 0.02}")
    assert set(found.layout.keys) == {family.name for family in FAMILIES}
    for family in FAMILIES:
        keys = found.layout.keys[family.name]
        assert len(set(keys)) == len(keys)
        assert all(len(key) == len(family.labels) for key in keys)
    without = {name for name, keys in found.layout.keys.items() if not keys}
    of_groups = {family.name for family in FAMILIES if "group" in family.labels} | {"pimserve_link_tokens_total"}
    of_stages = {family.name for family in FAMILIES if "stage" in family.labels}
    of_classes = {family.name for family in FAMILIES if "slo_class" in family.labels}
    of_settings = {*AT_PERCENTILES, *PREFIX_CACHE, *KV_TIERS, *KV_LOADS, *SPEC_DECODE}
    assert without == {"pimserve_device_tiers"} | of_groups | of_stages | of_classes | of_settings
    assert found.values["pimserve_requests_total"].tolist() == [0, 0]
    assert found.layout.keys["pimserve_slo_limit_seconds"] == (("r", "ttft"), ("r", "tpot"))
    assert found.values["pimserve_slo_limit_seconds"].tolist() == [0.3, 0.02]
    assert ("r", "all", "met") in found.layout.keys["pimserve_slo_requests_total"]
    assert found.values["pimserve_devices"].tolist() == [4, 4]


def test_without_limits_there_is_nothing_to_meet():
    assert metrics().layout.keys["pimserve_slo_requests_total"] == ()


def test_pools_have_their_own_roles_and_units():
    found = metrics(example="prefill_decode_pools")
    roles = [role for _, role in found.layout.engines]
    assert set(roles) == {"prefill", "decode"}
    busy = found.layout.keys["pimserve_device_busy_seconds_total"]
    assert {key[4] for key in busy if key[2] == "prefill"} != {key[4] for key in busy if key[2] == "decode"}


def test_crossbars_have_tiers():
    found = metrics(example="mixtral_aimc")
    used, total = found.values["pimserve_device_tiers"]
    assert 0 < used <= total


@pytest.mark.parametrize(("engines", "per_engine"), [(8, False), (9, False), (9, True)])
def test_histograms_are_merged_above_eight_engines_unless_asked_for(engines, per_engine):
    with_prefix_caches = "scheduler.enable_prefix_caching=true"
    layout = metrics(f"cluster.replicas={engines}", with_prefix_caches, per_engine=per_engine).layout
    apart = tuple(("r", str(engine), "mixed") for engine in range(engines))
    assert layout.merged == (engines > 8 and not per_engine)
    merged = {family.name: keys == (("r", "all", "mixed"),) for family, keys in of_engines(layout)}
    assert merged == {family.name: layout.merged and family.kind == "histogram" for family, _ in of_engines(layout)}
    assert all(keys == apart for family, keys in of_engines(layout) if not merged[family.name])
    assert layout.histogram_rows == ((0,) * engines if layout.merged else tuple(range(engines)))


def of_engines(layout):
    return [
        (family, layout.keys[family.name])
        for family in FAMILIES
        if family.labels == ENGINE and family.name not in {*KV_LOADS, *SPEC_DECODE}
    ]


def test_merged_histograms_are_those_of_a_role():
    pools = "cluster.pools={prefill: {replicas: 3}, decode: {replicas: 6}}"
    layout = metrics(pools).layout
    assert layout.keys["pimserve_step_tokens"] == (("r", "all", "prefill"), ("r", "all", "decode"))
    assert layout.histogram_rows == (0, 0, 0, 1, 1, 1, 1, 1, 1)


def test_a_run_tells_the_policy_of_its_queue():
    told = metrics("scheduler.policy=sjf", "scheduler.prediction_error=0").layout.keys["pimserve_run_info"]
    (info,) = [dict(zip(BY_NAME["pimserve_run_info"].labels, labels, strict=True)) for labels in told]
    assert info["policy"] == "sjf"
