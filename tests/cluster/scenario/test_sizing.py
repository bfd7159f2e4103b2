"""`devices_per_node: auto`: the fewest devices that hold the model, found by the device's own fit."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pimserve.cluster.scenario.document import load_scenario
from pimserve.cluster.scenario.placement import most_tokens
from pimserve.cluster.scenario.prepared import prepare
from pimserve.device_models.aimc.aimc import Aimc
from pimserve.device_models.device import Demand, Fitted
from pimserve.errors import InputError
from tests.cluster.documents import run
from tests.cluster.scenario.test_plugin_device import Abacus, registered
from tests.examples import examples

AUTO = "cluster.devices_per_node=auto"


def number(*changes: str) -> int:
    found = load_scenario(None, [AUTO, *changes]).cluster.devices_per_node
    assert isinstance(found, int)
    return found


@pytest.mark.parametrize(
    ("device", "model", "devices"),
    [
        ("aimc-realistic", "mixtral-8x7b", 6),  # 178,416 tiers of 32,768 a chip
        ("aimc-realistic", "gpt2-medium", 1),
        ("aimc-realistic", "llama-3.1-8b", 1),
        ("duplex", "mixtral-8x7b", 2),  # 93 GB of weights, of 80 GiB a device
        ("h100", "mixtral-8x7b", 2),
        ("h100", "llama-3.1-8b", 1),
        ("b200", "mixtral-8x7b", 1),
        ("h100", "deepseek-v3", 16),  # 671 GB of weights would take 9; 128 heads divide by 16
    ],
)
def test_the_fewest_that_hold_the_model(device: str, model: str, devices: int) -> None:
    assert number(f"cluster.device={device}", f"model={model}") == devices


def holds(*changes: str) -> bool:
    """Whether the model divides and fits, with room for a request of the longest length."""
    scenario = load_scenario(None, list(changes))
    try:
        prepared = prepare(scenario)
        model, pools = prepared.model, prepared.pools
    except InputError:
        return False
    (pool,) = pools
    wanted = scenario.scheduler.max_model_len or model.max_model_len_tokens
    return pool.kv_capacity_tokens // pool.plan.data_parallel >= wanted


@pytest.mark.slow
@examples(25)
@given(
    st.sampled_from(["duplex", "h100", "b200", "aimc-realistic", "aimc-paper-table"]),
    st.sampled_from(["mixtral-8x7b", "llama-3-70b", "qwen3-30b-a3b", "gpt2-large"]),
    st.sampled_from([None, 1024]),
    st.sampled_from([0.5, 0.9]),
)
def test_no_smaller_number_would_do(device: str, model: str, longest: int | None, use: float) -> None:
    changes = [f"cluster.device={device}", f"model={model}", f"scheduler.memory_utilization={use}"]
    if longest is not None:
        changes.append(f"scheduler.max_model_len={longest}")
    if device.startswith("aimc"):
        changes[0] = f"cluster.device={{preset: {device}, mapping: {{strategy: greedy_in_order}}}}"
    found = number(*changes)
    assert [holds(*changes, f"cluster.devices_per_node={n}") for n in range(1, found + 1)] == [False] * (found - 1) + [
        True
    ]


def test_it_respects_what_is_given_of_the_split() -> None:
    changes = ["cluster.device=h100", "model=mixtral-8x7b"]
    assert number(*changes, "cluster.nodes=2") == 1
    assert number(*changes, "cluster.tensor_parallel=4") == 4
    assert number(*changes, "cluster.experts=tp") == 2
    assert number(*changes, "scheduler.memory_utilization=0.45") == 4
    # Longer requests want more memory: 72 layers or so of a model do not change, their cache does.
    assert number("model=llama-3.1-70b", "cluster.device=h100", "scheduler.max_model_len=8192") == 2
    assert number("model=llama-3.1-70b", "cluster.device=h100") == 4


def test_experts_are_shared_as_suits_the_device_unless_the_scenario_says() -> None:
    def experts(*changes: str) -> object:
        (pool,) = prepare(load_scenario(None, [AUTO, *changes])).pools
        return pool.replica.parallelism.get("experts", pool.replica.parallelism.get("spread"))

    assert experts("cluster.device=h100") == "ep"
    assert experts("cluster.device=h100", "cluster.experts=tp") == "tp"
    assert experts("cluster.device=aimc-realistic") == "layers"
    assert experts("cluster.device={preset: aimc-realistic, spread: experts}") == "experts"


def test_the_results_hold_the_number(tmp_path: Path) -> None:
    scenario = load_scenario(None, [AUTO, "cluster.device=aimc-realistic", "workload.num_requests=5"])
    summary = run(prepare(scenario), tmp_path / "r")
    assert summary["devices"] == 6
    written = yaml.safe_load((tmp_path / "r" / "scenario.yaml").read_text(encoding="utf-8"))
    assert written["cluster"]["devices_per_node"] == 6
    again = run(prepare(load_scenario(tmp_path / "r" / "scenario.yaml")), tmp_path / "again")
    assert (again["digest"], again["scenario_digest"]) == (summary["digest"], summary["scenario_digest"])


def test_pools_have_numbers_of_their_own() -> None:
    pools = "cluster.pools={prefill: {device: b200}, decode: {device: h100}}"
    cluster = load_scenario(None, [AUTO, pools]).cluster
    assert cluster.pools is not None
    assert (cluster.pools.prefill.devices_per_node, cluster.pools.decode.devices_per_node) == (1, 2)
    pools = (
        "cluster.pools={prefill: {device: b200, devices_per_node: 4}, decode: {device: h100, devices_per_node: auto}}"
    )
    cluster = load_scenario(None, [pools]).cluster
    assert cluster.pools is not None
    assert (cluster.pools.prefill.devices_per_node, cluster.pools.decode.devices_per_node) == (4, 2)
    pools = (
        "cluster.pools={prefill: {device: b200}, decode: {device: {preset: aimc-realistic, tiers: 4, spread: layers}}}"
    )
    with pytest.raises(InputError, match=r"cluster\.pools\.decode\.devices_per_node: auto finds no number up to 1,024"):
        load_scenario(None, [AUTO, pools])


@pytest.mark.medium
@pytest.mark.parametrize(
    ("changes", "says"),
    [
        # 8 experts share a tile, which leaves a tier free.
        (["cluster.device={preset: aimc-realistic, tiers: 8, spread: layers}"], "(cluster.device.spread=experts)"),
        (["cluster.device={preset: h100, memory_gb: 0.1}"], "with 1: cluster: mixtral-8x7b does not fit"),
    ],
)
def test_where_no_number_will_do(changes: list[str], says: str) -> None:
    with pytest.raises(InputError) as refused:
        load_scenario(None, [AUTO, *changes])
    assert str(refused.value).startswith("cluster.devices_per_node: auto finds no number up to 1,024 that holds")
    assert says in str(refused.value)


@pytest.mark.medium
@pytest.mark.parametrize(
    ("model", "device"),
    [
        ("mixtral-8x7b", "aimc-realistic"),
        ("gpt-oss-20b", "h100"),
        ("gpt-oss-20b", "aimc-realistic"),
    ],
)
def test_kv_blocks_that_hold_no_longest_request_on_any_number(model: str, device: str) -> None:
    changes = [f"cluster.device={device}", f"model={model}"]
    with pytest.raises(InputError) as refused:
        number(*changes, "scheduler.kv_blocks=700")
    where, message = refused.value.where, refused.value.message
    assert where == "scheduler.kv_blocks"
    told = re.search(r"set it to ([\d,]+) at least, or scheduler\.max_model_len to ([\d,]+) at most", message)
    assert told is not None
    enough, shorter = (int(each.replace(",", "")) for each in told.groups())
    found = number(*changes)
    assert number(*changes, f"scheduler.kv_blocks={enough}") == found
    assert number(*changes, "scheduler.kv_blocks=700", f"scheduler.max_model_len={shorter}") == found
    for too_few in (
        (f"scheduler.kv_blocks={enough - 1}",),
        ("scheduler.kv_blocks=700", f"scheduler.max_model_len={shorter + 1}"),
    ):
        with pytest.raises(InputError, match=r"^scheduler\.kv_blocks: .* on any number of devices"):
            number(*changes, *too_few)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("scheduler.kv_blocks=200000000", "with 6: scheduler.kv_blocks: must be at most 2604166"),
        ("cluster.device.dram.gb=0.01", "with 6: the KV cache holds 732 tokens"),  # 2,048 bytes x six layers
        ("cluster.device.dram.gb=0.000001", "with 6: cluster.device.dram.gb: 9e-07 GB of a chip hold no KV cache"),
    ],
)
def test_the_search_ends_where_no_number_of_chips_has_room(
    change: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried, fit = set(), Aimc.fit

    def noted(self: Aimc, demand: Demand) -> Fitted:
        tried.add(demand.split.devices)
        return fit(self, demand)

    monkeypatch.setattr(Aimc, "fit", noted)
    with pytest.raises(InputError, match=re.escape(says)):
        number("cluster.device=aimc-realistic", change)
    assert tried == {1, 6}


# No matrix is parted: a chip for the largest one of gpt2-medium takes five of its layers, however many chips there are.
@pytest.mark.medium
@pytest.mark.parametrize("model", ["gpt2-medium", "llama-3.1-8b", "gpt-oss-20b", "mixtral-8x7b"])
def test_no_number_of_chips_has_a_larger_kv_cache_than_one_says_of_all(model: str) -> None:
    found = number("cluster.device=aimc-realistic", f"model={model}")
    pools = []
    for chips in (*range(found, found + 8), 16, 24, 32, 48, 96):
        changes = ["cluster.device=aimc-realistic", f"model={model}", f"cluster.devices_per_node={chips}"]
        pools += prepare(load_scenario(None, changes)).pools
    largest = max(pool.kv_capacity_tokens for pool in pools)
    said = [most_tokens(pool.kv_capacity_tokens, pool.replica.kv_growth) for pool in pools]
    assert all(most is not None and most >= largest for most in said)
    assert said[-1] == pools[-1].kv_capacity_tokens == largest


@pytest.mark.medium
def test_the_search_goes_on_while_more_chips_have_more_room() -> None:
    # One of 6 chips has the KV cache of six of the 32 layers, one of 32 has that of one.
    of_layer = 2 * 8 * 128 * 32768 / 0.9e9
    changes = ["cluster.device=aimc-realistic", "scheduler.max_model_len=32768"]
    assert number(*changes, f"cluster.device.dram.gb={6.001 * of_layer}") == 6
    assert number(*changes, f"cluster.device.dram.gb={1.001 * of_layer}") >= 32
    with pytest.raises(InputError, match="auto finds no number"):
        number(*changes, f"cluster.device.dram.gb={0.999 * of_layer}")


@pytest.mark.medium
@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (["cluster.experts=tp", "cluster.device=aimc-realistic"], r"cluster\.experts: chips of aimc-realistic hold"),
        (["cluster.device={preset: aimc-nand, tier_cols: 8192}"], r"cluster\.device\.tier_cols: the figures of"),
        # Among the numbers are some that do not divide the experts.
        (
            [
                "cluster.placement={experts: {device: {preset: aimc-realistic, spread: experts}}}",
                "cluster.expert_placement={order: popularity, rebalance: {interval_s: 1}}",
            ],
            r"cluster\.expert_placement\.rebalance: popularities of experts do not change",
        ),
    ],
)
def test_what_fails_with_any_number_is_not_blamed_on_it(changes: list[str], says: str) -> None:
    with pytest.raises(InputError, match=f"^{says}"):
        load_scenario(None, [AUTO, *changes])


@pytest.mark.medium
def test_chips_that_cannot_hold_layers_spread_experts() -> None:
    changes = ["cluster.device=aimc-realistic", "model=gpt-oss-120b"]
    found = number(*changes)
    assert found == number(*changes, "cluster.device.spread=experts")
    (pool,) = prepare(load_scenario(None, [*changes, f"cluster.devices_per_node={found}"])).pools
    assert pool.replica.parallelism["spread"] == pool.replica.facts["spread"] == "experts"
    with pytest.raises(InputError, match=r"\(cluster\.device\.spread=experts\)"):
        number(*changes, "cluster.device.spread=layers")


def test_other_mistakes_are_told_as_ever() -> None:
    with pytest.raises(InputError, match=r"^routing\.weights: 2 weights"):
        load_scenario(None, [AUTO, "routing={popularity: given, weights: [1, 2]}"])
    for value, says in (("0", "greater than 0"), ("five", "must be a whole number, or auto"), ("1.5", "whole number")):
        with pytest.raises(InputError, match=rf"^cluster\.devices_per_node: .*{says}"):
            load_scenario(None, [f"cluster.devices_per_node={value}"])


def test_a_kind_of_another_package_is_fitted_likewise(monkeypatch: pytest.MonkeyPatch) -> None:
    class Small(Abacus):
        def __init__(self, spec: Any) -> None:
            super().__init__(spec)
            self.memory_bytes = 6e9

    registered(monkeypatch, "anywhere:Small")
    monkeypatch.setattr("importlib.metadata.EntryPoint.load", lambda _: Small)
    device = "cluster.device={kind: abacus, name: my-abacus, link_gb_per_s: 1, link_latency_us: 1, step_s: 0.5}"
    assert number(device, "model=llama-3.1-8b", "scheduler.max_model_len=2048") == 4  # 16 GB of weights
