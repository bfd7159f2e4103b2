"""Devices of a run, as the message tells them: once its parts have started, of the replicas that were asked for."""

from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

from pimserve.cluster.base.rpc.statuses import RefusedError
from pimserve.cluster.distributed.actor_ledgers import DeviceActorState, Passed
from pimserve.cluster.scenario.device_groups import DeviceGroup
from pimserve.cluster.service.device_queries import DeviceQueries


def device(replica, number):
    ledger = SimpleNamespace(  # the fields of a `DeviceLedger` that are told
        replica=replica,
        device=number,
        steps=3,
        busy_fs=5 * 10**14,
        unit_fs={"xpu": 25 * 10**13},
        energy_pj={("attention", "dram"): 10**12, ("experts", "compute"): 10**12},
        tokens=7,
        outputs=2,
        kv_blocks=4,
        peak_kv_blocks=6,
        weight_bytes=10**9,
        audited_rows=1,
        experts_fs=10**14,
        kv_blocks_sent=8,
        kv_blocks_received=9,
    )
    group = DeviceGroup("experts", range(1, 3), SimpleNamespace(label="h100"), ("routed_experts", "lm_head"))
    return DeviceActorState(ledger, f"devices-{replica}", 1, {"dispatch": Passed(5, 50, 4, 40)}, group)


@dataclass
class Parts:
    """Stands for the parts of a run."""

    states: list[DeviceActorState] | None = field(default_factory=lambda: [device(0, 0), device(0, 1), device(1, 0)])

    def device_states(self):
        return self.states


class View:
    """Stands for a run at a window's end, whose steps are handed on when its ledgers are asked for."""

    now_fs = 2 * 10**15
    handed_on = False

    def ledgers(self):
        self.handed_on = True


def test_devices_of_the_replicas_that_were_asked_for():
    queries, view = DeviceQueries(), View()
    queries.attach(Parts())
    answer = queries.answer(view, frozenset())
    assert view.handed_on
    assert answer.simulated_s == 2
    assert [(each.replica, each.device) for each in answer.devices] == [(0, 0), (0, 1), (1, 0)]
    (only,) = queries.answer(view, frozenset({1})).devices
    assert (only.host, only.host_restarts, only.steps, only.busy_s) == ("devices-1", 1, 3, 0.5)
    assert (dict(only.unit_busy_s), only.active_joules) == ({"xpu": 0.25}, 2)
    assert (only.computed_tokens, only.output_tokens, only.audited_spans) == (7, 2, 1)
    assert (only.kv_blocks, only.peak_kv_blocks, only.weight_bytes) == (4, 6, 10**9)
    assert (only.experts_busy_s, only.kv_blocks_sent, only.kv_blocks_received) == (0.1, 8, 9)
    assert (only.group, only.kind, list(only.parts)) == ("experts", "h100", ["routed_experts", "lm_head"])
    (passed,) = only.traffic
    assert (passed.kind, passed.sent, passed.sent_bytes) == ("dispatch", 5, 50)
    assert (passed.received, passed.received_bytes) == (4, 40)


@pytest.mark.parametrize("parts", [None, Parts(None)], ids=["in one process", "without devices"])
def test_a_run_without_device_actors_says_so(parts):
    queries = DeviceQueries()
    if parts is not None:
        queries.attach(parts)
    with pytest.raises(RefusedError, match="no actors; launch it on processes or Ray, with devices"):
        queries.answer(View(), frozenset())
    assert queries.devices(0) is None
