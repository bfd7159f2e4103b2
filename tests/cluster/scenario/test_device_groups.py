"""Which devices of a replica do what."""

import pytest

from pimserve.cluster.scenario.device_groups import device_groups
from pimserve.cluster.scenario.document import load_scenario
from pimserve.cluster.scenario.prepared import prepare


@pytest.mark.parametrize(
    ("model", "parts"),
    [
        ("llama-3.1-8b", ("attention", "dense_ffn", "lm_head")),
        ("mixtral-8x7b", ("attention", "routed_experts", "lm_head")),
    ],
)
def test_devices_that_all_do_the_same(model: str, parts: tuple[str, ...]) -> None:
    prepared = prepare(load_scenario(None, [f"model={model}"]))
    (group,) = device_groups(prepared.pools[0], prepared.model)
    assert (group.name, group.numbers, group.parts) == ("", range(4), parts)
    assert group.placed is prepared.pools[0]


def test_two_groups_share_all_parts_and_devices() -> None:
    placement = "{experts: {device: h100, devices_per_node: 4}, lm_head: experts}"
    prepared = prepare(load_scenario(None, ["cluster.devices_per_node=2", f"cluster.placement={placement}"]))
    (pool,) = prepared.pools
    attention, experts = device_groups(pool, prepared.model)
    assert (attention.name, attention.numbers, attention.parts) == ("attention", range(2), ("attention",))
    assert (experts.name, experts.numbers, experts.parts) == ("experts", range(2, 6), ("routed_experts", "lm_head"))
    assert (attention.placed.label, experts.placed.label) == ("duplex", "h100")
    of_devices = [pool.member_of(device) for device in range(6)]
    assert of_devices == [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2), (1, 3)]
    with pytest.raises(IndexError):
        pool.member_of(6)


def test_hot_experts_have_a_group_of_their_own() -> None:
    placement = "{hot_experts: {device: h100, devices_per_node: 1, count: 2}, experts: {device: aimc-realistic}}"
    routing = "routing={popularity: zipf, zipf_exponent: 1.0}"
    prepared = prepare(load_scenario(None, ["cluster.devices_per_node=2", f"cluster.placement={placement}", routing]))
    attention, hot, cold = device_groups(prepared.pools[0], prepared.model)
    assert (attention.name, attention.parts) == ("attention", ("attention", "lm_head"))
    assert (hot.name, hot.numbers, hot.parts) == ("hot_experts", range(2, 3), ("routed_experts",))
    assert (cold.name, cold.numbers.start, cold.parts) == ("experts", 3, ("routed_experts",))
    assert (hot.placed.label, cold.placed.label) == ("h100", "aimc-realistic")
