"""What is asked for and changes nothing is said, and figures of kernels are figures."""

from typing import Any

import pytest

from pimserve.cluster.scenario.document import load_scenario
from pimserve.cluster.scenario.prepared import prepare
from pimserve.device_models.catalogue import load_model
from pimserve.device_models.device import Demand
from pimserve.device_models.kernels import load_kernels
from pimserve.device_models.operators import Parallelism
from pimserve.device_models.registry import load_device
from pimserve.errors import InputError

MEASURED = "costs.setting=measured"


def fitted(device: dict[str, Any], backend: str = "vllm") -> Any:
    split = Parallelism(nodes=1, devices_per_node=4, tensor=4, experts="ep")
    return load_device(device).fit(Demand(load_model("mixtral-8x7b"), split, backend=backend))


def warnings(*overrides: str) -> tuple[str, ...]:
    return prepare(load_scenario(None, overrides)).pools[0].replica.warnings


@pytest.mark.parametrize("preset", ["h100", "gb200", "duplex"])
def test_shares_and_links_that_measured_kernels_do_not_use(preset: str) -> None:
    backend = "trtllm" if preset == "gb200" else "vllm"
    plain = fitted({"preset": preset}, backend)
    changes = {"dram_efficiency": 0.5, "link_latency_us": 9}
    for key, value in changes.items():
        changed = fitted({"preset": preset, key: value}, backend)
        expected = f"{preset}: measured kernels make no use of {key}; costs.kernels says what they reach"
        assert changed.plan == plain.plan
        assert set(changed.warnings) - set(plain.warnings) == {expected}
    mine = fitted({"preset": preset, "name": "mine", **changes}, backend)
    assert any("no use of dram_efficiency, link_latency_us" in each for each in mine.warnings)
    assert not any("no use of" in each for each in plain.warnings)


def test_changes_to_kernels_that_a_device_does_not_run() -> None:
    aimc = ("cluster.device=aimc-realistic", "cluster.devices_per_node=8", MEASURED)
    plain = warnings(*aimc)
    host = warnings(*aimc, "costs.kernels={step: {host_us: 9}}")
    assert host == plain
    more = warnings(*aimc, "costs.kernels={gemm: {bf16: {compute: 0.5}}, step: {host_us: 9, layer_us: 1}}")
    unused = "aimc-realistic makes no use of costs.kernels.gemm, costs.kernels.step.layer_us"
    assert set(more) - set(plain) == {unused}


def test_collectives_over_more_devices_than_were_measured() -> None:
    wide = ["cluster.device=gb200", "costs.backend=trtllm", MEASURED, "model=llama-3.1-405b"]
    beyond = {
        "all-reduces of 16 devices take the figures measured for 8",
        "all-gathers of 16 devices take the figures measured for 8",
    }
    eight = warnings(*wide, "cluster.devices_per_node=8")
    assert set(warnings(*wide, "cluster.devices_per_node=16")) - set(eight) == beyond
    experts = [*wide[:-1], "model=deepseek-v3", "cluster.tensor_parallel=1"]
    assert "dispatch and combine of 16 devices take the figures measured for 8" in warnings(
        *experts, "cluster.devices_per_node=16"
    )


def test_draws_and_links_that_a_replica_does_not_use() -> None:
    aimc = ("cluster.device=aimc-realistic", "cluster.devices_per_node=8")
    plain = warnings(*aimc)
    asked = warnings(*aimc, "routing.mode=exact", "cluster.node_gb_per_s=3", "cluster.dispatch_us=1")
    assert set(asked) - set(plain) == {
        "routing.mode: exact changes nothing: the plan of aimc-realistic has expected loads of experts",
        "cluster.node_gb_per_s, cluster.dispatch_us: no effect, a replica has one node",
    }
    assert warnings("routing.mode=exact") == ()
    assert warnings("cluster.nodes=2", "cluster.node_gb_per_s=3") == ()


def test_ways_of_collectives_that_a_replica_does_not_have() -> None:
    aimc = ("cluster.device=aimc-realistic", "cluster.devices_per_node=8")
    ring = "costs.collectives: no effect, a replica has no all-reduces"
    assert set(warnings(*aimc, "costs.collectives=ring")) - set(warnings(*aimc)) == {ring}
    assert warnings("cluster.devices_per_node=1", "model=llama-3.1-8b", "costs.collectives=ring") == (ring,)
    assert warnings("costs.collectives=ring") == ()
    none = "cluster.device={preset: h100, one_shot_latency_us: null}"
    rings = "h100 has no one_shot_latency_us: with costs.collectives: best, all-reduces are rings only"
    assert rings in warnings(none)
    for without in (("costs.collectives=ring",), ("cluster.devices_per_node=1", "model=llama-3.1-8b"), (MEASURED,)):
        assert rings not in warnings(none, *without)
    assert rings not in warnings("cluster.device=h100")
    whole = "cluster.dispatch: no effect, no tokens pass between data-parallel groups"
    assert warnings("cluster.dispatch=direct") == (whole,)
    split = "cluster.tensor_parallel=2"
    assert warnings(split, "cluster.dispatch=direct") == (
        "cluster.dispatch: no effect, a replica has one node, where forward is direct",
    )
    assert warnings(split, "cluster.dispatch=per_pick") == warnings("cluster.nodes=2", "cluster.dispatch=direct") == ()
    measured = ("cluster.device=h100", MEASURED, split)
    assert set(warnings(*measured, "cluster.dispatch=per_pick")) - set(warnings(*measured)) == {
        "cluster.dispatch: no effect, a replica has one node, where collectives are measured"
    }


TABLE = "costs.expert_decision=paper_table"


@pytest.mark.parametrize(
    "settings",
    [
        ("cluster.device=h100",),
        ("cluster.device=aimc-realistic", "cluster.devices_per_node=8"),
        ("cluster.device=logic-pim",),
        ("cluster.device.processor_selection=per_layer",),
        ("model=llama-3.1-70b",),
    ],
)
def test_a_decision_table_where_nothing_is_divided(settings: tuple[str, ...]) -> None:
    (more,) = set(warnings(*settings, TABLE)) - set(warnings(*settings))
    assert more.startswith("costs.expert_decision: paper_table changes nothing: ")


def test_a_decision_table_that_has_an_effect_is_not_warned_of() -> None:
    assert warnings(TABLE) == warnings()
    exact, table = (prepare(load_scenario(None, each)).pools[0].plan for each in ((), (TABLE,)))
    assert exact != table


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gemm": {"bf16": {"compute": True}}}, r"gemm\.bf16\.compute: must be a number \(got true\)"),
        ({"gemm": {"bf16": {"reread": False}}}, r"gemm\.bf16\.reread: must be a number \(got false\)"),
        ({"step": {"host_us": True}}, r"step\.host_us: a number in us is needed"),
        ({"version": ""}, r"version: must be a line of text"),
        ({"version": "1.0\nwarning: forged"}, r"version: must be a line of text"),
        ({"version": "x" * 101}, r"version: String should have at most 100|version: .*at most 100"),
        (
            {"collectives": {"all_reduce": {2: [{"name": "a", "latency_us": 1, "bus_gb_per_s": "450"}]}}},
            r"bus_gb_per_s: '450' is not a number in GB/s nor a number with one of the units",
        ),
    ],
)
def test_figures_of_kernels_are_numbers(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=rf"^costs\.kernels\.\S*?{message}"):
        load_kernels("h100", "vllm", changes)


def test_a_bandwidth_of_kernels_may_have_a_unit() -> None:
    entry = {"name": "a", "latency_us": 1, "bus_gb_per_s": "0.45 TB/s"}
    changed = load_kernels("h100", "vllm", {"collectives": {"all_reduce": {2: [entry]}}})
    assert changed.collectives.all_reduce[2][0].bus_gb_per_s == 450
