"""One unit too much in any figure of any device's ledger is noticed."""

import dataclasses
from collections.abc import Iterator

import pytest

from pimserve.cluster.base.rpc.statuses import DeviceMismatchError
from pimserve.cluster.distributed.devices.ledger_check import check_hand_overs, check_ledgers
from pimserve.cluster.distributed.devices.ledgers import DeviceLedger
from pimserve.device_models.operators import EXPERT_REBALANCING
from tests.cluster.distributed.devices.served import linked, run

HANDED_OVER = {"kv_blocks_sent", "kv_blocks_received"}
OTHERS = {"energy_pj": ("other", "dram")}  # keys that no engine has
NOT_COMPARED = {
    "replica",
    "device",
    "audited_rows",
    "weight_bytes",
    "experts_fs",
    "kv_blocks_sent",
    "kv_blocks_received",
}


def changed(ledger: DeviceLedger) -> Iterator[DeviceLedger]:
    """The ledger with one more of each figure."""
    for field in dataclasses.fields(ledger):
        if field.name in NOT_COMPARED | HANDED_OVER:
            continue
        value = getattr(ledger, field.name)
        if isinstance(value, int):
            yield dataclasses.replace(ledger, **{field.name: value + 1})
            continue
        for key in value:
            yield dataclasses.replace(ledger, **{field.name: {**value, key: value[key] + 1}})
        yield dataclasses.replace(ledger, **{field.name: {**value, OTHERS.get(field.name, "other"): 1}})


@pytest.mark.parametrize(
    "name", ["ep", "exact", "aimc", "mixed", "mixed-exact", "hot", "hot-exact", "rebalanced", "mixed-rebalanced"]
)
def test_one_unit_too_much_in_any_ledger_is_found(name: str) -> None:
    served = run(name)
    log = served.logs[0]
    with linked(served, 2) as link:
        for block in served.blocks:
            link.take(*block)
        traffic = link.close_window(0)
        ledgers, last = link.ledgers(), link.last_blocks[0]
    check_ledgers(ledgers, log, last, served.sizes)
    moved = [ledger.energy_pj.get((EXPERT_REBALANCING, "dram"), 0) for ledger in ledgers]
    with_experts = moved[sum(served.sizes[:-1]) :]
    assert all(with_experts) == any(moved) == name.endswith("rebalanced")
    assert sum(with_experts) == sum(moved)
    for device in (0, len(ledgers) - 1):
        for other in changed(ledgers[device]):
            wrong = [*ledgers[:device], other, *ledgers[device + 1 :]]
            with pytest.raises(DeviceMismatchError, match=r"replica 0, (device|all devices).* by the engine"):
                check_ledgers(wrong, log, last, served.sizes)
    with pytest.raises(DeviceMismatchError, match="kv_blocks_sent, by the engine 1"):
        check_hand_overs(ledgers, traffic, 1, 0)
    with pytest.raises(DeviceMismatchError, match="0 bytes of KV caches, by the engine 1"):
        check_hand_overs(ledgers, traffic, 0, 1)


def test_devices_have_the_energy_of_their_own_experts_where_these_are_drawn() -> None:
    served = run("exact")
    with linked(served, 2) as link:
        for block in served.blocks:
            link.take(*block)
        link.close_window(0)
        ledgers = link.ledgers()
    energies = [ledger.energy_pj["moe", "dram"] for ledger in ledgers]
    assert max(energies) - min(energies) > 1
    log = served.logs[0]
    assert all(0 < ledger.experts_fs < log.category_fs["moe"] for ledger in ledgers)
