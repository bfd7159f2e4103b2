"""Runs on device hosts: planned and in lockstep, on one or more hosts, whatever way the steps come."""

import dataclasses
import json
from contextlib import closing

import numpy as np
import pytest

from pimserve.cluster.base.rpc.statuses import DeviceMismatchError, WrongStateError
from pimserve.cluster.distributed.devices import driver as driver_module
from pimserve.cluster.distributed.devices.audit import durations
from pimserve.cluster.distributed.devices.conservation import Exchanged, check_conservation
from pimserve.cluster.distributed.devices.driver import DeviceDriver, HostPlace
from pimserve.cluster.distributed.devices.flows import DISPATCH, KV
from pimserve.cluster.distributed.devices.ledgers import DeviceLedger
from pimserve.errors import InputError
from pimserve.scheduler.steplog import SpanColumns
from tests.cluster.distributed.devices.served import SCENARIOS, Run, hosts, linked, run, steps_of

LOCKSTEP_STEPS = 40


def without_audit(ledgers: list[DeviceLedger]) -> list[DeviceLedger]:
    return [dataclasses.replace(ledger, audited_rows=0) for ledger in ledgers]


def is_on(group: int, groups: int, unit: str) -> bool:
    """Whether a unit is on the devices of a group; the link is on all."""
    if groups == 1 or unit in {"dispatch", "combine"}:
        return True
    of_experts, of_hot = unit.startswith("experts_"), unit.startswith("experts_hot_")
    return not of_experts if group == 0 else of_experts and of_hot == (group < groups - 1)


def check_against_logs(served: Run, ledgers: list[DeviceLedger]) -> None:
    assert [(ledger.replica, ledger.device) for ledger in ledgers] == served.keys
    group_of = [group for group, devices in enumerate(served.sizes) for _ in range(devices)]
    for log in served.logs:
        mine = [ledger for ledger in ledgers if ledger.replica == log.costs.replica]
        for ledger, group in zip(mine, group_of, strict=True):  # all take part in every step
            assert ledger.steps == log.steps
            assert ledger.busy_fs == log.busy_fs
            own = {unit: fs for unit, fs in log.unit_fs.items() if is_on(group, len(served.sizes), unit)}
            assert ledger.unit_fs == own
            assert ledger.category_fs == log.category_fs
            if group:
                assert ledger.tokens == ledger.outputs == ledger.kv_blocks == ledger.peak_kv_blocks == 0
                assert ledger.experts_fs > 0
        assert sum(ledger.outputs for ledger in mine) == log.tokens
        for key, energy in log.energy_pj.items():
            assert sum(ledger.energy_pj[key] for ledger in mine) == energy


@pytest.mark.parametrize("name", SCENARIOS)
def test_planned_ledgers_add_up_to_the_step_logs(name: str) -> None:
    served = run(name)
    with linked(served, 2, audit_share=1 / 4) as link:
        for block in served.blocks:
            link.take(*block)
        traffic = link.close_window(0)
        ledgers = link.ledgers()
    check_against_logs(served, ledgers)
    assert any(ledger.audited_rows for ledger in ledgers)
    assert bool(link.picks()[0]) == any(key[4] == DISPATCH for key in traffic.totals())


@pytest.mark.parametrize("name", ["skewed", "aimc", "exact", "mixed", "mixed-exact", "hot", "hot-exact"])
def test_neither_windows_nor_hosts_nor_batches_change_what_devices_have_done(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = run(name, 12)
    found = []
    for count, rows, every in ((1, 10**6, 10**6), (2, 37, 5), (served.devices, 11, 3)):
        monkeypatch.setattr("pimserve.cluster.distributed.devices.batches.ROWS_PER_BATCH", max(10, rows // 2))
        with linked(served, count, in_flight=2) as link:
            window = 0
            for number, block in enumerate(served.chunks(rows)):
                link.take(*block)
                if number % every == every - 1:
                    link.close_window(window)
                    window += 1
            traffic = link.close_window(window)
            found.append((without_audit(link.ledgers()), traffic.totals()))
    check_against_logs(served, found[0][0])
    assert found[1] == found[0]
    assert found[2] == found[0]


@pytest.mark.parametrize("name", SCENARIOS)
def test_lockstep_leaves_what_planned_leaves(name: str) -> None:
    served = run(name)
    parts = []
    for replica in sorted({block[0] for block in served.blocks}):
        block, first = next((block, first) for other, block, first in served.blocks if other == replica)
        parts.append((replica, *steps_of(block, first, LOCKSTEP_STEPS)))
    found = []
    for lockstep in (True, False):
        with linked(served, 2, lockstep=lockstep) as link:
            for part in parts:
                (link.take)(*part)
            traffic = link.close_window(0)
            found.append((without_audit(link.ledgers()), traffic.totals()))
    assert found[0] == found[1]
    assert found[0][0][0].steps > 0


def test_a_wrong_time_fails_planned_and_lockstep_runs() -> None:
    served = run("tp")
    replica, block, first = served.blocks[0]
    block = block.copy()
    block[4, SpanColumns._fields.index("duration_fs")] += 1
    with linked(served, 2) as link:
        link.take(replica, block, first)
        with pytest.raises(
            DeviceMismatchError, match=rf"replica 0, devices 0, 2, steps? {first[4]}.* fs by the engine"
        ):
            link.close_window(0)
    with linked(served, 2, lockstep=True) as link:
        link.take(replica, block[:4], first[:4])
        with pytest.raises(DeviceMismatchError, match=rf"replica 0, steps {first[4]} to .* fs by the engine"):
            link.take(replica, block[4:5], first[4:5])


@pytest.mark.parametrize("name", ["tp", "aimc", "exact"])
@pytest.mark.parametrize("lockstep", [False, True])
def test_slow_replicas_are_slow_on_their_devices_too(name: str, lockstep: bool) -> None:
    served = run(name)
    replica, block, first = served.blocks[0]
    block, first = steps_of(block, first, 60)
    block = block.copy()
    at, costs = len(block) // 2, served.logs[0].costs
    duration = SpanColumns._fields.index("duration_fs")
    normal = SpanColumns(*block[at:].T.copy())
    block[at:, duration] = durations(costs.slowed(1500), normal, first[at:])
    assert (block[at:, duration] > normal.duration_fs).all()
    found = []
    for count in (1, 2):
        with linked(served, count, lockstep=lockstep) as link:
            feed = link.take
            feed(replica, block[:at], first[:at])
            link.slow(replica, int(first[at]), 1500)
            state = json.loads(json.dumps(link.snapshot()))
            feed(replica, block[at:], first[at:])
            link.close_window(0)
            found.append(without_audit(link.ledgers()))
            link.restore(state)
            feed(replica, block[at:], first[at:])
            link.close_window(0)
            found.append(without_audit(link.ledgers()))
    assert found[1:] == found[:1] * 3
    assert found[0][0].busy_fs == block[:, duration].sum()


def test_another_plan_is_refused() -> None:
    served = run("tp")
    with hosts(1) as there:
        places = {"host-0": HostPlace(there["host-0"][1], {"": served.keys})}
        with (
            closing(DeviceDriver(served.document, {"": "0" * 64}, places)) as link,
            pytest.raises(DeviceMismatchError, match="same version"),
        ):
            link.connect()


def test_devices_that_do_not_exist_are_refused() -> None:
    served = run("tp")
    for keys in ([(1, 0)], [(0, 4)], [(0, 0), (0, 0)], [(-1, 0)], []):
        with hosts(1) as there:
            places = {"host-0": HostPlace(there["host-0"][1], {"": keys})}
            with (
                closing(DeviceDriver(served.document, {"": served.digest}, places)) as link,
                pytest.raises(InputError, match="pools"),
            ):
                link.connect()


def test_windows_come_one_after_the_other() -> None:
    with linked(run("tp"), 1) as link:
        with pytest.raises(WrongStateError, match="window 0 comes next"):
            link.close_window(1)
        link.close_window(0)
        link.close_window(0)  # again
        link.close_window(1)
        with pytest.raises(WrongStateError, match="window 2 comes next"):
            link.close_window(0)


def test_steps_must_follow_each_other() -> None:
    served = run("tp")
    replica, block, first = served.blocks[0]
    with linked(served, 1) as link:
        link.take(replica, block[:5], first[:5])
        link.take(replica, block[6:9], first[6:9])
        with pytest.raises(WrongStateError, match=rf"step {first[5]} should come next, not {first[6]}"):
            link.close_window(0)


def test_a_host_that_drains_finishes_and_refuses_more() -> None:
    served = run("tp")
    replica, block, first = served.blocks[0]
    with linked(served, 2) as link:
        link.take(replica, block[:5], first[:5])
        link.drain()
        link.close_window(0)
        assert {ledger.steps for ledger in link.ledgers()} == {int(block[:5, 2].sum())}
        link.take(replica, block[5:9], first[5:9])
        with pytest.raises(WrongStateError, match="drains"):
            link.close_window(1)


def test_what_is_lost_between_devices_is_found() -> None:
    sent = [(0, 0, 0, 1, DISPATCH, 10, 100), (0, 1, 0, 0, DISPATCH, 5, 50)]
    back = [(0, 1, 0, 0, 2, 10, 100), (0, 0, 0, 1, 2, 5, 50)]
    check_conservation(Exchanged(sent + back, back + sent), {0: 15})
    with pytest.raises(DeviceMismatchError, match=r"dispatch from device 0 .* 10 of 100 bytes were sent, 9 of 100"):
        check_conservation(Exchanged(sent + back, [(0, 0, 0, 1, DISPATCH, 9, 100), sent[1], *back]), {0: 15})
    with pytest.raises(DeviceMismatchError, match="15 picks of experts passed between devices, its steps have 16"):
        check_conservation(Exchanged(sent + back, sent + back), {0: 16})


def test_kv_caches_are_handed_over_once() -> None:
    served = run("skewed")  # two replicas on three hosts
    with linked(served, 3) as link:
        for number, block in enumerate(served.chunks(60)):
            link.take(*block)
            link.hand_over(
                np.array([[2 * number, 1000 + number, 5, 0, number % 4, 1, 1], [2 * number + 1, 7, 2, 0, 0, 1, 0]])
            )
            link.close_window(number)
            link.close_window(number)  # again
        traffic = link.close_window(number)
    kv = {key: value for key, value in traffic.totals().items() if key[4] == KV}
    assert sum(count for count, _ in kv.values()) == 2 * (number + 1)
    assert sum(size for _, size in kv.values()) == sum(1007 + each for each in range(number + 1))
    assert kv[0, 0, 1, 0, KV] == (number + 1, 7 * (number + 1))


def test_kv_caches_that_were_lost_are_in_no_book() -> None:
    served = run("skewed")
    first, second = np.array([[1, 1000, 5, 0, 3, 1, 1]]), np.array([[2, 7, 2, 0, 0, 1, 0]])
    with linked(served, 3) as link:
        link.hand_over(first)
        link.hand_over(second)
        link.lose(second)  # in the same window
        kv = {key: value for key, value in link.close_window(0).totals().items() if key[4] == KV and any(value)}
        assert kv == {(0, 3, 1, 1, KV): (1, 1000)}
        assert [sum(ledger.kv_blocks_received for ledger in link.ledgers()), link.handed_blocks] == [5, 5]
        link.lose(first)  # in a later one
        link.close_window(1)
        assert not any(any(value) for key, value in link.close_window(1).totals().items() if key[4] == KV)
        assert not any(ledger.kv_blocks_sent or ledger.kv_blocks_received for ledger in link.ledgers())


def test_kv_caches_go_to_known_devices() -> None:
    with linked(run("skewed"), 2) as link:
        link.hand_over(np.array([[0, 10, 1, 0, 0, 2, 0]]))
        with pytest.raises(InputError, match="device 0 of replica 2 is on no known host"):
            link.close_window(0)


def test_a_long_window_does_not_keep_all_its_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver_module, "_RETAINED_BYTES", 5000)
    monkeypatch.setattr("pimserve.cluster.distributed.devices.batches.ROWS_PER_BATCH", 20)
    served = run("tp")
    with linked(served, 2) as link:
        for block in served.chunks(15):
            link.take(*block)
            assert link.log.size_bytes < 10_000
        link.close_window(0)
        check_against_logs(served, link.ledgers())
