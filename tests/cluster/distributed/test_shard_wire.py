"""Fleets as text: whatever runs the experts, the plan that comes back is the same."""

from dataclasses import replace

import pytest

from pimserve.cluster.distributed.shards.shard_wire import fleet_json, fleet_of
from pimserve.device_models.catalogue import load_model
from pimserve.device_models.device import Demand
from pimserve.device_models.operators import ALL_PARTS, Parallelism, Part
from pimserve.device_models.registry import load_device
from pimserve.device_models.routing import Routing
from pimserve.scheduler.config import SchedulerSpec
from pimserve.scheduler.fleet import Fleet, Pool

EXPERTS: frozenset[Part] = frozenset({"routed_experts"})


@pytest.mark.parametrize(
    ("device", "devices", "parts"),
    [("duplex", 4, ALL_PARTS), ("h100", 4, EXPERTS), ("aimc-realistic", 8, ALL_PARTS), ("aimc-realistic", 8, EXPERTS)],
)
def test_a_fleet_comes_back_the_same(device: str, devices: int, parts: frozenset[Part]) -> None:
    demand = Demand(load_model("mixtral-8x7b"), Parallelism(1, devices, devices), parts=parts)
    plan = load_device(device).fit(demand).plan
    fleet = Fleet((Pool("", plan, 1000),), SchedulerSpec(), 100, Routing(), 0, (0, 1))
    again = fleet_of(fleet_json(fleet))
    assert again == fleet
    assert type(again.pools[0].plan.experts) is type(plan.experts)
    assert again != replace(fleet, seed=1)
