"""A kind of device that pimserve has never heard of."""

from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Literal

import pytest

from pimserve.cluster.scenario.document import load_scenario
from pimserve.cluster.scenario.prepared import prepare
from pimserve.device_models import registry
from pimserve.device_models.device import Demand, DeviceSpec, Fitted, OperatorDevice, Precision
from pimserve.device_models.operators import Operator, Parallelism
from pimserve.device_models.pipeline import PassivePower
from pimserve.device_models.plan import CostPlan, RowTerm
from pimserve.errors import InputError
from tests.cluster.documents import run, serve


class AbacusSpec(DeviceSpec):
    kind: Literal["abacus"] = "abacus"
    step_s: float = 1.0


class Abacus(OperatorDevice):
    """Takes a fixed time for every step."""

    Spec = AbacusSpec
    units = ("beads",)

    def __init__(self, spec: AbacusSpec) -> None:
        self.spec = spec
        self.memory_bytes = 1e12

    def compile(self, operators: Sequence[Operator], split: Parallelism) -> CostPlan:
        assert operators
        step = RowTerm("count", "fc", "beads", "tokens", ((round(self.spec.step_s * 1e15), 0),))
        return CostPlan(split.devices, split.data, self.units, (step,), (), (), None)


OVERRIDES = ["model=llama-3.1-8b", "cluster.devices_per_node=1", "workload.num_requests=3"]
DEVICE = "cluster.device={kind: abacus, name: my-abacus, link_gb_per_s: 1, link_latency_us: 1, step_s: 0.5}"


def registered(monkeypatch: pytest.MonkeyPatch, target: str) -> None:
    found = EntryPoints([EntryPoint("abacus", target, "pimserve.devices")])
    monkeypatch.setattr(registry, "entry_points", lambda **_: found)


def test_a_registered_kind_serves_requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EntryPoint, "load", lambda _: Abacus)
    registered(monkeypatch, "anywhere:Abacus")
    summary = run(prepare(load_scenario(None, [*OVERRIDES, DEVICE])), tmp_path / "r")
    assert summary["device"].startswith("my-abacus")
    assert summary["latency_s"]["tpot"]["p50"] == pytest.approx(0.5)
    assert summary["unit_busy_share"]["beads"] > 0
    energy = summary["energy"]
    assert (energy["passive_joules"], energy["passive_power"]) == (None, "not_known")
    assert "passive power of my-abacus is not known: the energy is without it" in summary["warnings"]
    assert summary["precision"] == {"weights": "bf16", "routed_weights": None, "kv_cache": "bf16"}
    again = run(prepare(load_scenario(tmp_path / "r" / "scenario.yaml")), tmp_path / "again")
    assert again["digest"] == summary["digest"]


def test_its_passive_power_and_precision_are_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    class Counted(Abacus):
        def fit(self, demand: Demand) -> Fitted:
            found = super().fit(demand)
            plan = replace(found.plan, passive=PassivePower(idle_uw=3 * 10**6, step_uw=3 * 10**6))
            return replace(found, plan=plan, precision=Precision("6-bit", None, "fp8"))

    monkeypatch.setattr(EntryPoint, "load", lambda _: Counted)
    registered(monkeypatch, "anywhere:Counted")
    summary = serve(prepare(load_scenario(None, [*OVERRIDES, DEVICE])))[0]
    assert summary["energy"]["passive_joules"] == pytest.approx(3 * summary["end_s"])
    assert summary["precision"] == {"weights": "6-bit", "routed_weights": None, "kv_cache": "fp8"}
    assert not any("passive power" in warning for warning in summary["warnings"])
    # It need not heed the demand: what is left out is left out of its plan.
    without = serve(prepare(load_scenario(None, [*OVERRIDES, DEVICE, "costs.passive_power=false"])))[0]
    assert (without["energy"]["passive_joules"], without["energy"]["passive_power"]) == (None, "left_out")


def test_its_mistakes_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EntryPoint, "load", lambda _: Abacus)
    registered(monkeypatch, "anywhere:Abacus")
    with pytest.raises(InputError, match=r"cluster\.device\.beads: unknown key \(known: .*step_s"):
        load_scenario(None, [*OVERRIDES, DEVICE.replace("step_s", "beads")]).load_device()


def test_one_that_does_not_load_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    registered(monkeypatch, "no_such_package:Abacus")
    with pytest.raises(
        InputError, match="'abacus' of no_such_package:Abacus does not load: ModuleNotFoundError: No module named"
    ):
        load_scenario(None, [*OVERRIDES, DEVICE]).load_device()


class Shelf(Abacus):
    """Says what its KV cache holds, and not what it would hold with nothing but weights beside it."""

    def fit(self, demand: Demand) -> Fitted:
        tokens = int(100_000 * demand.memory_utilization)
        return replace(super().fit(demand), kv_capacity_tokens=tokens, kv_memory_tokens=None)


def test_kv_blocks_may_fill_its_memory_even_if_it_does_not_say_how_much_that_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(EntryPoint, "load", lambda _: Shelf)
    registered(monkeypatch, "anywhere:Shelf")
    (pool,) = prepare(load_scenario(None, [*OVERRIDES, DEVICE, "scheduler.kv_blocks=6250"])).pools
    assert pool.kv_capacity_tokens == 100_000
    with pytest.raises(InputError, match="must be at most 6250"):
        prepare(load_scenario(None, [*OVERRIDES, DEVICE, "scheduler.kv_blocks=6251"]))
