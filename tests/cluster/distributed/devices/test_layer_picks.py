"""Picks over the link between groups of devices are audited by MoE layer, and by who sends them to whom."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest

from pimserve.arrays import IntArray
from pimserve.cluster.base.rpc.statuses import DeviceMismatchError
from pimserve.cluster.distributed.devices.conservation import Exchanged
from pimserve.cluster.distributed.devices.expert_work import Pair
from pimserve.cluster.distributed.devices.layer_picks import (
    Entry,
    LayerPicks,
    check_layers,
    from_picks_table,
    to_picks_table,
)
from pimserve.cluster.distributed.devices.turn import Exchange, Turn
from pimserve.errors import InputError
from tests.cluster.distributed.devices.served import Run, linked, run

LAYERS, TOP_K = 32, 2
Forge = Callable[[list[Entry]], None]


def exchanged(served: Run, hosts: int) -> Exchanged:
    with linked(served, hosts) as link:
        for block in served.blocks:
            link.take(*block)
        return link.close_window(0)


@pytest.mark.parametrize(
    ("name", "groups"),
    [
        ("mixed", [2]),
        ("mixed-exact", [2, 4]),
        ("mixed-aimc", [2]),
        ("mixed-sliced", [*range(2, 18, 2)]),
        ("hot", [2, 4]),
        ("hot-exact", [2, 3, 4]),
    ],
)
@pytest.mark.parametrize("hosts", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_every_layer_gets_every_pick_once(name: str, groups: list[int], hosts: int) -> None:
    served = run(name, 10)
    traffic = exchanged(served, hosts)
    assert traffic.picks_sent
    assert sorted(traffic.picks_sent) == sorted(traffic.picks_received)
    assert {entry[1] for entry in traffic.picks_sent} == {0, 1}  # devices of attention
    assert sorted({entry[2] for entry in traffic.picks_sent}) == groups  # the first of each expert group
    of_layer = dict.fromkeys(range(LAYERS), 0)
    for _, _, _, layer, picks in traffic.picks_sent:
        of_layer[layer] += picks
    assert set(of_layer.values()) == {served.logs[0].computed_tokens * TOP_K}


def test_devices_that_do_both_have_no_such_link() -> None:
    traffic = exchanged(run("exact", 10), 2)
    assert not traffic.picks_sent
    assert not traffic.picks_received


@pytest.mark.parametrize("name", ["hot", "hot-exact"])
def test_hot_experts_get_more_than_cold_ones_in_each_layer(name: str) -> None:
    served = run(name, 10)
    attention, hot, _ = served.sizes
    of_hot, of_all = (np.zeros(LAYERS, np.int64) for _ in range(2))
    for _, _, receiver, layer, picks in exchanged(served, 2).picks_received:
        of_all[layer] += picks
        of_hot[layer] += picks * (receiver < attention + hot)
    assert (of_hot > of_all * 2 / 8).all()  # two of eight experts
    assert (of_hot < of_all).all()
    drawn = len(set(of_hot.tolist())) > 1
    assert drawn == (name == "hot-exact")  # otherwise in the mean over layers


def entries() -> list[Entry]:
    return [(3, sender, 2 + receiver, layer, 5) for sender in (0, 1) for receiver in (0, 1) for layer in (0, 1)]


def one_less(at: int, found: list[Entry]) -> None:
    found[at] = (*found[at][:4], found[at][4] - 1)


def drop(at: int, found: list[Entry]) -> None:
    del found[at]


def elsewhere(at: int, found: list[Entry]) -> None:
    replica, sender, receiver, layer, picks = found[at]
    found[at] = (replica, sender, receiver + 1, layer, picks)


@pytest.mark.parametrize(
    ("forge", "message"),
    [
        (partial(one_less, 7), "MoE layer 1, from device 1 to device 3: 5 picks were sent, 4 received"),
        (partial(drop, 2), "MoE layer 0, from device 0 to device 3: 5 picks were sent, 0 received"),
        (partial(elsewhere, 7), "MoE layer 1, from device 1 to device 3: 5 picks were sent, 0 received"),
    ],
)
def test_a_pick_that_is_lost_between_groups_is_named(forge: Forge, message: str) -> None:
    sent, received = entries(), entries()
    check_layers(sent, received, 2, {3: 20})
    forge(received)
    with pytest.raises(
        DeviceMismatchError, match=f"replica 3, dispatch over the link between attention and .*{message}"
    ):
        check_layers(sent, received, 2, {3: 20})


@pytest.mark.parametrize(
    ("found", "picks", "message"),
    [
        (entries()[:-1], {3: 20}, "MoE layer 1: 15 picks passed, its steps have 20"),
        ([], {3: 20}, "MoE layer 0: 0 picks passed, its steps have 20"),
        (entries(), {3: 21}, "MoE layer 0: 20 picks passed, its steps have 21"),
        (entries(), {}, "MoE layer 0: 20 picks passed, its steps have 0"),
        ([*entries(), (3, 0, 2, 2, 1)], {3: 20}, "MoE layer 2: 1 picks passed, its steps have 20"),
    ],
)
def test_what_no_layer_misses_must_be_what_steps_have(found: list[Entry], picks: dict[int, int], message: str) -> None:
    with pytest.raises(DeviceMismatchError, match=message):
        check_layers(found, found, 2, picks)


@pytest.mark.parametrize(
    ("name", "receiver"), [("mixed", 2), ("hot", 2), ("hot", 4), ("hot-exact", 3), ("hot-exact", 4)]
)
def test_a_run_fails_whose_receivers_miscount_a_layer(
    name: str, receiver: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer_picks = Turn.layer_picks

    def miscounted(turn: Turn, exchanges: list[Exchange]) -> dict[Pair, IntArray]:
        picks = layer_picks(turn, exchanges)
        if exchanges is turn.received and turn.first_step == 0 and (1, receiver) in picks:
            picks[1, receiver][15] += 1
        return picks

    monkeypatch.setattr(Turn, "layer_picks", miscounted)
    message = (
        rf"replica 0, dispatch over .*, MoE layer 15, from device 1 to device {receiver}: ([\d,]+) picks were sent"
    )
    with pytest.raises(DeviceMismatchError, match=message):
        exchanged(run(name, 10), 2)


def test_sums_go_on_from_their_entries_and_over_the_wire() -> None:
    found = [entry[1:] for entry in entries()]
    assert LayerPicks(found).entries() == sorted(found)
    assert from_picks_table(to_picks_table(entries()), "here") == entries()
    assert from_picks_table(to_picks_table([]), "here") == []
    with pytest.raises(InputError, match=r"here\.picks: must be 0 or more"):
        from_picks_table(to_picks_table([(0, 0, 1, 0, -1)]), "here")
