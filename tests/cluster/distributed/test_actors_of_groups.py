"""Each group of devices has actors of its own, whose books hold what its devices did and nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pimserve.cluster.base.rpc.statuses import DeviceMismatchError
from pimserve.cluster.distributed.deployment import host_specs
from pimserve.cluster.distributed.devices import device_host
from pimserve.cluster.distributed.devices.book import ReplicaBook
from pimserve.cluster.distributed.devices.exchange import KvBook
from pimserve.cluster.distributed.devices.ledgers import DeviceLedger, ledgers_of
from pimserve.cluster.distributed.run_spread import DeviceMode, Spread
from pimserve.cluster.scenario.document import load_scenario
from pimserve.cluster.scenario.prepared import prepare
from tests.cluster.distributed.spread_scenarios import SCENARIOS
from tests.cluster.distributed.threads import TOKEN, figures, run_there
from tests.cluster.documents import run


def test_devices_are_actors_of_their_own_in_lockstep(tmp_path: Path) -> None:
    changes = [*SCENARIOS["every layer drawn"], "cluster.tensor_parallel=1", "run.max_time_s=0.1"]
    scenario = load_scenario(None, changes)
    spread = Spread(1, "lockstep")
    assert len(host_specs(prepare(scenario), spread, TOKEN)) == 4
    here = run(prepare(scenario), tmp_path / "here")
    there = run_there(scenario, spread, tmp_path / "there")
    assert figures(there) == figures(here)
    wire = {row["kind"]: row for row in there["simulator"]["spread"]["wire"]}
    for kind in ("dispatch", "combine"):
        assert 0 < wire[kind]["inside_count"] < wire[kind]["count"]
        assert wire[kind]["inside_bytes"] == 0 < wire[kind]["bytes"]
        assert wire[kind]["messages"] == 4 * 3 * there["batch"]["steps"]
    devices = np.load(tmp_path / "there" / "devices.npy")
    assert devices["actor"].tolist() == [f"devices-{number}" for number in range(4)]
    assert devices["output_tokens"].sum() == there["tokens"]["output"]
    assert devices["dispatch_sent_bytes"].sum() == wire["dispatch"]["bytes"]


@pytest.mark.parametrize("mode", ["planned", "lockstep"])
def test_attention_and_experts_are_different_actors(mode: DeviceMode, tmp_path: Path) -> None:
    name = "experts on h100, three micro-batches, every layer drawn"
    scenario = load_scenario(None, [*SCENARIOS[name], "run.max_time_s=0.1"])
    there = run_there(scenario, Spread(1, mode), tmp_path / "there")
    devices = np.load(tmp_path / "there" / "devices.npy")
    assert devices["group"].tolist() == ["attention"] * 2 + ["experts"] * 2
    assert devices["kind"].tolist() == ["duplex"] * 2 + ["h100"] * 2
    hosts = [0, 1, 2, 3] if mode == "lockstep" else [0, 0, 1, 1]
    assert devices["actor"].tolist() == [f"devices-{number}" for number in hosts]
    attention, experts = devices[:2], devices[2:]
    assert (experts["dispatch_received"] > 0).all()
    assert (experts["combine_sent_bytes"] > 0).all()
    assert not attention["dispatch_received"].any()
    assert not experts["dispatch_sent"].any()
    for column in ("computed_tokens", "output_tokens", "peak_kv_blocks"):
        assert (attention[column] > 0).all()
        assert not experts[column].any()
    assert not attention["experts_busy_s"].any()
    wire = {row["kind"]: row for row in there["simulator"]["spread"]["wire"]}
    for kind in ("dispatch", "combine"):
        assert (wire[kind]["inside_count"], wire[kind]["inside_bytes"]) == (0, 0)
        assert wire[kind]["messages"] == (4 * there["batch"]["steps"] if mode == "lockstep" else 1)


@pytest.mark.parametrize("mode", ["planned", "lockstep"])
@pytest.mark.parametrize(
    "name", ["hot experts on h100, cold ones on aimc", "other experts are hot in each layer, every layer drawn"]
)
def test_hot_and_cold_experts_are_different_actors(name: str, mode: DeviceMode, tmp_path: Path) -> None:
    scenario = load_scenario(None, [*SCENARIOS[name], "cluster.replicas=1", "faults=null", "run.max_time_s=0.1"])
    prepared = prepare(scenario)
    sizes = [member.devices_per_replica for member in prepared.pools[0].members]
    there = run_there(scenario, Spread(1, mode), tmp_path / "there")
    assert figures(there) == figures(run(prepared, tmp_path / "here"))
    devices = np.load(tmp_path / "there" / "devices.npy")
    attention, hot, cold = (devices[devices["group"] == name] for name in ("attention", "hot_experts", "experts"))
    assert [len(attention), len(hot), len(cold)] == sizes
    actors = [set(of_group["actor"].tolist()) for of_group in (attention, hot, cold)]
    assert len(actors[0] | actors[1] | actors[2]) == (sum(sizes) if mode == "lockstep" else 3)
    assert [of_group["kind"][0] for of_group in (hot, cold)] == [m.label for m in prepared.pools[0].members[1:]]
    for experts in (hot, cold):
        assert (experts["dispatch_received_bytes"] > 0).all()
        assert (experts["combine_sent_bytes"] > 0).all()
        assert (experts["compute_joules"] > 0).all()
        assert (experts["experts_busy_s"] > 0).all()
        assert not experts["dispatch_sent"].any()
        assert not experts["peak_kv_blocks"].any()
    assert not attention["experts_busy_s"].any()


@pytest.mark.parametrize("figure", ["outputs", "kv_blocks", "energy_pj"])
def test_a_device_that_has_one_unit_more_fails_the_run(
    figure: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def one_more(book: ReplicaBook, kv: KvBook) -> list[DeviceLedger]:
        first, *others = ledgers_of(book, kv)
        value = getattr(first, figure)
        more = value + 1 if isinstance(value, int) else {**value, ("moe", "dram"): value["moe", "dram"] + 1}
        return [replace(first, **{figure: more}), *others]

    monkeypatch.setattr(device_host, "ledgers_of", one_more)
    scenario = load_scenario(None, ["workload.num_requests=2", "run.warmup_s=0", "run.max_time_s=0.3"])
    with pytest.raises(DeviceMismatchError, match=r"replica 0, all devices: .* by the engine"):
        run_there(scenario, Spread(1, "planned"), tmp_path / "there")
    assert not (tmp_path / "there").exists()
