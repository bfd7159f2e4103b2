"""Hot experts on devices of one kind, cold ones on devices of another, attention on a third."""

from dataclasses import replace

import numpy as np
import pytest
import yaml

from pimserve.cluster.run.run import serve
from pimserve.cluster.scenario.document import Scenario, load_scenario, parse_scenario
from pimserve.cluster.scenario.group_link import GroupLink
from pimserve.cluster.scenario.hot_count import candidates, mean_step_fs
from pimserve.cluster.scenario.pools import routing_of
from pimserve.cluster.scenario.prepared import Prepared, prepare
from pimserve.cluster.scenario.two_groups import link_between
from pimserve.errors import InputError

HOT = "cluster.placement.hot_experts"
BASE = [
    "cluster.devices_per_node=2",
    "cluster.placement={experts: {device: h100}, hot_experts: {device: b200, devices_per_node: 1, count: 2}, "
    "micro_batches: 2}",
    "routing={popularity: zipf, zipf_exponent: 1.0}",
    "workload.num_requests=30",
]
TWO_OF_TWO = "{popularity: given, weights: [1, 1, 0, 0, 0, 0, 0, 0]}"


def scenario(*overrides: str) -> Scenario:
    return load_scenario(None, [*BASE, *overrides])


def prepared(*overrides: str) -> Prepared:
    return prepare(scenario(*overrides))


def link_of(*overrides: str) -> GroupLink:
    found = prepared(*overrides)
    return link_between(found.scenario, found.model, found.routing, *found.pools[0].groups)


def step_fs(of: Prepared, requests: int) -> int:
    """Ten decode steps."""
    costs = of.pools[0].costs(of.routing, of.scenario.run.seed)
    return costs.decode_span(0, requests, requests * 500, 10).duration_fs(10)


def test_three_groups_hold_their_parts() -> None:
    found = prepared()
    pool = found.pools[0]
    attention, hot, cold = pool.members
    assert pool.groups[1].groups == (hot, cold)
    assert found.device == pool.label == "duplex + b200 + h100"
    assert [each.devices_per_replica for each in pool.members] == [2, 1, 1]  # 68 GB of cold experts
    assert pool.devices_per_replica == pool.plan.devices == 4
    assert pool.tdp_w is None or pool.tdp_w == sum(each.tdp_w for each in pool.members)
    held = sum(each.replica.weight_bytes_per_device * each.devices_per_replica for each in (hot, cold))
    moe = found.model.moe
    assert held == moe.experts * moe.expert_parameters(found.model.hidden) * 2 * found.model.moe_layers
    assert attention.plan.experts is None
    assert pool.plan.passive.step_uw == sum(each.plan.passive.step_uw for each in pool.members)


@pytest.mark.parametrize("order", ["contiguous", "popularity"])
def test_the_most_popular_experts_of_each_layer_are_hot(order: str) -> None:
    rows = np.random.default_rng(1).random((32, 8)).tolist()
    routing = f"routing={{popularity: given, weights: {rows}}}"
    found = prepared(routing, f"cluster.expert_placement.order={order}", f"{HOT}.count=4")
    term = found.pools[0].plan.experts
    assert len(term.slots) == 32
    for row, slots in zip(rows, term.slots, strict=True):
        assert sorted(slots) == list(range(8))
        assert set(slots[:4]) == set(np.argsort(row)[-4:].tolist())
    facts = found.pools[0].groups[1].facts["hot_experts"]
    assert facts["count"] == 4
    assert 1 < facts["picks_per_token"] < 2


def test_every_pick_goes_to_one_of_both_groups() -> None:
    hot, cold = link_of("cluster.placement.link.copies=per_pick").routed.copies
    assert hot.routed + cold.routed == pytest.approx(2)
    facts = prepared().pools[0].groups[1].facts["hot_experts"]
    assert hot.routed == pytest.approx(facts["picks_per_token"])


def test_what_passes_from_device_to_device_is_all_that_passes() -> None:
    link = link_of("cluster.placement.experts.devices_per_node=2", f"{HOT}.devices_per_node=2")
    assert link.on_experts == frozenset({"routed_experts"})
    for direction, in_all in zip(("dispatch", "combine"), link.traffic(), strict=True):
        sent = [passing for passing in link.passing() if passing.direction == direction]
        assert {passing.experts for passing in sent} == {0, 1, 2, 3}
        assert sum(passing.bytes_per_row for passing in sent) / 2 == pytest.approx(in_all.bytes_per_row)


def test_each_group_has_its_own_slice_of_the_link() -> None:
    def dispatch(*overrides: str) -> int:
        rows = {row.name: row for row in prepared(*overrides).pools[0].plan.rows}
        return rows["dispatch, moe layers"].pieces[0][1]

    link = "cluster.placement.link"
    slow_hot = dispatch(f"{link}.hot_experts_gb_per_s=1")
    hot = link_of().routed.copies[0]
    assert slow_hot == pytest.approx(32 * hot.busiest[0] * 4096 * 2 / 1e9 * 1e15, rel=1e-6)
    assert dispatch(f"{link}.experts_gb_per_s=1") != slow_hot
    assert dispatch(f"{link}.hot_experts_gb_per_s=1000", f"{link}.experts_gb_per_s=1000") == dispatch(
        f"{link}.hot_experts_gb_per_s=2000", f"{link}.experts_gb_per_s=2000"
    )  # attention's devices send no faster


@pytest.mark.parametrize("requests", [4, 64])
def test_with_all_picks_on_the_hot_ones_steps_are_those_of_one_group(requests: int) -> None:
    alone = [
        "cluster.devices_per_node=2",
        "model={preset: mixtral-8x7b, moe: {experts: 2}}",
        "cluster.placement={experts: {device: b200, devices_per_node: 1}, micro_batches: 2}",
    ]
    one = prepare(load_scenario(None, alone))
    both = prepared(f"routing={TWO_OF_TWO}")
    # Attention's devices differ in a gate of 8 columns against one of 2, which comes with two of these.
    gate = [replace(row, pieces=((0, 0),)) if row.name == "gate" else row for row in one.pools[0].plan.rows]
    other = [replace(row, pieces=((0, 0),)) if row.name == "gate" else row for row in both.pools[0].plan.rows]
    times = []
    for found, rows in ((one, gate), (both, other)):
        pool = replace(found.pools[0], plan=replace(found.pools[0].plan, rows=tuple(rows)))
        costs = pool.costs(found.routing, 0)
        times.append(costs.decode_span(0, requests, requests * 500, 10).duration_fs(10))
    assert times[0] == times[1]


@pytest.mark.medium
@pytest.mark.parametrize("cold", ["h200", "{preset: aimc-realistic, spread: experts}"])
def test_auto_takes_the_number_with_the_shortest_steps_of_all_that_fit(cold: str) -> None:
    overrides = [f"{HOT}={{device: h100, devices_per_node: 1}}", f"cluster.placement.experts.device={cold}"]
    left_open = scenario(*overrides)
    spec = left_open.cluster.placement
    model = left_open.load_model()
    routing = routing_of(left_open, model)
    times = {}
    for count in candidates(8, 1):
        try:
            times[count] = mean_step_fs(scenario(*overrides, f"{HOT}.count={count}"), model, routing)
        except InputError as error:
            assert "does not fit" in str(error) or "do not spread" in str(error)  # noqa: PT017 of some only
    assert 1 < len(times) < 7  # of 80 GB
    assert times[spec.hot_experts.count] == min(times.values())
    assert left_open.resolved()["cluster"]["placement"]["hot_experts"]["count"] == spec.hot_experts.count
    chips = spec.experts.devices_per_node
    assert chips == 8 - spec.hot_experts.count if "aimc" in cold else chips == 1  # the fewest for the others


def test_what_is_resolved_runs_the_same() -> None:
    first = scenario()
    again = parse_scenario(yaml.safe_dump(first.resolved()), "resolved")
    assert again.resolved() == first.resolved()
    assert serve(prepare(again))[0].digest == serve(prepare(first))[0].digest


def test_units_of_all_groups_are_busy() -> None:
    served = serve(prepared(f"{HOT}.device=duplex", "cluster.placement.micro_batches=1"))[1]
    log = served.logs[0]
    assert log.busy_fs == sum(log.category_fs.values())
    busy = log.unit_fs
    assert set(busy) >= {"xpu", "logic_pim", "experts_hot_xpu", "experts_hot_logic_pim", "experts_xpu"}
    assert 0 < busy["experts_xpu"] <= log.stage_fs["work"]
    assert 0 < busy["experts_hot_logic_pim"] <= log.stage_fs["work"]


def test_cold_experts_may_be_on_crossbars() -> None:
    found = prepared("cluster.placement.experts.device=aimc-realistic")
    term = found.pools[0].plan.experts
    assert [unit.unit for unit in term.units] == ["experts_hot_xpu", "experts_busiest_tile", "experts_digital"]
    assert found.pools[0].replica.precision.routed_weights == "bf16 + 5-bit"
    assert link_of("cluster.placement.experts.device=aimc-realistic").dispatch_bits == (16, 8)
    assert 8 < found.pools[0].replica.facts["placement"]["link"]["dispatch_bits"] < 16
    # Chips send each other what the cold experts get, not all of a token's picks.
    whole = prepare(
        load_scenario(None, ["cluster.devices_per_node=2", "cluster.placement={experts: {device: aimc-realistic}}"])
    )
    cold, all_of_them = (
        sum(part.bytes_per_row for part in each.pools[0].members[-1].replica.traffic) for each in (found, whole)
    )
    assert cold < 0.7 * all_of_them


def test_drift_leaves_the_hot_ones_where_they_are_and_says_so() -> None:
    found = prepared("routing.drift={interval_s: 1, sigma: 0.3}")
    assert any("routing.drift moves none" in note for note in found.pools[0].replica.warnings)
    assert step_fs(found, 8) > 0


@pytest.mark.parametrize(
    ("overrides", "where", "what"),
    [
        (["routing={popularity: uniform}"], HOT, "no expert is hotter"),
        ([f"{HOT}.count=8"], f"{HOT}.count", "less than the 8 experts"),
        ([f"{HOT}.count=0"], f"{HOT}.count", "greater than 0"),
        ([f"{HOT}.count=some"], f"{HOT}.count", "a whole number, or auto"),
        ([f"{HOT}={{device: h100}}"], f"{HOT}.devices_per_node", "cannot both be auto"),
        ([f"{HOT}={{device: h100, devices_per_node: 1, count: 7}}"], HOT, "does not fit"),
        ([f"{HOT}={{device: h100, devices_per_node: 2, count: 3}}"], f"{HOT}.experts", "do not spread evenly"),
        ([f"{HOT}.device=b20"], f"{HOT}.device", "b200"),
        (["cluster.placement={experts: attention, hot_experts: {device: h100}}"], "cluster.placement", "hot_experts"),
        (["cluster.expert_placement.redundant_experts=2"], "cluster.expert_placement", "redundant_experts"),
        (["cluster.expert_placement={slots: [0, 1, 2, 3, 4, 5, 6, 6]}"], "cluster.expert_placement", "in one place"),
        (["costs.setting=measured", "cluster.device=h100"], "costs.setting", "use ideal"),
    ],
)
def test_what_does_not_go_is_said_with_its_place(overrides: list[str], where: str, what: str) -> None:
    with pytest.raises(InputError) as caught:
        prepared(*overrides)
    assert where in str(caught.value)
    assert what in str(caught.value)


@pytest.mark.parametrize(("experts", "devices"), [(2, 1), (8, 3), (128, 1), (256, 6)])
def test_numbers_that_are_tried_leave_cold_experts(experts: int, devices: int) -> None:
    tried = candidates(experts, devices)
    assert tried == sorted(set(tried))
    assert tried[0] == 1
    assert tried[-1] < experts <= 2 * tried[-1]
    assert experts <= 16 or devices in tried
