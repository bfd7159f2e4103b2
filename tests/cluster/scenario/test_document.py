"""Reading scenarios: files, overrides, presets with changes, traces, and the scenario written back in full."""

from pathlib import Path

import pytest
import yaml

from pimserve.cluster.scenario.document import Scenario, json_schema, load_scenario
from pimserve.cluster.scenario.prepared import prepare
from pimserve.device_models.catalogue import device_names, load_model, model_names
from pimserve.device_models.device import OperatorDevice
from pimserve.device_models.registry import load_device
from pimserve.errors import InputError
from tests.cluster.documents import run


def test_without_a_file_mixtral_runs_on_duplex() -> None:
    scenario = load_scenario(None)
    prepared = prepare(scenario)
    model, pool = prepared.model, prepared.pools[0]
    assert (model.name, scenario.cluster.device, pool.plan.devices) == ("mixtral-8x7b", "duplex", 4)
    assert scenario.workload.preset == "azure-conv-2023"


def test_overrides_win_over_the_file_and_the_last_one_wins(tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    file.write_text("run: {seed: 1, warmup_s: 5 min}\ncluster: {device: h100}\n")
    scenario = load_scenario(file, ["run.seed=2", "run.seed=3", "cluster.replicas=4"])
    assert (scenario.run.seed, scenario.run.warmup_s) == (3, 300.0)
    assert (scenario.cluster.device, scenario.cluster.replicas) == ("h100", 4)


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("cluster.node_gb_per_s=400 Gb/s", "cluster.node_gb_per_s", 50.0),
        ("run.warmup_s=90 s", "run.warmup_s", 90.0),
        ("run.max_time_s=2 h", "run.max_time_s", 7200.0),
        ("run.max_time_s=null", "run.max_time_s", None),
        ("output.steps=false", "output.steps", False),
        ("name=run-7.b", "name", "run-7.b"),
        ("scheduler={max_num_seqs: 8}", "scheduler.max_num_seqs", 8),
        ("slo={}", "slo.ttft_s", None),
        ("slo=null", "slo.ttft_s", None),
    ],
)
def test_values_of_overrides_are_yaml(override: str, path: str, value: object) -> None:
    found: object = load_scenario(None, [override])
    for key in path.split("."):
        found = getattr(found, key)
    assert found == value


def test_an_override_below_a_preset_changes_only_that() -> None:
    scenario = load_scenario(
        None, ["model.layers=16", "cluster.device.memory_gb=96", "cluster.device.pim.dram_efficiency=0.5"]
    )
    model, device = scenario.load_model(), scenario.load_device()
    assert model == load_model("mixtral-8x7b").model_copy(update={"layers": 16, "published": None})
    default = load_scenario(None).load_device()
    assert device.spec.memory_gb == 96
    assert device.spec.pim.dram_efficiency == 0.5
    assert device.spec.pim.model_dump(exclude={"dram_efficiency"}) == default.spec.pim.model_dump(
        exclude={"dram_efficiency"}
    )
    assert (
        prepare(scenario).pools[0].replica.weight_bytes_per_device
        < prepare(load_scenario(None)).pools[0].replica.weight_bytes_per_device
    )


@pytest.mark.parametrize("name", model_names())
def test_every_model_can_be_changed_by_key(name: str) -> None:
    original = load_model(name)
    heads = 2 * original.attention.heads
    scenario = load_scenario(None, [f"model={name}", "model.vocab=1000", f"model.attention.heads={heads}"])
    changed = scenario.load_model()
    assert changed.vocab == 1000
    attention = original.attention.model_copy(update={"heads": heads})
    # What was published of its size does not hold for the changed one.
    assert changed == original.model_copy(update={"vocab": 1000, "attention": attention, "published": None})


def test_a_model_may_be_described_in_full() -> None:
    document = load_model("llama-3.1-8b").model_dump(mode="json") | {"name": "mine"}
    scenario = Scenario.model_validate({"model": document})
    assert scenario.load_model().name == "mine"
    assert scenario.load_model().parameters == load_model("llama-3.1-8b").parameters


@pytest.mark.parametrize("name", device_names())
def test_the_resolved_scenario_is_the_scenario(name: str, tmp_path: Path) -> None:
    scenario = load_scenario(
        None,
        [
            f"cluster.device={name}",
            "cluster.devices_per_node=8",
            "model=mixtral-8x22b" if isinstance(load_device(name), OperatorDevice) else "model=mixtral-8x7b",
            "slo={preset: mlperf/mixtral-8x7b/server, ttft_s: null}",
        ],
    )
    file = tmp_path / "resolved.yaml"
    file.write_text(yaml.safe_dump(scenario.resolved()))
    again = load_scenario(file)
    assert again.resolved() == scenario.resolved()
    assert prepare(again).pools[0].plan.digest() == prepare(scenario).pools[0].plan.digest()
    assert again.slo == scenario.slo
    assert again.workload == scenario.workload
    # It depends on no catalogue.
    assert again.model["layers"] > 0
    assert again.cluster.device["kind"] == scenario.load_device().spec.kind


def test_a_trace_takes_the_place_of_arrivals_and_lengths(tmp_path: Path) -> None:
    trace = tmp_path / "t.csv"
    trace.write_text("arrival_s,input_tokens,output_tokens\n0,5,5\n1,5,5\n")
    file = tmp_path / "s.yaml"
    file.write_text("run: {seed: 3}\nworkload: {mode: closed, concurrency: 2, preset: azure-conv-2023}\n")
    scenario = load_scenario(file, ["workload.stagger=true"], f"csv:{trace}")
    assert scenario.run.seed == 3
    assert scenario.workload.preset is None
    assert (scenario.workload.mode, scenario.workload.concurrency, scenario.workload.stagger) == ("closed", 2, True)
    assert (scenario.workload.trace.format, scenario.workload.trace.path) == ("csv", str(trace))


def test_routing_is_made_for_the_models_experts() -> None:
    weights = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]
    routing = prepare(load_scenario(None, [f"routing={{popularity: given, weights: {weights}, mode: exact}}"])).routing
    assert (routing.popularity, routing.weights, routing.mode) == ("given", (tuple(weights),), "exact")
    routing = prepare(load_scenario(None, ["routing={popularity: zipf, zipf_exponent: 0.5}"])).routing
    assert routing.zipf_exponent == 0.5


def test_costs_without_the_product_with_the_vocabulary() -> None:
    full, without = (
        prepare(load_scenario(None)).pools[0].plan,
        prepare(load_scenario(None, ["costs.lm_head=false"])).pools[0].plan,
    )
    assert full.rows_fs(0, 8, 0, 0) > 0 == without.rows_fs(0, 8, 0, 0)


def test_links_come_from_the_device_and_the_cluster() -> None:
    scenario = load_scenario(None, ["cluster.node_latency_us=7", "cluster.device.link_latency_us=1 us"])
    links = scenario.interconnect(scenario.load_device())
    assert (links.link_gb_per_s, links.link_latency_us) == (450, 1.0)
    assert (links.node_gb_per_s, links.node_latency_us, links.dispatch_us) == (50.0, 7.0, 15.0)


def test_schema_names_every_key_and_its_limits() -> None:
    schema = json_schema()
    assert set(schema["properties"]) == set(Scenario.model_fields)
    assert schema["additionalProperties"] is False
    seed = schema["$defs"]["RunSpec"]["properties"]["seed"]
    assert (seed["minimum"], seed["exclusiveMaximum"]) == (0, 2**63)
    assert schema["properties"]["slo"]["anyOf"] == [{"$ref": "#/$defs/SloSpec"}, {"type": "null"}]
    described = [
        (section, key)
        for section, definition in schema["$defs"].items()
        for key, value in definition.get("properties", {}).items()
        if {"type", "anyOf", "$ref", "enum", "const", "allOf", "oneOf"}.isdisjoint(value)
    ]
    assert described == []


def test_what_differs_from_the_default_of_a_mapping_is_an_error_with_the_path() -> None:
    with pytest.raises(InputError) as refused:
        Scenario.model_validate({"model": {"preset": "mixtral-8x7b", "moe": {"top_k": 9}}}).load_model()
    assert str(refused.value) == "model.moe: top_k (9) must not exceed experts (8)"


@pytest.mark.parametrize("preset", ["h100", "duplex", "gb200"])
def test_measured_costs_are_those_of_the_named_kernels(preset: str) -> None:
    sets = ["costs.setting=measured", f"cluster.device={preset}"]
    ideal = prepare(load_scenario(None, sets[1:])).pools[0]
    vllm = prepare(load_scenario(None, sets)).pools[0]
    trtllm = prepare(load_scenario(None, [*sets, "costs.backend=trtllm"])).pools[0]
    assert ideal.replica.costs == {"setting": "ideal"}
    assert (vllm.replica.costs["backend"], trtllm.replica.costs["backend"]) == ("vllm", "trtllm")
    assert len({pool.plan.digest() for pool in (ideal, vllm, trtllm)}) == 3
    kept = 4 * vllm.replica.reserved_bytes_per_device / load_model("mixtral-8x7b").kv_bytes_per_token
    assert ideal.kv_capacity_tokens - vllm.kv_capacity_tokens == pytest.approx(kept, abs=1)
    assert ("projected" in " ".join(vllm.replica.warnings)) == (preset == "duplex")
    assert ("measured on b200" in " ".join(vllm.replica.warnings)) == (preset == "gb200")


def test_kernels_of_the_scenario_change_those_of_the_catalogue() -> None:
    sets = ["costs.setting=measured", "cluster.device=h100"]
    plain = prepare(load_scenario(None, sets)).pools[0]
    changed = prepare(load_scenario(None, [*sets, "costs.kernels.step.host_us=0"])).pools[0]
    assert changed.plan.digest() != plain.plan.digest()
    assert changed.replica.costs["version"] == f"{plain.replica.costs['version']} (changed)"


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (["costs.backend=vllm"], "costs: backend goes with setting: measured"),
        (["costs.kernels={}"], "costs: kernels goes with setting: measured"),
        (["costs.setting=real"], "costs.setting: must be 'ideal' or 'measured'"),
        (["costs.setting=measured", "costs.backend=sglang"], "costs.backend: must be 'vllm' or 'trtllm'"),
    ],
)
def test_settings_that_do_not_go_together(sets: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_scenario(None, sets)


def test_links_between_nodes_are_said_to_be_ideal() -> None:
    sets = ["costs.setting=measured", "cluster.device=h100", "cluster.nodes=2", "model=llama-3.1-8b"]
    two = prepare(load_scenario(None, sets)).pools[0].replica
    one = prepare(load_scenario(None, [*sets, "cluster.nodes=1"])).pools[0].replica
    assert any("between nodes" in warning for warning in two.warnings)
    assert not any("between nodes" in warning for warning in one.warnings)


def test_popularity_may_be_given_for_each_layer(tmp_path: Path) -> None:
    settings = [
        *("model=mixtral-8x7b", "model.layers=3", "cluster.device=h100", "workload.num_requests=20"),
        "workload.lengths={input: {kind: fixed, tokens: 90}, output: {kind: fixed, tokens: 9}}",
        "workload.arrival={process: constant, rate_per_s: 20}",
    ]

    def digest(name: str, weights: str) -> str:
        scenario = load_scenario(None, [*settings, f"routing={{popularity: given, weights: {weights}}}"])
        found = run(prepare(scenario), tmp_path / name)["digest"]
        assert (
            run(prepare(load_scenario(tmp_path / name / "scenario.yaml")), tmp_path / f"{name}-again")["digest"]
            == found
        )
        return str(found)

    alike = "[0, 0, 3, 1, 1, 1, 1, 1]"
    one = digest("one", alike)
    assert digest("each", f"[{alike}, {alike}, {alike}]") == one  # no other scenario than one list for all
    assert digest("other", f"[{alike}, {alike}, [9, 1, 0, 0, 0, 0, 0, 0]]") != one
