"""Replicas with attention on one group of devices and routed experts on another."""

from pathlib import Path

import numpy as np
import pytest
import yaml

from pimserve.cluster.run.run import serve
from pimserve.cluster.scenario.document import Scenario, load_scenario, parse_scenario
from pimserve.cluster.scenario.farthest_energy import farthest_energy
from pimserve.cluster.scenario.prepared import Prepared, prepare
from pimserve.device_models.evaluate import evaluate, shape_of
from pimserve.device_models.expert_picks import draw_counts, pick_probabilities
from pimserve.device_models.experts import FEATURES
from pimserve.device_models.routing import Routing
from pimserve.device_models.step import StepShape
from pimserve.errors import InputError

MIXED = ["cluster.devices_per_node=2", "cluster.placement={experts: {device: h100}}", "workload.num_requests=40"]


def prepared(*overrides: str) -> Prepared:
    return prepare(load_scenario(None, [*MIXED, *overrides]))


def placement(of: Prepared) -> dict:
    return of.pools[0].replica.facts["placement"]


def test_experts_with_attention_run_as_without_a_placement() -> None:
    plain, same = (
        prepare(load_scenario(None, ["workload.num_requests=60", *more]))
        for more in ([], ["cluster.placement={experts: attention, micro_batches: 1}"])
    )
    assert same.pools[0].plan == plain.pools[0].plan
    assert serve(same)[0].digest == serve(plain)[0].digest


def test_each_group_holds_its_part_on_the_fewest_devices() -> None:
    found = prepared()
    attention, experts = found.pools[0].groups
    assert (attention.label, attention.devices_per_replica) == ("duplex", 2)
    assert (experts.label, experts.devices_per_replica) == ("h100", 2)  # 90 GB of experts
    assert found.pools[0].devices_per_replica == found.pools[0].plan.devices == 4
    assert found.device == "duplex + h100"
    model = found.model
    held = attention.replica.weight_bytes_per_device * 2 + experts.replica.weight_bytes_per_device * 2
    assert held == pytest.approx(model.weight_bytes, rel=0.01)  # copies of gates beside it
    assert experts.kv_capacity_tokens == 0
    assert not any("KV cache" in warning for warning in experts.replica.warnings)
    assert found.pools[0].silicon_mm2 == attention.silicon_mm2 + experts.silicon_mm2


def test_what_is_resolved_runs_the_same(tmp_path: Path) -> None:
    scenario = load_scenario(None, [*MIXED, "cluster.placement.link.gb_per_s=80"])
    text = yaml.safe_dump(scenario.resolved())
    again = parse_scenario(text, "resolved")
    assert again.resolved() == scenario.resolved()
    assert serve(prepare(again))[0].digest == serve(prepare(scenario))[0].digest


@pytest.mark.parametrize(
    ("given", "assumed"),
    [
        ([], "gb_per_s 50 and latency_us 5"),
        (["gb_per_s=50"], "latency_us 5"),
        (["latency_us=0"], "gb_per_s 50"),
        (["gb_per_s=50", "latency_us=5"], ""),
    ],
)
def test_what_is_assumed_of_the_link_is_told(given: list[str], assumed: str) -> None:
    found = prepared(*(f"cluster.placement.link.{each}" for each in given))
    again = prepare(parse_scenario(yaml.safe_dump(found.scenario.resolved()), "resolved"))
    told = f"cluster.placement.link: {assumed} assumed, as the scenario gives none"
    for each in (found, again):
        notes = [note for note in each.pools[0].replica.warnings if "placement.link" in note]
        assert notes == ([told] if assumed else [])
        assert placement(each)["link"]["gb_per_s"] == 50
    assert placement(prepared())["link"]["latency_us"] == 5


def test_one_micro_batch_is_the_plain_sum() -> None:
    found = prepared("cluster.placement.micro_batches=1")
    log = serve(found)[1].logs[0]
    assert log.busy_fs == sum(log.category_fs.values())
    assert log.stage_fs["experts"] == log.stage_fs["work"]  # attention waits for all that experts do
    links = log.unit_fs["dispatch"] + log.unit_fs["combine"]
    assert log.stage_fs["link"] == links


def test_auto_takes_the_number_with_the_shortest_steps() -> None:
    chosen = placement(prepared())
    steps_s = chosen["micro_batches_auto"]["step_s"]
    assert list(steps_s["1"]) == ["1"]  # a request cannot be cut
    cuts = chosen["micro_batches_by_tokens"]
    assert cuts[0][0] == 1
    for requests, times in steps_s.items():
        number = [number for tokens, number in cuts if tokens <= int(requests)][-1]
        assert times[str(number)] == min(times.values())


def test_auto_takes_fewer_where_fewer_are_faster_again() -> None:
    """Attention and experts on Duplex: single requests are faster as one part, then two are, and then one again."""
    cluster = {"device": "duplex", "devices_per_node": 1, "placement": {"experts": {"devices_per_node": "auto"}}}
    found = prepare(load_scenario(None, ["model=mixtral-8x7b", f"cluster={cluster}", "workload.num_requests=2"]))
    numbers = [number for _, number in placement(found)["micro_batches_by_tokens"]]
    assert numbers != sorted(numbers)


def test_parts_of_the_model_go_where_they_are_said_to() -> None:
    model = "deepseek-v3"
    base = [f"model={model}", "cluster.device=b200", "cluster.devices_per_node=8", "cluster.tensor_parallel=1"]
    here = {"experts": {"device": "h200", "devices_per_node": 16}, "micro_batches": 2}
    there = {**here, "lm_head": "experts", "dense_ffn": "experts", "shared_experts": "experts"}
    plans = [
        prepare(load_scenario(None, [*base, f"cluster.placement={value}"])).pools[0].plan for value in (here, there)
    ]
    names = [{(row.name, row.stage) for row in plan.rows} for plan in plans]
    for name in ("lm head", "ffn up", "shared up"):
        assert (name, "attention") in names[0]
        assert (name, "experts") in names[1]
        assert (name, "attention") not in names[1]
    micro = [plan.micro_batches for plan in plans]
    assert [len(each.visits) for each in micro] == [58, 62]  # with three dense layers, and the head
    assert micro[0].visits[0].layers == 4
    assert micro[1].closing == (0, 0)


@pytest.mark.parametrize("popularity", ["uniform", "zipf"])
def test_copies_on_the_link_are_those_of_many_draws(popularity: str) -> None:
    routing = ["routing.popularity=zipf", "routing.zipf_exponent=1.2"] if popularity == "zipf" else []
    found = prepared("cluster.placement.experts.devices_per_node=4", *routing)
    link = placement(found)["link"]
    moe = found.model.moe
    weights = found.routing.expert_weights(moe.experts, found.scenario.run.seed)[0]
    one = draw_counts(np.random.default_rng(1), pick_probabilities(weights, moe.top_k), 1, 40_000)
    hit = one.reshape(-1, 4, moe.experts // 4).any(axis=2).mean(axis=0)
    assert link["copies_per_token"] == pytest.approx(hit.sum(), rel=0.01)
    assert link["copies_of_busiest_device"] == pytest.approx(hit.max(), rel=0.02)


def test_pools_may_have_groups(tmp_path: Path) -> None:
    scenario = load_scenario(
        None,
        [
            "cluster.pools={prefill: {device: h100, devices_per_node: 2}, decode: {devices_per_node: 2, placement: "
            "{experts: {device: h100}, micro_batches: 2}}}",
            "workload.num_requests=30",
        ],
    )
    found = prepare(scenario)
    assert [len(pool.groups) for pool in found.pools] == [0, 2]
    served = serve(found)[1]
    assert served.table["finish_ps"].min() > 0


@pytest.mark.parametrize(
    ("overrides", "where", "what"),
    [
        (["cluster.placement.link.gb_per_s=0"], "cluster.placement.link.gb_per_s", "greater than or equal to"),
        (["cluster.placement.micro_batches=9"], "cluster.placement.micro_batches", "8"),
        (["cluster.placement.micro_batches=two"], "cluster.placement.micro_batches", "a whole number, or auto"),
        (
            ["cluster.placement.micro_batches=4", "scheduler.max_num_seqs=3"],
            "cluster.placement.micro_batches",
            "exceeds scheduler.max_num_seqs, the 3 requests of the largest batch: use at most 3, or auto",
        ),
        (
            ["cluster.placement.micro_batches=4", "workload={mode: closed, concurrency: 3, num_requests: 40}"],
            "cluster.placement.micro_batches",
            "4 exceeds workload.concurrency, 3 at once: use at most 3, or auto, or workload.concurrency of 4 or more",
        ),
        (
            [
                *("cluster.placement.micro_batches=4", "cluster.replicas=3", "faults={}"),  # none, so that users stay
                "workload={mode: closed, concurrency: 9, num_requests: 40}",
            ],
            "cluster.placement.micro_batches",
            "4 exceeds workload.concurrency, 9 over 3 replicas, 3 at once on one: use at most 3, or "
            "auto, or workload.concurrency of 12 or more",
        ),
        (
            ["cluster.placement.micro_batches=2", "workload.max_concurrency=1"],
            "cluster.placement.micro_batches",
            "2 exceeds workload.max_concurrency, 1 at once: use at most 1, or auto",
        ),
        (
            ["cluster.placement.experts.devices_per_node=1"],
            "cluster.placement.experts",
            "weights take 90.2 GB of each device's usable 77.3 GB (1 x h100); use more devices or a smaller model",
        ),
        (
            ["cluster.placement.experts.device={preset: h100, energy: {xpu_pj_per_bit: 9e8}}"],
            "cluster.placement.experts.device",
            "is the unit of an energy wrong?",
        ),
        (["cluster.placement.experts.device=duplx"], "cluster.placement.experts.device", "duplex"),
        (["model=llama-3.1-8b"], "cluster.placement", "no routed experts"),
        (["cluster.placement={experts: attention, lm_head: experts}"], "cluster.placement", "lm_head"),
        (["cluster.placement={experts: attention, micro_batches: 2}"], "cluster.placement", "micro_batches"),
        (
            ["cluster.placement={experts: {device: h100, devices_per_node: 1}, lm_head: experts}"],
            "cluster.placement.experts: ",
            "mixtral-8x7b (lm head, routed experts) does not fit: weights take 90.",
        ),
    ],
)
def test_what_does_not_go_is_said_with_its_place(overrides: list[str], where: str, what: str) -> None:
    with pytest.raises(InputError) as caught:
        prepared(*overrides)
    assert where in str(caught.value)
    assert what in str(caught.value)


@pytest.mark.parametrize(
    "overrides",
    [
        ["workload={mode: closed, concurrency: 10, num_requests: 40}"],  # four of them on one of the replicas
        ["workload={mode: closed, concurrency: 4, num_requests: 40}", "scheduler.router=least_outstanding"],
        ["workload={mode: closed, concurrency: 4, num_requests: 40, think_time_s: 1}"],
        [
            "workload={mode: closed, concurrency: 4, num_requests: 40}",
            "faults={events: [{at_s: 1, replica: 0, kind: leave}]}",
        ],
        ["workload={mode: closed, concurrency: 4, num_requests: 40}", "cluster.pools={prefill: {}, decode: {}}"],
        ["workload.max_concurrency=4"],
    ],
)
def test_as_many_micro_batches_as_may_be_filled_are_taken(overrides: list[str]) -> None:
    found = prepared("cluster.placement.micro_batches=4", "cluster.replicas=3", *overrides)
    assert placement(found)["micro_batches"] == 4


def test_a_prompt_fills_several_micro_batches() -> None:
    """It is cut by tokens, so that in a pool for prefill one at a time is enough."""
    split, whole = (
        prepared(
            *("workload={mode: closed, concurrency: 1, num_requests: 3}", f"cluster.placement.micro_batches={parts}"),
            "cluster.pools={prefill: {}, decode: {placement: {experts: attention}}}",
        )
        for parts in (2, 1)
    )
    assert placement(split)["micro_batches"] == 2
    assert serve(split)[0].digest != serve(whole)[0].digest


ZIPF = ["routing.popularity=zipf", "routing.zipf_exponent=1"]
_TYPO = "{preset: h100, tdp: 1}"


@pytest.mark.parametrize(
    ("overrides", "where"),
    [
        ([f"cluster.placement.experts.device={_TYPO}"], "cluster.placement.experts.device.tdp"),
        (
            [f"cluster.placement.experts={{device: {_TYPO}, devices_per_node: auto}}"],
            "cluster.placement.experts.device.tdp",
        ),
        ([f"cluster.placement.attention.device={_TYPO}"], "cluster.placement.attention.device.tdp"),
        ([f"cluster.device={_TYPO}"], "cluster.device.tdp"),
        (
            [f"cluster.placement.hot_experts={{device: {_TYPO}, count: 1}}", *ZIPF],
            "cluster.placement.hot_experts.device.tdp",
        ),
        ([f"cluster.pools={{prefill: {{device: {_TYPO}}}, decode: {{}}}}"], "cluster.pools.prefill.device.tdp"),
        (
            [f"cluster.pools={{prefill: {{}}, decode: {{placement: {{experts: {{device: {_TYPO}}}}}}}}}"],
            "cluster.pools.decode.placement.experts.device.tdp",
        ),
        (["cluster.pools={prefill: {}, decode: {}}", f"cluster.device={_TYPO}"], "cluster.device.tdp"),
        (["cluster.placement.experts.count=2"], "cluster.placement.experts.count"),
    ],
)
def test_keys_that_nobody_knows_are_named_where_the_scenario_has_them(overrides: list[str], where: str) -> None:
    with pytest.raises(InputError) as caught:
        prepared(*overrides)
    assert str(caught.value).startswith(f"{where}: unknown key")
    assert "(known: " in str(caught.value)


def test_experts_are_on_a_group_or_with_attention() -> None:
    with pytest.raises(
        InputError, match=r"^cluster\.placement\.experts: must be a mapping .*, or attention \(got 'gpu'"
    ):
        prepared("cluster.placement.experts=gpu")


def test_the_schema_says_what_may_be_placed() -> None:
    assert "placement" in Scenario.model_json_schema()["$defs"]["ClusterSpec"]["properties"]


def test_precision_is_that_of_all_that_hold_weights() -> None:
    chips = "cluster.placement.experts.device=aimc-realistic"
    held = [prepared(chips, *more).pools[0].replica.precision for more in ([], ["cluster.placement.lm_head=experts"])]
    assert [(each.weights, each.routed_weights, each.kv_cache) for each in held] == [
        ("bf16", "5-bit", "bf16"),
        ("bf16 + 5-bit", "5-bit", "bf16"),
    ]


def test_no_step_takes_more_energy_than_its_bound() -> None:
    """Each micro-batch reads the weights: with few tokens that is most of it."""
    pool = prepared("cluster.placement.micro_batches=4").pools[0]
    plan = pool.plan
    shape = shape_of(plan, 4, 4, (), 4)
    features = pool.costs(Routing(), 0).experts_features(StepShape(*(np.full(128, n) for n in shape)), np.arange(128))
    moe_pj = features[:, [FEATURES.index(f"{kind}_pj") for kind in ("dram", "compute")]].sum(axis=1)
    others_pj = sum(coefficient * times for _, coefficient, times in evaluate(plan, shape).energy)
    bound = plan.most_step_pj(4, 4)
    assert moe_pj.max() + others_pj <= bound
    assert bound < 4 * (moe_pj.max() + others_pj)


@pytest.mark.parametrize(
    ("overrides", "place"),
    [
        (["cluster.device={preset: duplex, energy: {xpu_pj_per_bit: 9e8}}"], "cluster.device.energy.xpu_pj_per_bit"),
        (
            ["cluster.placement.experts.device={preset: h100, energy: {xpu_pj_per_bit: 9e8}}"],
            "cluster.placement.experts.device.energy.xpu_pj_per_bit",
        ),
    ],
)
def test_an_energy_beyond_all_counting_is_found_in_either_group(overrides: list[str], place: str) -> None:
    found = prepared(*overrides, "cluster.placement.micro_batches=2")
    assert farthest_energy(found.scenario, found.pools)[0] == place
